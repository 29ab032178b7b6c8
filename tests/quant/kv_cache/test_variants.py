"""Whole variants whose cache holds codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.cache_scales import CACHE_SCALES, load_cache_scales, save_cache_scales
from bundle.directory import Bundle, open_bundle
from bundle.errors import GoldenError, QuantizationError
from bundle.golden import canary_image
from bundle.report import read_report
from quant.planning.draft import Options, make_draft, planned_manifest
from quant.planning.profiles import weight_bytes
from quant.quality.evaluation import Evaluation
from quant.quantizer import limits_row, quantize_bundle
from runtime.cache_shape import cache_shape, within
from runtime.canary import check_canary
from runtime.decoder import TokenGraphs
from runtime.settings import RuntimeSettings
from serving.models.cards import card_of
from serving.settings import EngineSettings

ONE_THREAD = RuntimeSettings(intra_threads=1)


@dataclass(frozen=True)
class Asked:
    answer: str
    images: tuple[Image.Image, ...] = ()
    task: str = "any"

    def messages(self) -> list[dict[str, object]]:
        parts = [*({"type": "image"} for _ in self.images), {"type": "text", "text": "What is this?"}]
        return [{"role": "user", "content": parts}]

    def is_right(self, reply: str) -> bool:
        return reply == self.answer


SAMPLES = Evaluation(questions=(Asked("red", (canary_image(),)), Asked("a cat"), Asked("42")))
Make = Callable[..., Bundle]


@pytest.fixture(scope="module")
def variant(smolvlm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[tuple[str, Options], Path] = {}

    def make(weights: str, **options: str) -> Bundle:
        key = weights, Options(**options)  # type: ignore[arg-type]
        if key not in made:
            made[key] = tmp_path_factory.mktemp("variant") / "out"
            quantize_bundle(smolvlm_bundle, made[key], weights=weights, options=key[1], calibration=SAMPLES)
        return open_bundle(made[key], allow_ungated=True)

    return make


@pytest.mark.parametrize(("scheme", "share"), [("int8", 4), ("int4", 8)])
@pytest.mark.parametrize("weights", ["fp32", "int8-rtn"])
def test_a_variant_tells_its_cache_and_every_reader_counts_its_bytes(
    smolvlm_bundle: Path, variant: Make, weights: str, scheme: str, share: int
) -> None:
    parent, made = open_bundle(smolvlm_bundle).manifest, variant(weights, kv_cache=scheme)
    manifest, kept = made.manifest, read_report(made).kv_cache
    per_token = parent.state_bytes_per_token // share
    assert (manifest.cache_scheme, manifest.state_bytes_per_token) == (scheme, per_token)
    assert manifest.name == f"{parent.name}-{weights}-kv-{scheme}"
    assert (kept.scheme, kept.bytes_per_token, kept.fp32_bytes_per_token) == (scheme, per_token, per_token * share)
    assert all(profile.kv_bytes_per_token == per_token for profile in read_report(made).profiles)
    shape = within(cache_shape(manifest, 4, 512), 100 * per_token, 0, "cpu")
    assert (shape.bytes_per_token, shape.budget_rows) == (per_token, 100)
    assert card_of(manifest, EngineSettings()).kv_cache == scheme
    assert manifest.is_gated is False


@pytest.mark.parametrize(("weights", "options"), [("fp32", {}), ("int8-rtn", {}), ("int4-rtn", {"profile": "dual"})])
def test_the_recorded_run_holds_graphs_and_scales_together(variant: Make, weights: str, options: dict) -> None:
    made = variant(weights, kv_cache="int8", **options)
    graphs = TokenGraphs(made, ONE_THREAD)
    check_canary(made, graphs.sessions)
    assert len(graphs.cache_scales) == len(made.manifest.states)
    path = made.path(CACHE_SCALES)
    kept = path.read_bytes()
    try:
        spread = {name: np.geomspace(1e-4, 1e4, array.shape[1]) for name, array in graphs.cache_scales.items()}
        save_cache_scales(
            made.directory, {name: np.float32(array * spread[name]) for name, array in graphs.cache_scales.items()}
        )
        with pytest.raises(GoldenError):
            check_canary(made, graphs.sessions)
    finally:
        path.write_bytes(kept)


def test_graphs_and_file_hold_the_same_scales(variant: Make) -> None:
    from graphs.store import open_graph

    made = variant("int4-rtn", kv_cache="int8", profile="dual")
    scales = load_cache_scales(made.path(CACHE_SCALES), made.manifest.states)
    for name in ("decoder", "decoder_prefill"):
        held = open_graph(made.graph_path(name)).graph.initializers
        for state, wanted in scales.items():
            np.testing.assert_array_equal(held[f"{state}.scale"].const_value.numpy(), wanted.ravel())


def test_what_lowering_adds_is_counted_before_anything_is_written(smolvlm_bundle: Path, variant: Make) -> None:
    parent = open_bundle(smolvlm_bundle)
    for weights in ("fp32", "int8-rtn", "int4-rtn"):
        asked = Options(kv_cache="int8")
        draft = make_draft(parent, weights, asked, lambda line: None)
        counted = weight_bytes(draft.plans, planned_manifest(parent.manifest, asked))
        written = variant(weights, kv_cache="int8").manifest.weight_bytes
        assert written <= counted <= written + 0.05 * counted + 8192


def test_codes_are_held_to_the_row_of_weights_of_their_bits_or_to_a_wider_one(smolvlm_bundle: Path) -> None:
    def row(weights: str, kv_cache: str) -> str:
        options = Options(kv_cache=kv_cache)
        return limits_row(make_draft(open_bundle(smolvlm_bundle), weights, options, lambda line: None))

    assert [row("fp32", "int8"), row("int8", "int8"), row("fp32", "int4"), row("int8", "int4")] == [
        "int8",
        "int8",
        "int4",
        "int4",
    ]
    assert (row("int4-rtn", "int8"), row("int2", "int8")) == ("int4-rtn", "int2")


def test_a_variant_over_codes_is_not_quantized_again(variant: Make, tmp_path: Path) -> None:
    folder = variant("fp32", kv_cache="int8").directory
    with pytest.raises(QuantizationError, match=r"quantized already .its cache is int8"):
        quantize_bundle(folder, tmp_path / "again", weights="int8-rtn")


def test_codes_want_samples_and_something_must_change(smolvlm_bundle: Path, clip_bundle: Path, tmp_path: Path) -> None:
    refused = {
        "--kv-cache int8: fitted to real inputs, and calibration is missing": (smolvlm_bundle, "fp32", "int8"),
        "--weights fp32 changes nothing; name one of .*, or --kv-cache int8": (smolvlm_bundle, "fp32", None),
        "--kv-cache int8: .* has no decoder, so no cache": (clip_bundle, "int8-rtn", "int8"),
        "--kv-cache 'int3': known are int8, int4": (smolvlm_bundle, "fp32", "int3"),
    }
    for told, (parent, weights, scheme) in refused.items():
        with pytest.raises(QuantizationError, match=told):
            quantize_bundle(parent, tmp_path / "out", weights=weights, options=Options(kv_cache=scheme))
    assert not (tmp_path / "out").exists()


def test_scales_of_texts_alone_are_told(smolvlm_bundle: Path, tmp_path: Path) -> None:
    told: list[str] = []
    texts = Evaluation(questions=(Asked("a cat"), Asked("42")), source="texts.jsonl")
    quantize_bundle(
        smolvlm_bundle,
        tmp_path / "out",
        weights="fp32",
        options=Options(kv_cache="int8"),
        calibration=texts,
        progress=told.append,
    )
    assert "cache: no sample of texts.jsonl has an image; its scales are fitted to text alone" in told
    assert "cache: int8, scales fitted on 2 runs" in told
