"""Configs of Gemma 2, Gemma 3 and PaliGemma that ask for what is not built are refused by name and value."""

from __future__ import annotations

from typing import Any

import pytest

from bundle.errors import UnsupportedConfigError
from export.architectures import load_family
from export.decoders.decoder import Decoder
from export.decoders.table import load_decoder
from export.vision_language import VisionLanguage

TOWER = {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 4, "hidden_size": 24}
SIZES = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 3}


def config(model_type: str, text: dict[str, Any], **top: Any) -> dict[str, Any]:
    return {"model_type": model_type, "vision_config": TOWER, "text_config": {**SIZES, **text}, **top}


def decoder_of(raw: dict[str, Any]) -> Decoder:
    family = load_family(raw)
    assert isinstance(family, VisionLanguage)
    return family.decoder


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (config("gemma3", {"use_bidirectional_attention": True}), "texts that see what comes behind them"),
        (config("gemma3", {"attn_logit_softcapping": 50.0}), r"attn_logit_softcapping 50\.0: Gemma 3 has none"),
        (config("gemma3", {"final_logit_softcapping": 30.0}), r"final_logit_softcapping 30\.0: Gemma 3 has none"),
        (config("gemma3", {"layer_types": ["full_attention"] * 2}), "lists 2 layers .* each of the 3 layers"),
        (config("gemma3", {"layer_types": ["chunked_attention"] * 3}), "kinds chunked_attention; built are"),
        (config("gemma3", {"sliding_window": 0}), "sliding_window 0: layers of kind sliding_attention need"),
        (
            config("gemma3", {"rope_scaling": {"rope_type": "longrope", "factor": 2}}),
            "built are .* of type default, linear",
        ),
        (config("gemma3", {}, mm_tokens_per_image=15), "mm_tokens_per_image 15: built are squares"),
        (config("gemma3", {}, mm_tokens_per_image=9), "mm_tokens_per_image 9: .* divide the 8 patches"),
        (config("paligemma", {}, projection_dim=40), "projection_dim 40, but the decoder is 48 wide"),
        (config("paligemma", {"use_bidirectional_attention": False}), "PaliGemma's prompts see all of themselves"),
        (
            config("llava", {"model_type": "gemma2"}),
            r"final_logit_softcapping 30\.0: transformers' llava leaves logits",
        ),
    ],
)
def test_what_is_not_built_is_named(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=said):
        decoder_of({"projection_dim": 48, "mm_tokens_per_image": 16, **raw})


def test_layers_that_the_config_does_not_list_see_everything_every_so_often() -> None:
    def windows(model_type: str, **text: Any) -> list[int | None]:
        decoder = load_decoder({"model_type": model_type, **SIZES, "num_hidden_layers": 6, **text})
        return [decoder.window_of(number) for number in range(6)]

    assert windows("gemma2", sliding_window=64) == [64, None] * 3
    assert windows("gemma3_text", sliding_window=64) == [64] * 5 + [None]
    assert windows("gemma3_text", sliding_window=64, sliding_window_pattern=3) == [64, 64, None] * 2
    assert windows("gemma2", sliding_window=64, max_position_embeddings=64) == [None] * 6
