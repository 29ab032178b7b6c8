import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

K8S = Path(__file__).resolve().parents[2] / "k8s"
# `patches` with a target and a path came with kustomize 3; kubectl tells its kustomize's version since 1.24.
OLDEST_KUSTOMIZE = 4


def kustomize_command() -> list[str]:
    """kubectl or kustomize, whichever is here and young enough; else skip."""
    if kubectl := shutil.which("kubectl"):
        done = subprocess.run(
            [kubectl, "version", "--client", "-o", "json"], capture_output=True, text=True, check=True
        )
        version = json.loads(done.stdout).get("kustomizeVersion", "v2")
        if int(version.removeprefix("v").split(".")[0]) >= OLDEST_KUSTOMIZE:
            return [kubectl, "kustomize"]
    if kustomize := shutil.which("kustomize"):
        return [kustomize, "build"]
    pytest.skip("needs kubectl 1.24 or later, or kustomize; the Python builder's results are tested all the same")


def by_name(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(obj["kind"], obj["metadata"]["name"]): obj for obj in objects}


def test_kubectl_builds_what_the_other_tests_look_at(folder: Path, objects: list[dict[str, Any]]) -> None:
    done = subprocess.run([*kustomize_command(), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    assert by_name(list(yaml.safe_load_all(done.stdout))) == by_name(objects)


def test_no_manifest_is_left_out_of_its_kustomization() -> None:
    for kustomization in K8S.rglob("kustomization.yaml"):
        content = yaml.safe_load(kustomization.read_text(encoding="utf-8"))
        named = {*content["resources"], *(patch["path"] for patch in content.get("patches", []))}
        beside = {path.name for path in kustomization.parent.glob("*.yaml")} - {"kustomization.yaml"}
        assert beside <= named, kustomization


def test_names_are_unique_so_that_both_ways_of_serving_can_live_in_one_namespace(objects: list[dict[str, Any]]) -> None:
    assert len(by_name(objects)) == len(objects)


def documented(kind: str) -> str:
    """Return the one block of YAML in docs/deploy.md that holds a line."""
    blocks = re.findall(r"```yaml\n(.*?)```", (K8S.parent / "docs/deploy.md").read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if kind in block)
    return found


def test_the_patch_in_the_documentation_mounts_its_volume_into_the_container_that_there_is(
    deployment: dict[str, Any],
) -> None:
    pod = deployment["spec"]["template"]["spec"]
    patch = yaml.safe_load(documented("secretName: pocketvlm-keys"))["spec"]["template"]["spec"]
    (patched,) = patch["containers"]
    assert patched["name"] in {container["name"] for container in pod["containers"]}
    assert {mount["name"] for mount in patched["volumeMounts"]} == {volume["name"] for volume in patch["volumes"]}
    assert patch["securityContext"]["fsGroup"] == pod["securityContext"]["runAsUser"]


def test_the_overlay_in_the_documentation_builds_and_mounts_its_volume(tmp_path: Path) -> None:
    text = documented("kind: Kustomization")
    base = os.path.relpath(K8S / "overlays/cpu/edge", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(text.replace("../k8s/overlays/cpu/edge", base), encoding="utf-8")
    done = subprocess.run([*kustomize_command(), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pod = by_name(list(yaml.safe_load_all(done.stdout)))["Deployment", "pocketvlm-edge"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "registry.example.org/pocketvlm:0.1.0"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert all(argument.startswith("/models/") for argument in container["args"][1:])


def test_the_documentation_names_paths_that_exist() -> None:
    text = (K8S.parent / "docs/deploy.md").read_text(encoding="utf-8")
    for named in set(re.findall(r"\bk8s/[a-zA-Z/]+[a-zA-Z]", text)):
        assert (K8S.parent / named).exists(), named
