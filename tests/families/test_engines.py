"""Engines of families whose graphs have what TensorRT's operators lack, built on a CPU by TensorRT-RTX. None is run.

One family of each kind: images of any shape beside states of fixed size (lfm2_vl), keys wider than values (got_ocr2),
groups of a video's frames (qwen3_vl), capped scores (llava_gemma2). docs/tensorrt.md says what became of the others.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from bundle.directory import open_bundle
from bundle.errors import ImageError, SettingsError
from export.exporter import export_checkpoint
from graphs.lowering.tensorrt import engine_graph, unread_inputs
from runtime.tensorrt.bounds import EngineBounds
from runtime.tensorrt.builder import build
from runtime.tensorrt.compiler import Form, Job, compile_bundle
from runtime.tensorrt.image_sizes import try_image_sizes
from runtime.tensorrt.library import Library, open_library
from runtime.tensorrt.network import check_network, decompose, parse
from runtime.tensorrt.profiles import Limits, profiles_of
from serving.models import vision
from serving.models.pool import PreprocessPool
from serving.settings import EngineSettings

STANDARD = Form("standard", engine_graph, unread_inputs)
LIMITS = Limits(cache_rows=32, max_batch=2, max_prompt_tokens=16, max_images=2)


@pytest.fixture
def rtx() -> Library:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux on x86-64 alone")
    return open_library("tensorrt-rtx")


@pytest.mark.parametrize("kind", ["bert", "vilt", "all_in_one"])
def test_engines_of_cross_encoders_take_texts_up_to_the_models_longest(
    rtx: Library, kind: str, rerankers: ModuleType, all_in_one: ModuleType, vilt_checkpoint: Path, tmp_path: Path
) -> None:
    """Prompts of decoders may be longer than a cross-encoder has positions for."""
    if kind == "bert":
        rerankers.save(tmp_path / "checkpoint", kind)
    if kind == "all_in_one":
        all_in_one.save(tmp_path / "checkpoint", all_in_one.geometries()["retrieval-three-frames"])
    checkpoint = vilt_checkpoint if kind == "vilt" else tmp_path / "checkpoint"
    export_checkpoint(checkpoint, tmp_path / "bundle", name="tiny", dialect="portable")
    bundle = open_bundle(tmp_path / "bundle")
    sizes = try_image_sizes(bundle, 32) if kind == "vilt" else None
    component = bundle.manifest.components["pair_encoder"]
    limits = replace(LIMITS, max_batch=4, max_prompt_tokens=512, cache_rows=1024, image_sizes_px=sizes)
    (profile,) = profiles_of(bundle.manifest, component, limits)
    longest = bundle.manifest.pairs.max_text_tokens
    assert profile["input_ids"] == ((1, 1), (1, longest), (4, longest))
    job = Job(bundle, tmp_path / "engines", "tensorrt-rtx", STANDARD, limits)
    with pytest.raises(SettingsError, match=r"--max-batch 3: .*recorded at export, which has 4"):
        compile_bundle(replace(job, limits=replace(limits, max_batch=3)), lambda line: None)
    compile_bundle(job, lambda line: None)
    assert (tmp_path / "engines" / "pair_encoder.engine").exists()


@pytest.mark.parametrize(
    ("family", "name", "is_plain"),
    [
        ("lfm2_vl", "vision_encoder", False),
        ("lfm2_vl", "vision_encoder", True),
        ("lfm2_vl", "decoder", False),
        ("got_ocr2", "vision_encoder", False),
        ("qwen3_vl", "vision_encoder", False),
        ("llava_gemma2", "decoder", False),
        ("qwen3_5", "decoder", False),
    ],
)
def test_what_the_operators_lack_is_written_otherwise_and_built(
    rtx: Library, sample_of: Any, family: str, name: str, is_plain: bool
) -> None:
    bundle = sample_of(family, 0).bundle("portable")
    component, path = bundle.manifest.components[name], bundle.graph_path(name)
    has_one_size = family in ("got_ocr2", "llava_gemma2")
    limits = Limits(32, 2, 16, 2, try_image_sizes(bundle, None if has_one_size else 64))
    write = partial(engine_graph, is_plain=is_plain)
    network = parse(rtx, write(path, bundle.manifest.always_given(name), limits.cache_rows), path)
    check_network(network, component.role, unread_inputs(path))
    decompose(network)
    engine = build(network, profiles_of(bundle.manifest, component, limits), (), lambda phase: None)
    assert len(engine) > 100_000


def test_the_sizes_of_images_reach_to_the_longest_side_that_is_asked_for(sample_of: Any) -> None:
    bundle = sample_of("lfm2_vl", 0).bundle("portable")
    component = bundle.manifest.components["vision_encoder"]
    limits = Limits(32, 2, 16, 3, try_image_sizes(bundle, 51))
    (profile,) = profiles_of(bundle.manifest, component, limits)
    assert profile["pixel_values"] == ((1, 3, 8, 8), (1, 3, 32, 32), (3, 3, 48, 48))  # steps of 8
    assert try_image_sizes(bundle) == ((8, 8), (32, 32), (64, 64))  # twice the largest square
    with pytest.raises(SettingsError, match=r"--max-image-side 7: the shortest side .* is 8 px"):
        try_image_sizes(bundle, 7)


def test_a_cross_encoders_images_have_sizes_too(vilt_checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(vilt_checkpoint, tmp_path / "bundle", dialect="portable")
    bundle = open_bundle(tmp_path / "bundle")
    (component,) = bundle.manifest.components.values()
    (profile,) = profiles_of(bundle.manifest, component, replace(LIMITS, image_sizes_px=try_image_sizes(bundle, 32)))
    assert profile["pixel_values"] == ((1, 3, 8, 8), (1, 3, 24, 24), (2, 3, 32, 32))


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("instructblip", "questions of any length.*ONNX Runtime's CPU"),
        ("mllama", "memory of images.*ONNX Runtime's CPU"),
        ("donut", "memory of images.*ONNX Runtime's CPU"),
        ("aki", "see one another.*serve the bundle on ONNX Runtime"),
    ],
)
def test_what_no_engine_can_run_is_refused_by_name_before_anything_is_built(
    rtx: Library, sample_of: Any, tmp_path: Path, family: str, message: str
) -> None:
    bundle = sample_of(family, 0).bundle("portable")
    limits = Limits(32, 2, 16, 2, try_image_sizes(bundle))
    with pytest.raises(SettingsError, match=message):
        compile_bundle(Job(bundle, tmp_path / "engines", "tensorrt-rtx", STANDARD, limits), lambda line: None)
    assert not (tmp_path / "engines").exists()


def test_an_image_beyond_the_engines_is_refused_before_others_run_with_it(
    sample_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = sample_of("lfm2_vl", 0).bundle()
    sizes = try_image_sizes(bundle, 16)
    monkeypatch.setattr(vision, "try_bounds", lambda *_: EngineBounds(tmp_path, 32, 2, 16, 2, sizes))
    settings = EngineSettings(intra_threads=1, max_sequences=1, context_tokens=64)
    files = [BytesIO(), BytesIO()]
    for file, size_px in zip(files, ((64, 64), (16, 16)), strict=True):
        Image.new("RGB", (size_px[1], size_px[0])).save(file, format="PNG")
    large, small = (file.getvalue() for file in files)
    pool = PreprocessPool(settings)
    stage = vision.VisionStage(bundle, settings, pool)
    try:
        with pytest.raises(ImageError, match=r"becomes 32 x 32 pixels, .* takes 16 x 16\. Crop it"):
            asyncio.run(stage.decode("a", large))
        assert asyncio.run(stage.decode("a", small)).layout.whole_px == (16, 16)
    finally:
        pool.close()
