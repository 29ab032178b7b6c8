"""Tiny Granite Docling 500M checkpoints: features of earlier layers, squares with places, factors of a Granite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import (
    CONTROL,
    CONTROL_IDS,
    MARKERS,
    NAMED,
    RESCALING,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from family_docling_258m import MARKUP, PLACES, ROLES, TEMPLATE
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, norm_shapes, tower_shapes

SPECIALS = [*CONTROL, *MARKERS, *ROLES, *MARKUP, *PLACES]


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "two-deep-layers-tied-fine-way-beside": _config(),
        "one-deep-layer-untied-factor-2-one-tile": _config(
            {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "embedding_multiplier": 3.0},
            {"scale_factor": 2, "deepstack_visual_indexes": [0], "use_fine_route": False, "image_size": 24},
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    words = {
        "model_type": "granite_docling_text",
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "vocab_size": 256 + len(SPECIALS),
        "max_position_embeddings": 512,
        "embedding_multiplier": 0.5,
        "logits_scaling": 1.5,
        "residual_multiplier": 0.9,
        "attention_multiplier": 0.2,
        "tie_word_embeddings": top.get("tie_word_embeddings", True),
        **CONTROL_IDS,
        **(text or {}),
    }
    tower = {
        "model_type": "granite_docling_vision",
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
        "scale_factor": 4,
        "out_hidden_size": words["hidden_size"],
        "deepstack_visual_indexes": [2, 0],
        **(vision or {}),
    }
    return {
        "architectures": ["GraniteDoclingForConditionalGeneration"],
        "model_type": "granite_docling",
        "image_token_id": 260,
        "tie_word_embeddings": True,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    vision = config["vision_config"]
    images = {
        "image_processor_type": "GraniteDoclingImageProcessor",
        "size": {"height": vision["image_size"], "width": vision["image_size"]},
        "crop_to_patches": vision.get("use_fine_route", True),
        "max_patches": 6,
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_resize": True,
        **RESCALING,
    }
    num_tokens = (vision["image_size"] // vision["patch_size"] // vision["scale_factor"]) ** 2
    save_processor(folder, "GraniteDoclingProcessor", images, image_seq_len=num_tokens)
    save_byte_tokenizer(folder, SPECIALS, extra_special_tokens=SPECIALS[3:], **NAMED)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _shapes(config: Config) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    shapes = decoder_shapes({**text, "model_type": "llama"}, "model.text_model.")
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    shapes |= tower_shapes({**vision, "model_type": "idefics3_vision"}, "model.vision_model.")
    width, out, connector = vision["hidden_size"], vision["out_hidden_size"], "model.vision_model.connector."
    shapes |= norm_shapes(width, f"{connector}ln_in") | norm_shapes(out, f"{connector}ln_mid", f"{connector}ln_out")
    shapes[f"{connector}mlp_fc2.weight"] = (out, out)
    factors = {"coarse": vision["scale_factor"]}
    factors |= {"fine": vision["scale_factor"] // 2} if vision.get("use_fine_route", True) else {}
    for name, factor in factors.items():
        wide = width * factor**2
        shapes[f"{connector}{name}.projection.weight"] = (out, wide)
        for number in range(len(vision["deepstack_visual_indexes"])):
            merger = f"{connector}{name}.deepstack_mergers.{number}"
            shapes |= norm_shapes(wide, f"{merger}.layer_norm")
            shapes |= linear_shapes(f"{merger}.linear_1", out, wide) | linear_shapes(f"{merger}.linear_2", out, out)
    return shapes
