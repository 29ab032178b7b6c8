"""A decoder that is exported in segments: cut where it was said, of the same weights, and the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from bundle.directory import open_bundle
from bundle.errors import BundleFileError, UnsupportedConfigError
from bundle.golden import canary_image
from bundle.prompt import Placeholder, Turn
from bundle.visual_exit import VISUAL_EXIT, Router, save_routers
from export.exporter import export_checkpoint
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from runtime.canary import check_canary
from runtime.decoder import TokenGraphs
from runtime.one_request import VisionLanguageRunner
from runtime.segments import SegmentChain
from runtime.settings import RuntimeSettings

ONE_THREAD = RuntimeSettings(intra_threads=1)
SHIPPED = Path(__file__).parents[2] / "reference" / "checkpoints" / "vlm"
FAMILIES = ("smolvlm", "llava-clip-llama", "llava-siglip-qwen2")


def logits_of(bundle: Path, *, in_segments: bool = False) -> np.ndarray:
    runner = VisionLanguageRunner(open_bundle(bundle, allow_ungated=True), ONE_THREAD)
    prompt = runner.prompt([Turn("user", (Placeholder.IMAGE, "what is it?"))], [canary_image()])
    prefilled = runner.prefill(prompt, 3, (lambda cut: cut.image_rows) if in_segments else None)
    return runner.forced_logits(prefilled, [7, 8, 9])


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
@pytest.mark.parametrize("family", FAMILIES)
def test_segments_give_the_logits_of_the_decoder_that_was_not_cut(
    checkpoint_of, bundle_of, tmp_path: Path, family: str, dialect: str
) -> None:
    manifest = export_checkpoint(checkpoint_of(family), tmp_path / "cut", dialect=dialect, segments=[1])
    assert [(part.first_layer, part.group) for part in manifest.segments] == [(0, 0), (1, 1)]
    expected = logits_of(bundle_of(family, dialect))
    for in_segments in (False, True):
        found = logits_of(tmp_path / "cut", in_segments=in_segments)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_segments_share_the_weights_of_the_whole_decoder(tmp_path: Path) -> None:
    manifest = export_checkpoint(SHIPPED, tmp_path / "cut", segments=[1, 2])
    whole = manifest.components["decoder"].weight_bytes
    assert sum(part.weight_bytes for part in manifest.segments) < whole / 1000
    assert manifest.weight_bytes == sum(
        part.weight_bytes for part in (*manifest.components.values(), *manifest.segments)
    )


@pytest.mark.parametrize(
    ("weights", "profile"), [("int8-rtn", "latency"), ("int4-rtn", "memory"), ("int4-rtn", "dual"), ("nf4", None)]
)
def test_a_variants_segments_are_of_its_graph_for_prompts(
    checkpoint_of, tmp_path: Path, weights: str, profile: str | None
) -> None:
    export_checkpoint(checkpoint_of("smolvlm"), tmp_path / "cut", segments=[1])
    variant = quantize_bundle(tmp_path / "cut", tmp_path / "variant", weights=weights, options=Options(profile=profile))
    prompts = variant.components[variant.graph("decoder", "prompt")]
    assert {part.scheme for part in variant.segments} == {prompts.scheme}
    bundle = open_bundle(tmp_path / "variant", allow_ungated=True)
    chain = SegmentChain(TokenGraphs(bundle, ONE_THREAD).segments)
    check_canary(bundle, {variant.graph("decoder", "prompt"): chain})
    whole, cut = (logits_of(tmp_path / "variant", in_segments=in_segments) for in_segments in (False, True))
    np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-4)  # sums and norms are joined but at a cut


@pytest.mark.parametrize(("weights", "cache", "tolerance"), [("fp32", "int8", 0.02), ("int4-rtn", "int4", 0.3)])
def test_segments_keep_the_codes_of_the_cache(tmp_path: Path, weights: str, cache: str, tolerance: float) -> None:
    from reference.held_out import calibration_of

    export_checkpoint(SHIPPED, tmp_path / "cut", segments=[1, 2])
    quantize_bundle(
        tmp_path / "cut",
        tmp_path / "variant",
        weights=weights,
        options=Options(kv_cache=cache),
        calibration=calibration_of("vlm", 1),
    )
    whole, cut = (logits_of(tmp_path / "variant", in_segments=in_segments) for in_segments in (False, True))
    np.testing.assert_allclose(cut, whole, rtol=0, atol=tolerance)  # a last digit can turn a code


def test_variants_for_a_device_have_no_segments_and_say_so(checkpoint_of, tmp_path: Path) -> None:
    export_checkpoint(checkpoint_of("smolvlm"), tmp_path / "cut", segments=[1])
    lines: list[str] = []
    options = Options(target="cuda")
    variant = quantize_bundle(
        tmp_path / "cut", tmp_path / "variant", weights="fp16", options=options, progress=lines.append
    )
    assert variant.segments == ()
    assert any("segments are for the CPU: this variant for cuda has none" in line for line in lines)


@pytest.mark.parametrize("cuts", [[0], [3], [1, 1], [2, 1], [-1]])
def test_cuts_outside_of_the_layers_are_refused(checkpoint_of, tmp_path: Path, cuts: list[int]) -> None:
    with pytest.raises(UnsupportedConfigError, match="layers 0 to 2; give numbers from 1 to 2 that count up"):
        export_checkpoint(checkpoint_of("smolvlm"), tmp_path / "cut", segments=cuts)


def test_a_dual_encoder_has_nothing_to_cut(checkpoint_of, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedConfigError, match="has none"):
        export_checkpoint(checkpoint_of("clip"), tmp_path / "cut", segments=[1])


def test_routers_beside_the_checkpoint_come_along(checkpoint_of, tmp_path: Path) -> None:
    import shutil

    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_of("smolvlm"), checkpoint)
    width = open_width(checkpoint)
    routers = {1: Router(np.zeros((1, 2 * width + 1), np.float32), np.ones(2, np.float32))}
    save_routers(checkpoint / VISUAL_EXIT, routers)
    assert VISUAL_EXIT in export_checkpoint(checkpoint, tmp_path / "cut", segments=[1]).files
    assert VISUAL_EXIT not in export_checkpoint(checkpoint, tmp_path / "whole").files
    variant = quantize_bundle(tmp_path / "cut", tmp_path / "variant", weights="int4-rtn")
    assert VISUAL_EXIT in variant.files
    save_routers(checkpoint / VISUAL_EXIT, {1: Router(np.zeros((1, 3), np.float32), np.ones(2, np.float32))})
    with pytest.raises(BundleFileError, match="for this decoder"):
        export_checkpoint(checkpoint, tmp_path / "other", segments=[1])


def open_width(checkpoint: Path) -> int:
    import json

    return int(json.loads((checkpoint / "config.json").read_text())["text_config"]["hidden_size"])


def test_segments_that_do_not_follow_one_another_are_refused(checkpoint_of, tmp_path: Path) -> None:
    manifest = export_checkpoint(checkpoint_of("smolvlm"), tmp_path / "cut", segments=[1])
    raw = manifest.model_dump(mode="json")
    for broken in (raw["segments"][::-1], raw["segments"][:1]):
        with pytest.raises(ValidationError, match="segment"):
            type(manifest).model_validate({**raw, "segments": broken})


def test_a_segment_that_the_manifest_does_not_list_is_not_opened(checkpoint_of, tmp_path: Path) -> None:
    manifest = export_checkpoint(checkpoint_of("smolvlm"), tmp_path / "cut", segments=[1])
    files = {name: record for name, record in manifest.files.items() if name != manifest.segments[0].file}
    (tmp_path / "cut" / "manifest.json").write_text(manifest.model_copy(update={"files": files}).model_dump_json())
    with pytest.raises(BundleFileError, match=r"decoder_segment_0\.onnx is not among"):
        open_bundle(tmp_path / "cut")
