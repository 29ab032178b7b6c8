"""Tiny LFM2-VL checkpoints: short convolutions beside attention, SigLIP 2 over any shape, large images in tiles."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
from checkpoints import (
    BOS,
    CONTROL_IDS,
    EOS,
    PAD,
    RESCALING,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from PIL import Image
from weight_shapes import Config, Shapes, linear_shapes, tower_shapes

IMAGE, START, END, THUMBNAIL = "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"
MARKERS = [f"<|img_row_{row}_col_{col}|>" for row in range(1, 7) for col in range(1, 7)]
CONTROL = [PAD, BOS, EOS, IMAGE, START, END, THUMBNAIL, *MARKERS]
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}assistant\n{% endif %}"
)


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "tied-three-heads-conv-first": config(),
        "untied-biases-four-taps-attention-first": config(
            {
                "hidden_size": 64,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "conv_bias": True,
                "conv_L_cache": 4,
                "layer_types": ["full_attention", "conv", "conv", "conv"],
                "block_auto_adjust_ff_dim": False,
            },
            {"hidden_size": 24, "num_attention_heads": 1, "num_patches": 81, "num_hidden_layers": 2},
            downsample_factor=3,
            projector_hidden_size=44,
            projector_use_layernorm=False,
            projector_bias=False,
            tie_word_embeddings=False,
        ),
    }


def config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    """Return a tiny config; arguments override its parts."""
    words = {
        "model_type": "lfm2",
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "layer_types": ["conv", "conv", "full_attention", "conv"],
        "block_multiple_of": 36,
        "vocab_size": 256 + len(CONTROL) + 3,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 900.0},
        **CONTROL_IDS,
        **(text or {}),
    }
    tower = {
        "model_type": "siglip2_vision_model",
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "patch_size": 4,
        "num_patches": 25,
        "vision_use_head": False,
        **(vision or {}),
    }
    return {
        "architectures": ["Lfm2VlForConditionalGeneration"],
        "model_type": "lfm2_vl",
        "image_token_id": 259,
        "downsample_factor": 2,
        "projector_hidden_size": 40,
        "tie_word_embeddings": True,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    factor = config["downsample_factor"]
    images = {
        "image_processor_type": "Lfm2VlImageProcessorFast",
        "downsample_factor": factor,
        "encoder_patch_size": config["vision_config"]["patch_size"],
        "tile_size": 16 * factor,
        "min_image_tokens": 4,
        "max_image_tokens": 16 if factor == 2 else 12,
        "min_tiles": 2,
        "max_tiles": 6,
        "max_pixels_tolerance": 2.5,
        "resample": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_resize": True,
        "return_row_col_info": True,
        **RESCALING,
    }
    save_processor(folder, "Lfm2VlProcessor", images)
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, eos_token=EOS)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def processor(folder: Path) -> Any:
    """Return transformers' processor, which scales with Pillow in the place of torchvision."""
    from transformers import AutoTokenizer, Lfm2VlProcessor

    images = _image_processor_class().from_pretrained(folder)
    return Lfm2VlProcessor(images, AutoTokenizer.from_pretrained(folder), chat_template=TEMPLATE)


def _image_processor_class() -> Any:
    """Return transformers' image processor with what it takes of torchvision done otherwise: scaling and normalising.

    It has no class on Pillow, as others have. What decides on sizes, tiles and patches is its own.
    """
    import torch
    from transformers.image_processing_backends import TorchvisionBackend
    from transformers.utils import is_torchvision_available

    is_torchvision_available()  # before a stand-in is there
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")
    functional = ModuleType("functional")
    stand_ins = {name: ModuleType(name) for name in names} | {"torchvision.transforms.v2.functional": functional}
    vars(stand_ins[names[-1]])["functional"] = functional
    with patch.dict(sys.modules, stand_ins):
        from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

    class Pillow(TorchvisionBackend):  # type: ignore[misc]
        def resize(self, image: Any, size: Any, resample: Any = None, **others: Any) -> Any:
            if image.ndim == 3:
                whole = Image.fromarray(image.permute(1, 2, 0).numpy())
                scaled = np.array(whole.resize((size.width, size.height), resample))
                return torch.from_numpy(scaled).permute(2, 0, 1)
            return torch.stack([self.resize(each, size, resample) for each in image])

        def rescale_and_normalize(
            self, images: Any, rescales: bool, factor: float, normalises: bool, mean: Any, std: Any
        ) -> Any:
            mean, std = (torch.tensor(each)[:, None, None] for each in (mean, std))
            return (images * torch.tensor(factor, dtype=torch.float64)).float().sub(mean).div(std)

    class OnPillow(Lfm2VlImageProcessor, Pillow):  # type: ignore[misc]
        """Whose calls of its base find Pillow."""

    return OnPillow


def _shapes(config: Config) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    shapes = _decoder_shapes(text, "model.language_model.")
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    tower, width, patch = "model.vision_tower.", vision["hidden_size"], vision["patch_size"]
    shapes |= tower_shapes({**vision, "image_size": patch}, tower)
    embeddings = f"{tower}embeddings."
    shapes[f"{embeddings}patch_embedding.weight"] = (width, 3 * patch**2)
    shapes[f"{embeddings}position_embedding.weight"] = (vision["num_patches"], width)
    wide, inner = width * config["downsample_factor"] ** 2, config["projector_hidden_size"]
    connector, bias = "model.multi_modal_projector", config.get("projector_bias", True)
    if config.get("projector_use_layernorm", True):
        shapes |= {f"{connector}.layer_norm.{part}": (wide,) for part in ("weight", "bias")}
    shapes |= linear_shapes(f"{connector}.linear_1", inner, wide, bias=bias)
    return shapes | linear_shapes(f"{connector}.linear_2", text["hidden_size"], inner, bias=bias)


def _decoder_shapes(text: Config, prefix: str) -> Shapes:
    width, heads = text["hidden_size"], text["num_attention_heads"]
    head, bias = width // heads, text.get("conv_bias", False)
    inner = text["intermediate_size"]
    if text.get("block_auto_adjust_ff_dim", True):
        inner, block = int(2 * inner / 3), text["block_multiple_of"]
        inner = block * ((inner + block - 1) // block)
    shapes: Shapes = {
        f"{prefix}embed_tokens.weight": (text["vocab_size"], width),
        f"{prefix}embedding_norm.weight": (width,),
    }
    for number, kind in enumerate(text["layer_types"]):
        layer = f"{prefix}layers.{number}."
        shapes |= {f"{layer}{name}_norm.weight": (width,) for name in ("operator", "ffn")}
        for name, rows, columns in (("w1", inner, width), ("w3", inner, width), ("w2", width, inner)):
            shapes |= linear_shapes(f"{layer}feed_forward.{name}", rows, columns, bias=False)
        if kind == "conv":
            shapes |= linear_shapes(f"{layer}conv.in_proj", 3 * width, width, bias=bias)
            shapes |= linear_shapes(f"{layer}conv.out_proj", width, width, bias=bias)
            shapes[f"{layer}conv.conv.weight"] = (width, 1, text.get("conv_L_cache", 3))
            shapes |= {f"{layer}conv.conv.bias": (width,)} if bias else {}
            continue
        kv = text["num_key_value_heads"] * head
        for name, rows in (("q_proj", width), ("k_proj", kv), ("v_proj", kv), ("out_proj", width)):
            shapes |= linear_shapes(f"{layer}self_attn.{name}", rows, width, bias=False)
        shapes |= {f"{layer}self_attn.{name}_layernorm.weight": (head,) for name in "qk"}
    return shapes
