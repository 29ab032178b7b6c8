"""`pocketvlm inspect` on a tiny bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bundle.directory import read_manifest, seal
from bundle.gates import Unmeasured


def test_as_json_it_is_the_manifest(pocketvlm, smolvlm_bundle: Path) -> None:
    done = pocketvlm("inspect", smolvlm_bundle, "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["components"]) == {"vision_encoder", "embed_tokens", "decoder"}


def test_gates_that_could_not_be_measured_are_told_with_their_reason(pocketvlm, clip_bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip_bundle, tmp_path / "variant"))
    left = tuple(Unmeasured(name=name, reason="no sample has a text") for name in ("spread/text", "correlation/text"))
    seal(folder, read_manifest(folder).model_copy(update={"unmeasured": left}))
    told = " ".join(pocketvlm("inspect", folder).stdout.split())
    assert "not measured: spread/text, correlation/text: no sample has a text" in told


def test_a_bundle_that_was_altered_is_found_out(pocketvlm, clip_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_bundle, tmp_path / "altered")
    file = tmp_path / "altered" / "tokenizer.json"
    file.write_bytes(file.read_bytes()[::-1])
    done = pocketvlm("inspect", tmp_path / "altered")
    assert done.returncode == 1
    assert "tokenizer.json was altered" in done.stderr


def test_what_the_cache_holds_is_told(pocketvlm, smolvlm_bundle: Path, tmp_path: Path) -> None:
    parent = read_manifest(smolvlm_bundle)
    folder = Path(shutil.copytree(smolvlm_bundle, tmp_path / "variant"))
    seal(folder, parent.model_copy(update={"states": tuple(state.coded("int8") for state in parent.states)}))
    told = {bundle: " ".join(pocketvlm("inspect", bundle).stdout.split()) for bundle in (smolvlm_bundle, folder)}
    for bundle, dtype, num_bytes in (
        (smolvlm_bundle, "float32", parent.state_bytes_per_token),
        (folder, "int8", parent.state_bytes_per_token / 4),
    ):
        assert f"cache {dtype}, {num_bytes / 1024:.1f} KiB per token and sequence" in told[bundle]


def test_methods_and_policies_that_a_bundle_offers_are_told(pocketvlm, smolvlm_bundle: Path, clip_bundle: Path) -> None:
    told = json.loads(pocketvlm("inspect", smolvlm_bundle, "--json").stdout)
    lines = pocketvlm("inspect", smolvlm_bundle).stdout.splitlines()
    assert f"vision methods: {', '.join(told['vision_methods'])}" in lines
    assert f"KV policies: {', '.join(told['kv_policies'])}" in lines
    assert {"uniform", "visionzip"} <= set(told["vision_methods"])
    assert "fastv" not in told["vision_methods"]  # not in segments
    assert "snapkv" in told["kv_policies"]
    assert "pyramidkv" not in told["kv_policies"]  # one length group
    assert json.loads(pocketvlm("inspect", clip_bundle, "--json").stdout)["kv_policies"] == []
