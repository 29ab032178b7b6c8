"""Tiny POINTS1.5 checkpoints: Qwen2-VL's tower, whose own merger is passed by, before a Qwen2 on one axis."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from checkpoints import BOS, CONTROL_IDS, PAD, save_byte_tokenizer, save_model
from family_qwen2_5_vl import END as IMAGE_END
from family_qwen2_5_vl import IMAGE, START, VIDEO, save_beside_weights, still_processor
from family_qwen2_vl import _config as qwen2_config
from family_qwen2_vl import _shapes as qwen2_shapes
from weight_shapes import Config, Shapes

END = "<|im_end|>"
IMAGE_ID = 259
PLACES = (
    (r"^visual\.merger\.", "vision_projector."),
    (r"^visual\.", "vision_encoder."),
    (r"^model\.", "llm.model."),
    (r"^lm_head\.", "llm.lm_head."),
)


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "three-heads-tied": _config({"intermediate_size": 88}, {}),
        "untied-tower-of-another-width": _config(
            {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 64, "rope_theta": 300.0},
            {"embed_dim": 24, "num_heads": 1, "mlp_ratio": 3, "depth": 2, "patch_size": 8},
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config, vision: Config, **top: Any) -> Config:
    whole = qwen2_config(text, vision, **top)
    words = {key: value for key, value in whole["text_config"].items() if key != "rope_parameters"}
    words |= {"model_type": "qwen2", "rope_theta": text.get("rope_theta", 900.0)}
    words["tie_word_embeddings"] = whole["tie_word_embeddings"]
    return {
        "architectures": ["POINTSV15ChatModel"],
        "model_type": "pointsv1.5_chat",
        "llm_config": words,
        "vision_config": whole["vision_config"],
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, by the authors' names; the tower's own merger as well."""
    shapes: Shapes = {}
    for name, shape in qwen2_shapes(_of_qwen(config)).items():
        renamed = name
        for pattern, place in PLACES:
            if re.match(pattern, name):
                renamed = re.sub(pattern, place, name)
                break
        shapes[renamed] = shape
    passed_by = {name.replace("vision_projector.", "vision_encoder.merger."): shape for name, shape in shapes.items()}
    save_model(folder, config, shapes | passed_by)
    save_beside_weights(folder, config, "Qwen2VLProcessor")
    control = [PAD, BOS, END, IMAGE, VIDEO, START, IMAGE_END]
    save_byte_tokenizer(folder, control, pad_token=PAD, eos_token=END)


def _of_qwen(config: Config) -> Config:
    """Return the same sizes as a Qwen2-VL's config."""
    text = config["llm_config"]
    rope = {"rope_type": "default", "rope_theta": text["rope_theta"], "mrope_section": [2, 3, 3]}
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "image_token_id": IMAGE_ID,
        "video_token_id": 260,
        "vision_start_token_id": 261,
        "vision_end_token_id": 262,
        "tie_word_embeddings": text["tie_word_embeddings"],
        "text_config": {**text, "model_type": "qwen2_vl_text", "rope_parameters": rope},
        "vision_config": {**config["vision_config"], "hidden_size": text["hidden_size"]},
        **CONTROL_IDS,
    }


def model(folder: Path) -> Any:
    """Return transformers' Qwen2-VL of these weights, all of whose tokens stand at one number on every axis.

    Turned by three equal numbers, its decoder is Qwen2.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = json.loads((folder / "config.json").read_text())
    found = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**_of_qwen(config))).eval()
    places = (
        ("vision_projector.", "model.visual.merger."),
        ("vision_encoder.", "model.visual."),
        ("llm.model.", "model.language_model."),
        ("llm.lm_head.", "lm_head."),
    )
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.startswith("vision_encoder.merger."):
            prefix, place = next(each for each in places if name.startswith(each[0]))
            weights[place + name[len(prefix) :]] = tensor
    if config["llm_config"]["tie_word_embeddings"]:
        weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    found.load_state_dict(weights)

    def run(input_ids: Any, pixel_values: Any = None, image_grid_thw: Any = None, **_: Any) -> Any:
        embeds = found.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            features = torch.cat(found.model.get_image_features(pixel_values, image_grid_thw).pooler_output)
            shown = (input_ids[0] == IMAGE_ID).nonzero()[: len(features), 0]  # an answer may say the token as well
            embeds[0, shown] = features
        return found(inputs_embeds=embeds, position_ids=torch.arange(input_ids.shape[1]).expand(3, 1, -1))

    return run


def processor(folder: Path) -> Any:
    """Return Qwen2-VL's processor, which the authors' code calls for images, with the words that it writes."""
    from transformers import Qwen2VLProcessor

    made = still_processor(Qwen2VLProcessor, folder)
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>\n{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made
