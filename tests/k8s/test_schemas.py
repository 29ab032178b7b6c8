import os
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CRDS = Path(os.environ.get("POCKETVLM_CRDS", REPOSITORY.parent / "shared" / "data" / "crds"))
# The oldest Kubernetes that still gets fixes somewhere, and the newest that the package knows.
KUBERNETES = ("1.30", kubernetes_validate.latest_version())


@pytest.fixture(scope="module")
def rayservice_schema() -> dict[str, Any]:
    path = CRDS / "ray.io_rayservices.yaml"
    if not path.is_file():
        pytest.skip(f"KubeRay's CRDs are not in {CRDS}; set POCKETVLM_CRDS to the folder that holds them")
    crd = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
    return closed(version["schema"]["openAPIV3Schema"])


def closed(schema: Any) -> Any:
    """Make unknown fields an error, as the API server does when it validates strictly."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


@pytest.mark.parametrize("version", KUBERNETES)
def test_core_objects_satisfy_kubernetes(objects: list[dict[str, Any]], version: str) -> None:
    for obj in objects:
        if obj["apiVersion"].partition("/")[0] not in ("ray.io", "monitoring.coreos.com"):
            kubernetes_validate.validate(obj, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
def test_ray_pods_satisfy_kubernetes(rayservice: dict[str, Any], version: str) -> None:
    cluster = rayservice["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
        kubernetes_validate.validate(pod, version, strict=True)


def test_rayservice_satisfies_kuberay(rayservice: dict[str, Any], rayservice_schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(rayservice_schema).validate(rayservice)


def test_a_misspelt_ray_field_is_found(rayservice: dict[str, Any], rayservice_schema: dict[str, Any]) -> None:
    rayservice["spec"]["rayClusterConfig"]["enableInTreeAutoscalling"] = True
    with pytest.raises(jsonschema.ValidationError, match="enableInTreeAutoscalling"):
        jsonschema.Draft202012Validator(rayservice_schema).validate(rayservice)
