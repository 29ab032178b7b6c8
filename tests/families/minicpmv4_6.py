"""Tiny MiniCPM-V 4.6 checkpoints: slices of as many sizes as images have shapes, numbered; Qwen3.5's decoder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
from qwen3_shapes import as_trained, gated_decoder_shapes
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes, tower_shapes

IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
NAMED = {
    "image_token": IMAGE,
    "video_token": VIDEO,
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}
CONTROL = [PAD, BOS, EOS, *NAMED.values()]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|image_pad|>\n{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "merged-behind-the-first-layer-untied": config(),
        "patches-stay-tied-numbers-left-out": config(
            {
                "linear_num_value_heads": 2,
                "num_hidden_layers": 2,
                "layer_types": ["full_attention", "linear_attention"],
            },
            {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2},
            downsample_mode="4x",
            tie_word_embeddings=True,
        ),
    }


def config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    """Return a tiny config; arguments override its parts."""
    words = {
        "model_type": "qwen3_5_text",
        "hidden_size": 48,
        "intermediate_size": 84,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 24,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_conv_kernel_dim": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 12,
        "linear_value_head_dim": 20,
        "vocab_size": 256 + len(CONTROL) + 3,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 900.0,
            "mrope_section": [2, 1, 1],
            "partial_rotary_factor": 1 / 3,
        },
        **CONTROL_IDS,
        **(text or {}),
    }
    tower = {
        "model_type": "minicpmv4_6_vision",
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 28,
        "patch_size": 4,
        **(vision or {}),
    }
    return {
        "architectures": ["MiniCPMV4_6ForConditionalGeneration"],
        "model_type": "minicpmv4_6",
        "insert_layer_id": 0,
        "image_token_id": 259,
        "video_token_id": 260,
        "tie_word_embeddings": False,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, shapes(config))
    as_trained(folder / "model.safetensors")
    write_json(folder / "generation_config.json", CONTROL_IDS)
    mode = config.get("downsample_mode", "16x")
    images = {
        "image_processor_type": "MiniCPMV4_6ImageProcessor",
        "max_slice_nums": 6 if mode == "16x" else 4,
        "scale_resolution": 64,
        "patch_size": 4,
        "slice_mode": True,
        "downsample_mode": mode,
        "use_image_id": mode == "16x",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
        "do_resize": True,
        **RESCALING,
    }
    save_processor(folder, "MiniCPMV4_6Processor", images)
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, eos_token=EOS, extra_special_tokens=NAMED)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def processor(folder: Path) -> Any:
    """Return transformers' processor on Pillow, without the part for videos, which wants torchvision."""
    from transformers import AutoTokenizer
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil
    from transformers.models.minicpmv4_6.processing_minicpmv4_6 import MiniCPMV4_6Processor
    from transformers.processing_utils import ProcessorMixin

    class StillProcessor(MiniCPMV4_6Processor):  # type: ignore[misc]
        video_processor = SimpleNamespace(slice_mode=False, downsample_mode="16x")

        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

        def __init__(self, images: Any, tokenizer: Any) -> None:
            """Take what the class takes of its parts, videos aside."""
            ProcessorMixin.__init__(self, images, tokenizer, chat_template=TEMPLATE)
            self.slice_mode, self.default_use_image_id = images.slice_mode, images.use_image_id
            for name in NAMED:
                setattr(self, name, getattr(tokenizer, name))
            self.image_token_id, self.video_token_id = tokenizer.image_token_id, tokenizer.video_token_id

    return StillProcessor(MiniCPMV4_6ImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def shapes(config: Config) -> Shapes:
    """Name every weight."""
    text, vision = config["text_config"], config["vision_config"]
    found = gated_decoder_shapes(text, "model.language_model.")
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    tower, width, inner = "model.vision_tower.", vision["hidden_size"], vision["intermediate_size"]
    found |= tower_shapes(vision, tower)
    merger = f"{tower}vit_merger."
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        found |= linear_shapes(f"{merger}self_attn.{name}", width, width)
    found |= norm_shapes(width, f"{merger}layer_norm1") | norm_shapes(4 * width, f"{merger}pre_norm")
    found |= linear_shapes(f"{merger}linear_1", 4 * inner, 4 * width)
    found |= linear_shapes(f"{merger}linear_2", width, 4 * inner)
    last = "model.merger.mlp.0."
    found |= norm_shapes(4 * width, f"{last}pre_norm") | linear_shapes(f"{last}linear_1", 4 * width, 4 * width)
    return found | linear_shapes(f"{last}linear_2", text["hidden_size"], 4 * width)
