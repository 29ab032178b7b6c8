"""The edge manifest and image against the server that they start."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from bundle.errors import SettingsError
from commands.app import app
from commands.shipped import SERVED
from serving.api.app import create_app
from serving.fake import FakeClient
from serving.settings import ApiSettings, ServerSettings
from serving.settings_sources import load_settings

Object = dict[str, Any]
DOCKERFILE = Path(__file__).resolve().parents[2] / "k8s/images/Dockerfile"


def container(deployment: Object) -> Object:
    return deployment["spec"]["template"]["spec"]["containers"][0]


def settings_of(deployment: Object) -> ServerSettings:
    """The settings that the server reads in the pod; what Kubernetes fills in itself is the pod's CPU limit."""
    limit = container(deployment)["resources"]["limits"]["cpu"]
    variables = {}
    for variable in container(deployment)["env"]:
        if "value" not in variable:
            assert variable["valueFrom"] == {"resourceFieldRef": {"resource": "limits.cpu"}}
        variables[variable["name"]] = variable.get("value", limit)
    return load_settings(environment=variables)


def served_bundles(arguments: list[str]) -> list[str]:
    """What the command understands its arguments to mean."""
    name, *rest = arguments
    assert name == "serve"
    command: Any = typer.main.get_command(app)
    return [str(path) for path in command.commands[name].make_context(name, rest).params["bundles"]]


def test_the_server_listens_to_the_cluster_on_the_port_that_the_pod_names(deployment: Object) -> None:
    settings = settings_of(deployment)
    ports = {port["name"]: port["containerPort"] for port in container(deployment)["ports"]}
    assert settings.host == "0.0.0.0"
    assert ports == {"http": settings.port, "health": settings.http.health_port}
    assert deployment["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(settings.port)


def test_the_engine_takes_as_many_threads_as_the_pod_has_cores(deployment: Object) -> None:
    assert settings_of(deployment).engine.intra_threads == int(container(deployment)["resources"]["limits"]["cpu"])


def test_kubernetes_waits_longer_than_the_server_drains(deployment: Object) -> None:
    pod = deployment["spec"]["template"]["spec"]
    sleep_s = int(container(deployment)["lifecycle"]["preStop"]["exec"]["command"][1])
    assert sleep_s + settings_of(deployment).drain_timeout_s < pod["terminationGracePeriodSeconds"]


def test_probes_and_scraping_ask_for_routes_that_exist(deployment: Object) -> None:
    paths = set(create_app(FakeClient(), ApiSettings()).openapi()["paths"])
    asked = {name: probe["httpGet"] for name, probe in container(deployment).items() if name.endswith("Probe")}
    probes = {name: where["path"] for name, where in asked.items()}
    assert {where["port"] for where in asked.values()} == {"health"}
    assert probes == {
        "startupProbe": "/health/live",
        "readinessProbe": "/health/ready",
        "livenessProbe": "/health/live",
    }
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert {*probes.values(), annotations["prometheus.io/path"]} <= paths


def test_the_pod_serves_the_bundles_that_the_image_holds(deployment: Object) -> None:
    assert served_bundles(container(deployment)["args"]) == [f"/bundles/{name}" for name in SERVED]


def test_the_image_alone_serves_the_same_bundles_on_the_same_port(deployment: Object) -> None:
    recipe = DOCKERFILE.read_text(encoding="utf-8")
    assert "WORKDIR /bundles\n" in recipe
    (command,) = re.findall(r'^CMD (\["serve".*\])$', recipe, re.MULTILINE)
    assert served_bundles(json.loads(command)) == list(SERVED)
    variables = dict(re.findall(r"(POCKETVLM_[A-Z_]+)=(\S+)", recipe))
    settings = load_settings(environment=variables)
    assert (settings.host, settings.port) == ("0.0.0.0", settings_of(deployment).port)


def test_a_service_link_would_stop_the_server() -> None:
    """Why the pods switch service links off: this is what Kubernetes sets for the service `pocketvlm-edge`."""
    with pytest.raises(SettingsError, match="edge_port"):
        load_settings(environment={"POCKETVLM_EDGE_PORT": "tcp://10.0.0.1:80"})
