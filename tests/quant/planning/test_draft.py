from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bundle.directory import open_bundle
from bundle.errors import QuantizationError
from quant.calibration.feeds import FeedSource
from quant.planning import draft as drafts
from quant.planning.draft import Options, experimental, fit_bits, make_draft
from quant.planning.draft_tables import tables
from quant.planning.layer_runs import Timed
from quant.planning.plan import KEPT
from quant.quality.evaluation import Evaluation


def drafted(bundle: Path, weights: str, **options):
    return make_draft(open_bundle(bundle), weights, Options(**options), lambda line: None)


def printed(draft) -> str:
    written = StringIO()
    console = Console(width=200, file=written)
    for item in tables(draft):
        console.print(item)
    return written.getvalue()


def test_a_variant_is_named_by_its_weights_and_by_a_profile_that_is_not_their_own(smolvlm_bundle: Path) -> None:
    assert drafted(smolvlm_bundle, "int8").label == "int8"
    assert drafted(smolvlm_bundle, "int8", profile="latency").label == "int8"
    assert drafted(smolvlm_bundle, "int4,vision_encoder=fp32", profile="dual").label == "int4-vision_encoder-fp32-dual"


def test_a_dual_encoder_has_no_profiles(clip_bundle: Path) -> None:
    assert drafted(clip_bundle, "int8").profiles == ()
    with pytest.raises(QuantizationError, match="has no decoder, so no profile 'dual'"):
        drafted(clip_bundle, "int8", profile="dual")


def test_another_machines_target_takes_defaults_and_predicts_nothing(smolvlm_bundle: Path) -> None:
    draft = drafted(smolvlm_bundle, "int4", target="cuda", tune=True)
    assert draft.profiles == ()
    assert draft.plans["vision_encoder"].scheme == "fp16"
    assert draft.plans["decoder"].scheme == "int4"
    with pytest.raises(QuantizationError, match="--dialect portable"):
        drafted(smolvlm_bundle, "int8", target="tensorrt")


def test_float16_is_refused_on_a_cpu_before_anything_is_timed(smolvlm_bundle: Path, monkeypatch) -> None:
    monkeypatch.setattr(drafts, "tuned_times", lambda *_: pytest.fail("timed"))
    with pytest.raises(QuantizationError, match="a CPU computes float16"):
        drafted(smolvlm_bundle, "fp16", tune=True)


def test_tuning_measures_the_graphs_own_shapes(clip_bundle: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lines: list[str] = []
    for _ in range(2):
        draft = make_draft(open_bundle(clip_bundle), "int8", Options(tune=True), lines.append)
    assert draft.times_source.startswith("measured on this machine")
    assert [line.split()[0] for line in lines] == ["timing", "the"]  # once: begun, and where they are kept
    assert len(list((tmp_path / "pocketvlm").iterdir())) == 1


def test_what_is_printed_names_choices_reasons_profiles_and_the_cache(smolvlm_bundle: Path) -> None:
    text = printed(drafted(smolvlm_bundle, "ternary"))
    assert "w8a8 8-bit" in text
    assert "many rows meet each weight" in text
    assert "memory, chosen" in text
    assert "takes" in text
    assert "KiB" in text
    assert "ternary is experimental" in text
    assert experimental(drafted(smolvlm_bundle, "int4")) == []


def test_what_was_weighed_is_printed_with_its_times(smolvlm_bundle: Path) -> None:
    text = printed(drafted(smolvlm_bundle, "int4-rtn"))
    assert "matmul_nbits 4-bit b64, chosen" in text
    assert "at best" in text
    assert "usually" in text


def test_a_machine_that_is_too_noisy_to_tell_forms_apart_keeps_the_default_and_says_so(
    smolvlm_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lines: list[str] = []

    def time_layers(wanted: Sequence[Timed]) -> dict[str, list[list[float]]]:
        """Blocks of 128 were quick once; everything else takes a millisecond, whenever it is run."""
        return {timed.key: [[0.1 if "4-bit b128" in timed.key else 1.0], [1.0], [1.0]] for timed in wanted}

    draft = make_draft(open_bundle(smolvlm_bundle), "int4-rtn", Options(tune=True), lines.append, time_layers)
    assert draft.plans["decoder"].layers[0].choice.label == "matmul_nbits 4-bit b64"
    told = [line for line in lines if "too noisy to tell" in line]
    assert [line.partition(":")[0] for line in told] == ["decoder, 21 x linear", "decoder, 1 x head"]
    assert all("so matmul_nbits 4-bit b64 is kept" in line for line in told)


def test_limits_exclude_each_other_and_want_a_decoder(smolvlm_bundle: Path, clip_bundle: Path) -> None:
    source = FeedSource(open_bundle(smolvlm_bundle), Evaluation())
    draft = drafted(smolvlm_bundle, "int4")
    assert fit_bits(draft, source, Options(), print) is draft
    with pytest.raises(QuantizationError, match="give one of them"):
        fit_bits(draft, source, Options(max_bytes=1, max_kl=1.0), print)
    with pytest.raises(QuantizationError, match="there is none"):
        fit_bits(drafted(clip_bundle, "int8"), source, Options(max_kl=1.0), print)


@pytest.mark.parametrize("block_size", [0, 16, 48, 256])
def test_a_block_size_without_a_fast_kernel_is_refused(smolvlm_bundle: Path, block_size: int) -> None:
    with pytest.raises(QuantizationError, match=f"--block-size {block_size}: .* blocks of 32, 64, 128"):
        drafted(smolvlm_bundle, "int4", block_size=block_size)


def test_the_plan_s_table_says_which_layers_a_row_is_about(smolvlm_bundle: Path) -> None:
    plain = printed(drafted(smolvlm_bundle, "int8-rtn"))
    assert "x linear" in plain
    assert "1 x head" in plain
    draft = drafted(smolvlm_bundle, "int8-rtn")
    plan = draft.plans["decoder"]
    first = next(layer for layer in plan.layers if layer.kind == "linear")
    others = tuple(layer for layer in plan.layers if layer is not first)
    split = replace(plan, layers=(replace(first, choice=KEPT), *others), decisions=())
    told = printed(replace(draft, plans={"decoder": split}))
    assert f"1 x {first.part}" in told
    assert "x linear" not in told
