"""Builds the kustomizations in Python, so that they are tested where there is no kubectl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = (
    "base",
    "base/edge",
    "base/rayservice",
    "overlays/cpu",
    "overlays/cpu/edge",
    "overlays/cpu/rayservice",
    "overlays/cpu/canary",
    "overlays/gpu",
    "overlays/gpu/rayservice",
    "dashboards",
    "overlays/jetson",
)
Object = dict[str, Any]


def build(folder: Path) -> list[Object]:
    """What `kubectl kustomize` prints for a folder, for the fields that this project uses; others are an error."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    surplus = set(kustomization) - {"apiVersion", "kind", "resources", "images", "patches", "configMapGenerator"}
    if surplus:
        raise NotImplementedError(f"{folder}: this builder does not know {sorted(surplus)}")
    objects = [obj for name in kustomization["resources"] for obj in _read(folder / name)]
    objects += [_config_map(folder, each) for each in kustomization.get("configMapGenerator", [])]
    for patch in kustomization.get("patches", []):
        _patch(objects, patch["target"], yaml.safe_load((folder / patch["path"]).read_text(encoding="utf-8")))
    for image in kustomization.get("images", []):
        for container in containers_in(objects):
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    return objects


def _config_map(folder: Path, generator: Object) -> Object:
    """The ConfigMap of some files, by a name without a digest."""
    options = generator["options"]
    if not options["disableNameSuffixHash"]:
        raise NotImplementedError("this builder makes no digests")
    data = {file: (folder / file).read_text(encoding="utf-8") for file in generator["files"]}
    metadata = {"name": generator["name"], "labels": options["labels"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _read(resource: Path) -> list[Object]:
    if resource.is_dir():
        return build(resource)
    # The round trip through JSON unshares what YAML anchors share, so that a patch changes one place.
    return [json.loads(json.dumps(yaml.safe_load(resource.read_text(encoding="utf-8"))))]


def _patch(objects: list[Object], target: dict[str, str], operations: list[Object]) -> None:
    """Apply JSON patch operations (RFC 6902, `replace` and `add`) to the one object that the target names."""
    (found,) = (o for o in objects if o["kind"] == target["kind"] and o["metadata"]["name"] == target["name"])
    for operation in operations:
        if operation["op"] not in ("replace", "add"):
            raise NotImplementedError(f"this builder does not know the operation {operation['op']}")
        *path, last = (int(part) if part.isdigit() else part for part in operation["path"].split("/")[1:])
        place: Any = found
        for part in path:
            place = place[part]
        if last == "-":
            place.append(operation["value"])
            continue
        if operation["op"] == "replace":
            place[last]
        place[last] = operation["value"]


def containers_in(value: Any) -> Iterator[Object]:
    """Every container at any depth, init containers included."""
    if isinstance(value, list):
        for item in value:
            yield from containers_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("containers", "initContainers"):
                yield from item
            yield from containers_in(item)


def pod_specs_in(value: Any) -> Iterator[Object]:
    """Every pod specification at any depth: what holds `containers`."""
    if isinstance(value, list):
        for item in value:
            yield from pod_specs_in(item)
    elif isinstance(value, dict):
        if "containers" in value:
            yield value
        for item in value.values():
            yield from pod_specs_in(item)


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> Path:
    """Each folder that can be applied, in turn."""
    return REPOSITORY / "k8s" / request.param


@pytest.fixture
def objects(folder: Path) -> list[Object]:
    """What the folder builds."""
    return build(folder)


@pytest.fixture
def pod_specs(folder: Path, objects: list[Object]) -> list[Object]:
    """Every pod that the folder starts, those of Ray included."""
    if folder.name == "dashboards":
        pytest.skip("what watches a server starts no pod")
    return list(pod_specs_in(objects))


@pytest.fixture
def containers(folder: Path, objects: list[Object]) -> list[Object]:
    """Every container that the folder starts."""
    if folder.name == "dashboards":
        pytest.skip("what watches a server starts no container")
    return list(containers_in(objects))


@pytest.fixture(params=["base/edge", "overlays/cpu/edge"])
def deployment(request: pytest.FixtureRequest) -> Object:
    """The edge server's Deployment."""
    return _only(request.param, "Deployment")


@pytest.fixture(params=["base/rayservice", "overlays/cpu/rayservice"])
def rayservice(request: pytest.FixtureRequest) -> Object:
    """The RayService."""
    return _only(request.param, "RayService")


@pytest.fixture(params=["overlays/cpu/canary", "overlays/gpu/rayservice"])
def rayservice_of_volume(request: pytest.FixtureRequest) -> Object:
    """A RayService whose bundles lie on a volume."""
    return _only(request.param, "RayService")


@pytest.fixture
def canary_service() -> Object:
    """The RayService with two variants under one name."""
    return _only("overlays/cpu/canary", "RayService")


@pytest.fixture
def gpu_service() -> Object:
    """The RayService for machines with a GPU."""
    return _only("overlays/gpu/rayservice", "RayService")


def _only(folder: str, kind: str) -> Object:
    (found,) = (obj for obj in build(REPOSITORY / "k8s" / folder) if obj["kind"] == kind)
    return found
