"""Tiny Pixtral checkpoints in LLaVA's layout: a token a patch, rows that end, any decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import (
    BOS,
    CONTROL_IDS,
    EOS,
    PAD,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from family_mistral3 import BREAK, CONTROL, END, IMAGE, TEMPLATE, _images
from family_mistral3 import processor as processor  # the parity tests ask for it
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, pixtral_shapes


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "mistral-no-window": _config(
            {
                "model_type": "mistral",
                "hidden_size": 72,
                "intermediate_size": 96,
                "num_attention_heads": 4,
                "head_dim": 16,
                "sliding_window": None,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            },
            {"num_hidden_layers": 1, "hidden_size": 72},
        ),
        "llama-tied-no-biases-a-layer-unread": _config(
            {"model_type": "llama", "num_attention_heads": 5, "tie_word_embeddings": True},
            {},
            vision_feature_layer=-2,
            multimodal_projector_bias=False,
            tie_word_embeddings=True,
        ),
    }


def _config(text: Config, vision: Config, **top: Any) -> Config:
    words = {
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "vocab_size": 256 + len(CONTROL) + 2,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 800.0},
        "tie_word_embeddings": False,
        **CONTROL_IDS,
        **text,
    }
    tower = {
        "model_type": "pixtral",
        "hidden_size": 36,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "patch_size": 8,
        "image_size": 60,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        **vision,
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": 259,
        "image_seq_length": 1,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": False,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    patch_px = config["vision_config"]["patch_size"]
    tokens = {"image_token": IMAGE, "image_break_token": BREAK, "image_end_token": END}
    sizes = {"patch_size": patch_px, "spatial_merge_size": 1}
    save_processor(folder, "PixtralProcessor", _images(patch_px), **sizes, **tokens)
    save_byte_tokenizer(folder, CONTROL, begins_with=BOS, pad_token=PAD, eos_token=EOS, bos_token=BOS)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _shapes(config: Config) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    shapes = decoder_shapes({**text, "model_type": "llama"}, "language_model.model.")
    if not config["tie_word_embeddings"]:
        shapes["language_model.lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    shapes |= pixtral_shapes(vision, "vision_tower.")
    size, bias = text["hidden_size"], config.get("multimodal_projector_bias", True)
    shapes |= linear_shapes("multi_modal_projector.linear_1", size, vision["hidden_size"], bias=bias)
    return shapes | linear_shapes("multi_modal_projector.linear_2", size, size, bias=bias)
