import ast
import fnmatch
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bundle.extras import MODULES_OF_EXTRA

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = REPOSITORY / "k8s/images/Dockerfile"
tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML parser")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def instructions() -> list[tuple[str, str]]:
    """The recipe's instructions in order: the word in capitals, and the rest as one line."""
    text = "\n".join(
        line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")
    )
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, its FROM first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            current = found.setdefault(rest.split()[-1], [])
        if found:
            current.append((word, rest))
    return found


def copied_from_the_context() -> list[str]:
    sources = []
    for word, rest in instructions():
        parts = [part for part in rest.split() if not part.startswith("--")]
        if word == "COPY" and "--from=" not in rest:
            sources += parts[:-1]
    return sources


def is_sent(path: str) -> bool:
    """Whether the .dockerignore lets a path into the build, by its rules in order: the last that matches decides."""
    sent = True
    for line in (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!").rstrip("/")
        parts = PurePosixPath(path).parts
        if pattern.startswith("**/"):
            is_match = any(fnmatch.fnmatch(part, pattern.removeprefix("**/")) for part in parts)
        else:
            depth = len(PurePosixPath(pattern).parts)
            is_match = fnmatch.fnmatch("/".join(parts[:depth]), pattern) and len(parts) >= depth
        if is_match:
            sent = rule.startswith("!")
    return sent


@pytest.mark.parametrize("source", copied_from_the_context())
def test_what_the_recipe_copies_exists_and_is_sent_to_the_build(source: str) -> None:
    found = [path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob(source.rstrip("/"))]
    assert found
    assert all(is_sent(path) for path in found)


def test_environments_caches_and_history_stay_out_of_the_build() -> None:
    for path in (".venv/bin/python", ".git/config", "tests/test_house.py", "serving/__pycache__/x.pyc", "docs/a.md"):
        assert not is_sent(path)


def test_every_package_of_the_wheel_is_copied() -> None:
    copied = {source.split("/")[0] for source in copied_from_the_context()}
    assert {package.split(".")[0] for package in PROJECT["tool"]["setuptools"]["packages"]} <= copied


def test_installs_are_pinned_and_name_extras_that_exist() -> None:
    installs = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    assert installs
    for install in installs:
        assert "--constraint constraints.txt" in install
        (extras,) = re.findall(r'"\.\[([a-z,]+)\]"', install)
        assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


@pytest.mark.parametrize(
    ("stage", "wanted"), [("edge-packages", {"cpu", "serve"}), ("cluster-packages", {"cpu", "serve", "ray"})]
)
def test_the_images_hold_what_serves_and_nothing_that_exports(stage: str, wanted: set[str]) -> None:
    (extras,) = re.findall(r'"\.\[([a-z,]+)\]"', " ".join(rest for _, rest in stages()[stage]))
    assert set(extras.split(",")) == wanted


@pytest.mark.parametrize("target", ["edge", "cluster"])
def test_both_targets_start_as_the_user_that_the_pods_name(target: str) -> None:
    assert [rest for word, rest in stages()[target] if word in ("FROM", "USER")] == [f"runtime AS {target}"]
    assert [rest for word, rest in stages()["runtime"] if word == "USER"] == ["10001:10001"]


def test_edge_is_the_target_when_none_is_named() -> None:
    assert list(stages())[-1] == "edge"


def test_the_image_and_the_manifest_use_one_python_that_the_project_supports() -> None:
    (version,) = (rest.split("=")[1] for word, rest in instructions() if word == "ARG")
    assert tuple(map(int, version.split("."))) >= (3, 10)


def imported_by(files: list[Path]) -> set[str]:
    """The top-level modules that are neither Python's nor ours, imported anywhere in the files."""
    found = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.split(".")[0] for name in names}
    ours = {package.split(".")[0] for package in PROJECT["tool"]["setuptools"]["packages"]}
    # tomli stands in for tomllib, which the image's Python has.
    return found - ours - set(sys.stdlib_module_names) - {"tomli"}


def installed_with(extras: set[str]) -> set[str]:
    """Every distribution that pip installs for the project's extras, by the metadata of those installed here."""
    waiting = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
    waiting += [Requirement(line) for extra in extras for line in PROJECT["project"]["optional-dependencies"][extra]]
    found: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        is_elsewhere = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        if name in found or is_elsewhere:
            continue
        found.add(name)
        for line in metadata.requires(name) or []:
            further = Requirement(line)
            environments = [{"extra": extra} for extra in ("", *requirement.extras)]
            if further.marker is None or any(further.marker.evaluate(each) for each in environments):
                further.marker = None
                waiting.append(further)
    return found


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]


CLUSTER = sources("serving/cluster")
SERVER = [path for path in sources("bundle", "commands", "runtime", "serving") if path not in CLUSTER]
EXPORTER = [*sources("bundle", "export", "graphs"), REPOSITORY / "commands/shipped.py"]
_OPTIONAL_EXTRAS = ("video", "openvino", "tensorrt", "tensorrt-rtx", "retrieval")
OPTIONAL = {module for extra in _OPTIONAL_EXTRAS for module in MODULES_OF_EXTRA[extra]}
"""Imported where they are found, and told with their extra where they are wanted and are not (docs/deploy.md)."""


@pytest.mark.parametrize(
    ("stage", "files"),
    [
        ("edge-packages", SERVER),
        ("cluster-packages", [*SERVER, *CLUSTER]),
        ("exporter", EXPORTER),
    ],
    ids=["edge", "cluster", "exporter"],
)
def test_a_stage_installs_all_that_its_code_imports(stage: str, files: list[Path]) -> None:
    (extras,) = re.findall(r'"\.\[([a-z,]+)\]"', " ".join(rest for _, rest in stages()[stage]))
    installed = installed_with(set(extras.split(",")))
    homes = metadata.packages_distributions()
    lacking = {
        module
        for module in imported_by(files) - OPTIONAL
        if not installed & {canonicalize_name(home) for home in homes.get(module, ())}
    }
    assert lacking == set()


def health_command() -> list[str]:
    (check,) = (rest for word, rest in instructions() if word == "HEALTHCHECK")
    command = json.loads(check[check.index("CMD") + 3 :])
    assert command[0] == "python"
    return [sys.executable, *command[1:]]


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        is_ready = self.path == "/health/ready" and self.server.is_ready  # type: ignore[attr-defined]
        self.send_response(200 if is_ready else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    with http.server.HTTPServer(("127.0.0.1", 0), Health) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.mark.parametrize(("is_ready", "status"), [(True, 0), (False, 1)])
def test_the_health_check_follows_readiness(server: http.server.HTTPServer, is_ready: bool, status: int) -> None:
    server.is_ready = is_ready  # type: ignore[attr-defined]
    environment = {**os.environ, "POCKETVLM_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:1"}
    assert subprocess.run(health_command(), env=environment, check=False).returncode == status


def test_the_health_check_fails_when_nothing_listens() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Health) as found:
        port = found.server_port
    done = subprocess.run(
        health_command(), env={**os.environ, "POCKETVLM_PORT": str(port)}, capture_output=True, check=False
    )
    assert done.returncode == 1
