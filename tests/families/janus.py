"""Tiny Janus checkpoints: padded images, SigLIP's layers under other names, matrices, a Llama; nothing that draws."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from checkpoints import (
    CONTROL_IDS,
    IMAGE_TOKEN_ID,
    NAMED,
    RESCALING,
    TEMPLATE,
    llava_config,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, tower_shapes

START, END = "<begin_of_image>", "<end_of_image>"
CONTROL = ["<|pad|>", "<|im_start|>", "<end_of_utterance>", START, "<image>", END]
DRAWING = re.compile(r"model\.(vqmodel|generation_.*)\..*")


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "tied-words-before-conversations": _config({}, {}),
        "untied-three-matrices-larger-patches": _config(
            {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": False},
            {"patch_size": 16, "hidden_size": 36, "num_attention_heads": 3, "mlp_ratio": 1.5, "depth": 3},
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config, vision: Config, **top: Any) -> Config:
    whole = llava_config("siglip", "llama")
    words = whole["text_config"] | text
    tower = {
        "model_type": "janus_vision_model",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": words["hidden_size"],
        **vision,
    }
    drawing = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "num_embeddings": 8}
    return {
        "architectures": ["JanusForConditionalGeneration"],
        "model_type": "janus",
        "image_token_id": IMAGE_TOKEN_ID,
        "text_config": words,
        "vision_config": tower,
        "vq_config": {"model_type": "janus_vqgan", **drawing, "latent_channels": 32, "projection_dim": 16},
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a checkpoint into `folder`, in float32, with few of the weights that draw."""
    save_model(folder, config, shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    side = config["vision_config"]["image_size"]
    images = {
        "image_processor_type": "JanusImageProcessor",
        "size": {"height": side, "width": side},
        "min_size": 3,
        "do_pad": True,
        "do_resize": True,
        "image_mean": [0.2, 0.5, 0.7],
        "image_std": [0.5, 0.4, 0.5],
        **RESCALING,
    }
    num_tokens = (side // config["vision_config"]["patch_size"]) ** 2
    has_words = "tie_word_embeddings" not in config
    more = {"num_image_tokens": num_tokens, "use_default_system_prompt": has_words}
    save_processor(folder, "JanusProcessor", images, **more)
    named = {"image_token": "<image>", "boi_token": START, "eoi_token": END}
    save_byte_tokenizer(folder, CONTROL, **NAMED, extra_special_tokens=named)
    (folder / "chat_template.jinja").write_text("{%- set said = 1 %}" + TEMPLATE)


def model(folder: Path) -> Any:
    """Return transformers' model; of its weights only such as draw may be missing."""
    from transformers import JanusForConditionalGeneration

    made, found = JanusForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    lacking = [name for name in found.pop("missing_keys") if not DRAWING.fullmatch(name)]
    if lacking or any(found.values()):
        raise ValueError(f"{folder} is not what Janus wants: {lacking}, {found}")
    return made.eval()


def shapes(config: Config) -> Shapes:
    """Name every weight that reads, and two that draw."""
    text, vision = config["text_config"], config["vision_config"]
    inner = int(vision["hidden_size"] * vision.get("mlp_ratio", 4.0))
    tower = tower_shapes({**vision, "intermediate_size": inner}, "model.vision_model.")
    found = decoder_shapes(text, "model.language_model.")
    found |= {name.replace(".out_proj.", ".projection_layer."): shape for name, shape in tower.items()}
    if not config.get("tie_word_embeddings", True):
        found["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    found |= linear_shapes("model.aligner.fc1", text["hidden_size"], vision["hidden_size"])
    for number in range(vision.get("depth", 2) - 1):
        found |= linear_shapes(f"model.aligner.hidden_layers.{number}", text["hidden_size"], text["hidden_size"])
    drawn = {"model.vqmodel.quantize.embedding.weight": (8, 8), "model.generation_embeddings.weight": (8, 8)}
    return found | drawn
