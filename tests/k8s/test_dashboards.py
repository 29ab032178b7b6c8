"""Dashboard and alerts: every query answered by a Prometheus that scrapes a running server, every alert by rule."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import jsonschema
import pytest
import yaml
from PIL import Image

from serving.api.metric_table import METRICS, PREFIX
from serving.process import running_server

REPOSITORY = Path(__file__).resolve().parents[2]
DASHBOARDS = REPOSITORY / "k8s/dashboards"
CRDS = Path(os.environ.get("POCKETVLM_CRDS", REPOSITORY.parent / "shared" / "data" / "crds"))
RULES = yaml.safe_load((DASHBOARDS / "alerts.yaml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((DASHBOARDS / "pocketvlm.json").read_text(encoding="utf-8"))
QUERIES = [
    (f"{panel['title']} {target['refId']}", target["expr"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
]
ALERTS = [(rule["alert"], rule["expr"]) for group in RULES["spec"]["groups"] for rule in group["rules"]]
PATIENCE_S = 60.0


def needed(program: str) -> str:
    """A program of Debian's package `prometheus`; else skip."""
    if found := shutil.which(program):
        return found
    pytest.skip(f"{program} is not installed: apt-get install prometheus")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def asked(expression: str) -> str:
    """A panel's query as Grafana sends it."""
    return expression.replace("$model_name", ".*").replace("$__rate_interval", "10m")


@pytest.fixture(scope="module")
def prometheus(
    smolvlm_bundle: Path, clip_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], list[Any]]]:
    """Runs a server, asks it a few things, and lets a Prometheus scrape it; yields what answers a query."""
    program, folder = needed("prometheus"), tmp_path_factory.mktemp("prometheus")
    with running_server("serve", [str(smolvlm_bundle), str(clip_bundle), "--threads", "1"], folder / "log") as server:
        target = server.url.removeprefix("http://")
        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
            "scrape_configs": [{"job_name": "pocketvlm", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        port = free_port()
        line = [program, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
        with (folder / "prometheus.log").open("wb") as log:
            process = subprocess.Popen(
                [*line, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT
            )
        try:
            with httpx.Client(timeout=30) as client:

                def query(expression: str) -> list[Any]:
                    url = f"http://127.0.0.1:{port}/api/v1/query?query={quote(expression)}"
                    told = client.get(url).json()
                    assert told["status"] == "success", told
                    return told["data"]["result"]

                wait_until(lambda: answers(query))
                load(client, server.url)
                yield query
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def answers(query: Callable[[str], list[Any]]) -> bool:
    """Whether Prometheus runs and has scraped the server more than once: the load comes behind its first zeros."""
    try:
        return bool(query(f"count_over_time({PREFIX}build_info[30s]) > 1"))
    except (httpx.TransportError, ValueError):
        return False


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def load(client: httpx.Client, url: str) -> None:
    """Ask for a few answers about one image, an embedding, and something that is not served."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "PNG")
    image = {"url": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"}
    content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": "What is it? " * 8}]
    for _ in range(3):
        body = {"model": "tiny-smolvlm", "messages": [{"role": "user", "content": content}], "max_tokens": 8}
        client.post(f"{url}/v1/chat/completions", json=body).raise_for_status()
    client.post(f"{url}/v1/embeddings", json={"model": "tiny-clip", "input": "a"}).raise_for_status()
    assert client.post(f"{url}/v1/embeddings", json={"model": "nobody", "input": "a"}).status_code == 404


@pytest.mark.parametrize(("panel", "expression"), QUERIES, ids=[name for name, _ in QUERIES])
def test_every_panel_s_query_returns_numbers(prometheus: Any, panel: str, expression: str) -> None:
    def has_numbers() -> bool:
        return any(sample["value"][1] != "NaN" for sample in prometheus(asked(expression)))

    wait_until(has_numbers)


@pytest.mark.parametrize(("alert", "expression"), ALERTS, ids=[name for name, _ in ALERTS])
def test_no_alert_s_expression_is_true_of_a_server_that_is_well(prometheus: Any, alert: str, expression: str) -> None:
    assert prometheus(expression) == []


def test_models_to_choose_from_are_those_that_are_served(prometheus: Any) -> None:
    (variable,) = (each for each in DASHBOARD["templating"]["list"] if each["name"] == "model_name")
    metric, label = re.fullmatch(r"label_values\((\S+), (\S+)\)", variable["definition"]).groups()
    assert {sample["metric"][label] for sample in prometheus(metric)} == {"tiny-smolvlm", "tiny-clip"}


def test_the_rules_are_right_by_promtool(tmp_path: Path) -> None:
    promtool = needed("promtool")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES["spec"]), encoding="utf-8")
    shutil.copy(Path(__file__).with_name("alerts.test.yaml"), tmp_path)
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "alerts.test.yaml"]):
        done = subprocess.run([promtool, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_and_has_its_page() -> None:
    tests = yaml.safe_load(Path(__file__).with_name("alerts.test.yaml").read_text(encoding="utf-8"))["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {name for name, _ in ALERTS}
    page = (REPOSITORY / "docs/operations.md").read_text(encoding="utf-8")
    for group in RULES["spec"]["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
            assert f"\n### {rule['alert']}\n" in page


def test_queries_name_nothing_but_what_a_server_tells() -> None:
    names = set()
    for spec in METRICS:
        ends = ("_bucket", "_sum", "_count") if spec.kind == "histogram" else ("",)
        names |= {spec.sample + end for end in ends}
    for _, expression in (*QUERIES, *ALERTS):
        assert set(re.findall(rf"{PREFIX}[a-z0-9_]+", expression)) <= names


@pytest.mark.parametrize(
    ("file", "crd"),
    [
        ("alerts.yaml", "monitoring.coreos.com_prometheusrules.yaml"),
        ("podmonitor.yaml", "monitoring.coreos.com_podmonitors.yaml"),
        ("scrapeconfig.yaml", "monitoring.coreos.com_scrapeconfigs.yaml"),
    ],
)
def test_what_the_operator_reads_satisfies_its_schema(file: str, crd: str) -> None:
    path = CRDS / crd
    if not path.is_file():
        pytest.skip(
            f"the Prometheus operator's CRDs are not in {CRDS}; set POCKETVLM_CRDS to the folder that holds them"
        )
    definition = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    obj = yaml.safe_load((DASHBOARDS / file).read_text(encoding="utf-8"))
    wanted = obj["apiVersion"].rpartition("/")[2]
    (version,) = (each for each in definition["spec"]["versions"] if each["name"] == wanted)
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["additionalProperties"] = False
    jsonschema.Draft202012Validator(schema).validate(obj)


def test_what_is_scraped_is_what_the_manifests_start() -> None:
    deployment = yaml.safe_load((REPOSITORY / "k8s/base/edge/deployment.yaml").read_text(encoding="utf-8"))
    monitor = yaml.safe_load((DASHBOARDS / "podmonitor.yaml").read_text(encoding="utf-8"))["spec"]
    pod = deployment["spec"]["template"]
    assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    ports = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= ports
    rayservice = yaml.safe_load((REPOSITORY / "k8s/base/rayservice/rayservice.yaml").read_text(encoding="utf-8"))
    scrape = yaml.safe_load((DASHBOARDS / "scrapeconfig.yaml").read_text(encoding="utf-8"))["spec"]
    (target,) = scrape["staticConfigs"][0]["targets"]
    assert target.startswith(f"{rayservice['metadata']['name']}-serve-svc.")
