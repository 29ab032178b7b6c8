"""Tiny Mistral 3 checkpoints: Pixtral's tower before Ministral 3's decoder, and before Mistral's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from checkpoints import (
    BOS,
    CLIP_MEAN,
    CLIP_STD,
    CONTROL_IDS,
    EOS,
    PAD,
    RESCALING,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from weight_shapes import Config, Shapes, decoder_shapes, merged_projector_shapes, pixtral_shapes

IMAGE, BREAK, END = "[IMG]", "[IMG_BREAK]", "[IMG_END]"
CONTROL = [PAD, BOS, EOS, IMAGE, BREAK, END]
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}[IMG]{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}[/{{ message.role }}]{% endfor %}"
)
YARN = {
    "type": "yarn",
    "rope_type": "yarn",
    "rope_theta": 50_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 24,  # shorter than prompts, so that queries grow within one
    "beta_fast": 4.0,
    "beta_slow": 0.5,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.2,
}


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "ministral-tied-three-heads": _config(),
        "mistral-untied-biases-a-layer-unread": _config(
            {
                "model_type": "mistral",
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "sliding_window": 21,
                "rope_parameters": {"rope_type": "default", "rope_theta": 800.0},
            },
            {"num_attention_heads": 1, "patch_size": 8, "hidden_size": 28, "hidden_act": "gelu"},
            spatial_merge_size=1,
            vision_feature_layer=-2,
            multimodal_projector_bias=True,
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    words = {
        "model_type": "ministral3",
        "hidden_size": 72,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 256 + len(CONTROL) + 2,
        "max_position_embeddings": 512,
        "rope_parameters": YARN,
        **CONTROL_IDS,
        **(text or {}),
    }
    tower = {
        "model_type": "pixtral",
        "hidden_size": 36,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "patch_size": 6,
        "image_size": 60,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "axial", "rope_theta": 50.0},
        **(vision or {}),
    }
    return {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "model_type": "mistral3",
        "image_token_index": 259,
        "spatial_merge_size": 2,
        "tie_word_embeddings": True,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    patch_px = config["vision_config"]["patch_size"]
    save_processor(
        folder,
        "PixtralProcessor",
        _images(patch_px),
        patch_size=patch_px,
        spatial_merge_size=config["spatial_merge_size"],
        image_token=IMAGE,
        image_break_token=BREAK,
        image_end_token=END,
    )
    save_byte_tokenizer(folder, CONTROL, begins_with=BOS, pad_token=PAD, eos_token=EOS, bos_token=BOS)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _images(patch_px: int) -> Config:
    """Return the settings of an image processor."""
    return {
        "image_processor_type": "PixtralImageProcessor",
        "size": {"longest_edge": 68},
        "patch_size": {"height": patch_px, "width": patch_px},
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_resize": True,
        **RESCALING,
    }


def processor(folder: Path) -> Any:
    """Return transformers' processor on Pillow; its file asks for torchvision, of which it needs nothing then."""
    from transformers import AutoTokenizer, PixtralImageProcessorPil

    stated = json.loads((folder / "processor_config.json").read_text())
    sizes = {name: stated[name] for name in ("patch_size", "spatial_merge_size")}
    images, tokenizer = PixtralImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return _processor_class()(images, tokenizer, chat_template=TEMPLATE, **sizes)


def _processor_class() -> Any:
    from transformers.utils import import_utils

    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")
    functional = ModuleType("functional")
    stand_ins = {name: ModuleType(name) for name in names} | {"torchvision.transforms.v2.functional": functional}
    vars(stand_ins[names[-1]])["functional"] = functional
    import_utils.is_torchvision_available()  # before a stand-in is there
    with patch.dict(sys.modules, stand_ins):
        from transformers.models.pixtral.processing_pixtral import PixtralProcessor
    return PixtralProcessor


def _shapes(config: Config) -> Shapes:
    """Name every weight, as transformers saves them."""
    text, vision = config["text_config"], config["vision_config"]
    shapes = decoder_shapes({**text, "model_type": "llama"}, "language_model.model.")
    if not config["tie_word_embeddings"]:
        shapes["language_model.lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    shapes |= pixtral_shapes(vision, "vision_tower.")
    return shapes | merged_projector_shapes(config, "multi_modal_projector.")
