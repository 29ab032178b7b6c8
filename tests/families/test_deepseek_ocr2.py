"""DeepSeek-OCR 2: pixels as transformers', marks of boxes in questions and answers, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, PaddedWithTiles
from bundle.prompt import Placeholder, PromptBuilder, Turn
from export.architectures import load_family
from export.processor import read_image_spec

SMALL = {"size": {"height": 96, "width": 96}, "tile_size": 64, "min_patches": 2, "max_patches": 6}


@pytest.mark.parametrize("size_px", [(1, 1), (64, 64), (65, 3), (64, 30), (31, 90), (300, 260), (257, 700), (3, 150)])
def test_pixels_are_transformers(size_px: tuple[int, int]) -> None:
    from transformers import DeepseekOcr2ImageProcessorPil

    reference = DeepseekOcr2ImageProcessorPil(**SMALL)
    spec = read_image_spec(reference.to_dict(), "x")
    rng = np.random.default_rng(size_px)
    image = Image.fromarray(rng.integers(0, 256, (size_px[1], size_px[0], 3), np.uint8))
    seen = reference(images=[image], return_tensors="np")
    layout, (*tiles, whole) = spec.layout(*image.size), spec.cut(image)
    assert layout.rows * layout.cols == len(tiles) == seen["num_local_patches"][0]
    np.testing.assert_array_equal(spec.pixels([whole]), seen["pixel_values"])
    if tiles:
        np.testing.assert_array_equal(spec.pixels(tiles), seen["pixel_values_local"])


def test_settings_that_are_left_out_have_transformers_defaults() -> None:
    from transformers import DeepseekOcr2ImageProcessorPil

    found = read_image_spec({"image_processor_type": "DeepseekOcr2ImageProcessor"}, "x")
    assert found == read_image_spec(DeepseekOcr2ImageProcessorPil().to_dict(), "x")
    assert isinstance(found, ImageSpec)
    assert found.geometry == PaddedWithTiles(
        whole_px=1024, tile_px=768, least_tiles=2, most_tiles=6, colour=(127, 127, 127)
    )


def test_questions_ask_for_boxes_and_answers_tell_them(sample_of: Any) -> None:
    builder = PromptBuilder.from_bundle(sample_of("deepseek_ocr2", 0).bundle())
    text, marked = "<|grounding|>Read it.", "<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|><td>b</td>"
    spec = sample_of("deepseek_ocr2", 0).bundle().manifest.image_prompt
    assert spec is not None
    layout = PaddedWithTiles(whole_px=448, tile_px=312, least_tiles=2, most_tiles=6, colour=(0, 0, 0)).layout(40, 30)
    ids = builder.build([Turn("user", (Placeholder.IMAGE, text))], [layout]).token_ids.tolist()
    assert ids[-9] == builder.tokenizer.encode("<|grounding|>")[0] == 260
    assert ids.count(259) == 257  # 16 x 16 queries, and the row behind them
    assert builder.tokenizer.decode(builder.tokenizer.encode(marked)) == marked


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("text_config", {"kv_lora_rank": 512}, "kv_lora_rank 512"),
        ("text_config", {"norm_topk_prob": True}, "norm_topk_prob"),
        (
            "text_config",
            {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3},
            "3 of 8 groups",
        ),
        ("text_config", {"mlp_layer_types": ["sparse"]}, "mlp_layer_types"),
        ("text_config", {"num_experts_per_tok": None}, "num_experts_per_tok"),
        ("text_config", {"n_shared_experts": 0}, "n_shared_experts"),
        ("text_config", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("sam_config", {"use_rel_pos": False}, "use_rel_pos"),
        ("sam_config", {"downsample_channels": [4, 8, 16]}, "downsample_channels"),
        ("sam_config", {"downsample_channels": [4, 8]}, "encoder_config.hidden_size 32"),
        ("encoder_config", {"use_sliding_window": True}, "use_sliding_window"),
    ],
)
def test_what_is_not_built_is_refused_by_name(sample_of: Any, part: str, change: dict[str, Any], words: str) -> None:
    config = copy.deepcopy(next(iter(sample_of("deepseek_ocr2", 0).family.geometries().values())))
    within = config if part == "text_config" else config["vision_config"]
    within[part].update(change)
    with pytest.raises(UnsupportedConfigError, match=words):
        load_family(config).decoder  # type: ignore[attr-defined]  # noqa: B018


def test_images_that_are_never_cut_are_refused() -> None:
    with pytest.raises(UnsupportedConfigError, match="crop_to_patches"):
        read_image_spec({"image_processor_type": "DeepseekOcr2ImageProcessor", "crop_to_patches": False}, "x")
