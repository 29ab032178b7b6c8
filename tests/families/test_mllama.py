"""Llama 3.2 Vision's ways with images, against transformers' own; and what a config or a request must not say."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from bundle.errors import ContextLengthError, ParameterError, PromptError, UnsupportedConfigError
from bundle.image import PREPROCESSOR, Area, Canvas, ImageSpec, TileLayout
from bundle.layouts.mllama import MllamaPrompt
from bundle.layouts.prompt import Span
from bundle.prompt import Placeholder, PromptBuilder, Turn
from bundle.reduced_prompt import reduced
from export.architectures import load_family
from export.image_processor import read_image_spec
from quant.visual_tokens.offered import offered_methods
from serving.engine.sampling.state import SamplingState
from serving.models.reducing import Reducing
from serving.protocol import SamplingParams, VisionReduction

QUICK = hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
LAYOUT = MllamaPrompt(
    image_token="<|image|>",
    image_token_id=9,
    tokens_per_tile=1,
    tile_px=16,
    features_per_tile=3,
    most_tiles=4,
    most_images=5,
)


@QUICK
@given(width_px=st.integers(1, 400), height_px=st.integers(1, 400), tile_px=st.sampled_from([16, 20]), most=st.just(4))
def test_an_image_of_any_size_is_laid_into_the_processors_grid(
    width_px: int, height_px: int, tile_px: int, most: int
) -> None:
    from transformers.models.mllama import image_processing_pil_mllama as reference

    height, width = reference.get_optimal_tiled_canvas(height_px, width_px, most, tile_px)
    canvas = Canvas(tile_px=tile_px, most_tiles=most)
    assert canvas.layout(width_px, height_px).whole_px == (height, width)
    fitted = reference.get_image_size_fit_to_canvas(height_px, width_px, height, width, tile_px)
    assert canvas._fitted(width_px, height_px, width, height) == fitted[::-1]


def test_pixels_are_the_processors_tile_by_tile(sample_of: Any, conversations: dict[str, Any]) -> None:
    sample = sample_of("mllama", 0)
    _, tall, _, large, _ = conversations["two images"]
    spec = ImageSpec.read(sample.bundle().path(PREPROCESSOR))
    for image in (tall, large, tall.resize((5, 3))):
        found = sample.processor.image_processor([image], return_tensors="np")["pixel_values"][0, 0]
        (whole,) = spec.preprocess([image]).pixel_values
        rows, cols = whole.shape[1] // 16, whole.shape[2] // 16
        tiles = whole.reshape(3, rows, 16, cols, 16).transpose(1, 3, 0, 2, 4).reshape(-1, 3, 16, 16)
        np.testing.assert_allclose(tiles, found[: len(tiles)], atol=1e-6)
        assert not found[len(tiles) :].any()


@QUICK
@given(data=st.data(), num_tokens=st.integers(5, 20))
def test_tokens_see_what_transformers_mask_lets_them_see(data: st.DataObject, num_tokens: int) -> None:
    from transformers.models.mllama import processing_mllama as reference

    places = sorted(data.draw(st.sets(st.integers(0, num_tokens - 1), min_size=1, max_size=5)))
    grids = data.draw(st.lists(st.sampled_from([(1, 1), (1, 3), (2, 2)]), min_size=len(places), max_size=len(places)))
    layouts = [TileLayout(whole_px=(rows * 16, cols * 16)) for rows, cols in grids]
    spans = [Span(place, place + 1, image, 0) for image, place in enumerate(places)]
    memory = LAYOUT.memory(num_tokens, spans, layouts)
    assert memory is not None
    ids = np.full(num_tokens, 1)
    ids[places] = 9
    tokens = reference.get_cross_attention_token_mask(ids.tolist(), 9)
    num_tiles = [rows * cols for rows, cols in grids]
    mask = reference.convert_sparse_cross_attention_mask_to_dense([tokens], [num_tiles], 4, num_tokens)[0]
    of_rows = np.repeat(mask, 3, axis=2).reshape(num_tokens, -1)  # [T, images * tiles * rows]
    order = np.concatenate([np.arange(start, end) + image * 12 for image, start, end in memory.pieces])
    assert sorted(order) == list(range(memory.num_rows))
    has_image = of_rows.any(axis=1)
    expected = np.where(has_image[:, None], of_rows, 1)[:, order]
    row = np.arange(memory.num_rows)
    first, end, flag = memory.seen.T
    np.testing.assert_array_equal((row >= first[:, None]) & (row < end[:, None]), expected.astype(bool))
    np.testing.assert_array_equal(flag, has_image)


def test_more_images_than_the_memory_holds_are_refused_before_any_is_encoded(sample_of: Any) -> None:
    builder = PromptBuilder.from_bundle(sample_of("mllama", 0).bundle())
    turn, layout = Turn("user", (*[Placeholder.IMAGE] * 3, "x")), TileLayout(whole_px=(16, 16))
    with pytest.raises(ContextLengthError, match=r"hold 3 images.*room for 2"):
        builder.build([turn], [layout] * 3)
    assert builder.build([Turn("user", (*[Placeholder.IMAGE] * 2, "x"))], [layout] * 2).num_image_tokens == 2


def test_no_tokens_of_an_image_are_left_out_for_it_has_one(sample_of: Any) -> None:
    bundle = sample_of("mllama", 0).bundle()
    builder, manifest = PromptBuilder.from_bundle(bundle), bundle.manifest
    assert offered_methods(manifest) == ()
    assert manifest.image_prompt is not None

    whole = VisionReduction("random", 1.0)
    reducing = Reducing(manifest, manifest.image_prompt, builder.tokenizer, lambda ids: ids, whole)
    assert reducing.of(whole) is None
    with pytest.raises(ParameterError, match=r"vision.method 'random'.*one for an image"):
        reducing.of(VisionReduction("random", 0.5))
    prompt = builder.build([Turn("user", (Placeholder.IMAGE,))], [TileLayout(whole_px=(16, 16))])
    with pytest.raises(PromptError, match="stand in a memory"):
        reduced(prompt, [np.zeros(0, np.int64)])


def test_a_penalty_for_repetition_passes_over_tokens_that_have_no_score() -> None:
    state = SamplingState(SamplingParams(temperature=0.0, repetition_penalty=2.0), [1, 5, 1])
    scores = np.array([0.5, 0.9, 0.6, 0.1], np.float32)
    state.change(scores)
    np.testing.assert_allclose(scores, [0.5, 0.45, 0.6, 0.1])


def config_of(families: dict[str, ModuleType], part: str, **settings: Any) -> dict[str, Any]:
    config: dict[str, Any] = copy.deepcopy(families["mllama"].config())
    config[part].update(settings)
    return config


@pytest.mark.parametrize(
    ("part", "settings", "named"),
    [
        ("text_config", {"cross_attention_layers": []}, r"cross_attention_layers \[\]"),
        ("text_config", {"cross_attention_layers": [4]}, "layers 0 to 3"),
        ("text_config", {"cross_attention_layers": [0, 1, 2, 3]}, "not all of them"),
        ("text_config", {"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ("vision_config", {"vision_output_dim": 48}, "vision_output_dim is 48; only 72"),
        ("vision_config", {"supported_aspect_ratios": [[2, 2], [1, 1]]}, r"supported_aspect_ratios \[\[2, 2\]"),
        ("vision_config", {"intermediate_layers_indices": [0, 3]}, r"intermediate_layers_indices \[0, 3\]"),
    ],
)
def test_a_config_that_is_not_built_is_refused_by_its_key(
    families: dict[str, ModuleType], part: str, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedConfigError, match=named):
        _ = load_family(config_of(families, part, **settings)).vocab_size


def test_a_processor_of_other_tiles_is_refused(families: dict[str, ModuleType]) -> None:
    family = load_family(config_of(families, "text_config"))
    named = {"image_processor_type": "MllamaImageProcessor", "size": {"height": 16, "width": 16}}
    family.check_images(read_image_spec(named, "x"))
    others: list[Any] = [Area(step_px=8, least_px=64, most_px=6400), Canvas(tile_px=16, most_tiles=3)]
    for geometry in others:
        spec = read_image_spec(named, "x").model_copy(update={"geometry": geometry})
        with pytest.raises(UnsupportedConfigError, match="size and max_image_tiles"):
            family.check_images(spec)
    with pytest.raises(UnsupportedConfigError, match="do_pad is false"):
        read_image_spec({**named, "do_pad": False}, "x")
    with pytest.raises(UnsupportedConfigError, match="equal height and width"):
        read_image_spec({**named, "size": {"height": 16, "width": 20}}, "x")


def test_a_frame_is_one_tile() -> None:
    frames = Canvas(tile_px=16, most_tiles=4).for_frames
    assert frames.has_one_size
    assert [tile.size for tile in frames.tiles(Image.new("RGB", (70, 20)), Image.Resampling.BILINEAR)] == [(16, 16)]
