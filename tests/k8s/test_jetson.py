"""The overlay and the images of a Jetson, against the server that they start and the wheels that they take."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer.main

from commands.app import app
from serving.settings_sources import load_settings
from tests.k8s.conftest import REPOSITORY, build

DOCKERFILE = REPOSITORY / "k8s/images/Dockerfile.jetson"
tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML parser")
EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


@pytest.fixture
def pod() -> dict[str, Any]:
    (deployment,) = (obj for obj in build(REPOSITORY / "k8s/overlays/jetson") if obj["kind"] == "Deployment")
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return {**spec, "strategy": deployment["spec"]["strategy"], "replicas": deployment["spec"]["replicas"]}


def test_one_pod_has_the_boards_gpu_and_the_old_one_goes_first(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert pod["replicas"] == 1
    assert pod["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["runtimeClassName"] == "nvidia"
    assert pod["nodeSelector"] == {"kubernetes.io/arch": "arm64"}


def test_its_settings_are_the_servers_and_its_bundle_is_mounted(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    values = {each["name"]: each.get("value", container["resources"]["limits"]["cpu"]) for each in container["env"]}
    settings = load_settings(environment=values)
    assert (settings.engine.provider, settings.engine.max_sequences, settings.engine.context_tokens) == (
        "cuda",
        4,
        2048,
    )
    (bundle,) = container["args"][1:]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert bundle.startswith("/models/")
    assert mounts["/models"]["readOnly"] is True


def lines() -> list[str]:
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_packages_come_from_wheels_alone_and_name_extras_that_exist() -> None:
    installs = [line for line in lines() if "/wheels" in line and "pip install" in line]
    assert len(installs) == 2
    for line in installs:
        assert "--no-index --find-links /wheels" in line
        (extras,) = re.findall(r"\[([a-z,]+)\]", line)
        assert set(extras.split(",")) <= set(EXTRAS)


def test_jetpack_6_gets_nvidias_wheels_by_their_files_and_none_of_pypis_which_is_for_cuda_13() -> None:
    stages = "\n".join(lines()).split("FROM ")
    (six,), (seven,) = ([each for each in stages if f" AS jetpack{number}-packages" in each] for number in (6, 7))
    assert "[serve]" in six  # [gpu] would name onnxruntime-gpu, and pip take the highest that it finds
    assert "/nvidia/onnxruntime_gpu-*.whl /nvidia/tensorrt-*.whl" in six
    assert "--find-links /nvidia" not in six
    assert "from=nvidia" in six
    assert "[gpu,serve]" in seven
    assert "nvidia" not in seven


@pytest.mark.parametrize("target", ["jetpack6", "jetpack7"])
def test_an_image_serves_as_an_ordinary_user(target: str) -> None:
    stage = "\n".join(lines()).split(f" AS {target}\n")[1].split("FROM ")[0]
    assert "USER 10001:10001" in stage
    (arguments,) = re.findall(r'CMD \["serve", "([^"]+)"\]', stage)
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    assert [str(path) for path in command.make_context("serve", [arguments]).params["bundles"]] == [arguments]
