"""Tiny HunyuanOCR checkpoints: rows that end, positions on four axes or three, norms behind the rotation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, norm_shapes

IMAGE, START, END = "<image>", "<img_start>", "<img_end>"
CONTROL = [PAD, BOS, EOS, IMAGE, START, END]
ANSWER_TYPE = 0
TEMPLATE = (
    f"{BOS}{{% for message in messages %}}<{{{{ message.role }}}}>{{% for part in message.content %}}"
    f"{{% if part.type == 'image' %}}{START}{IMAGE}{END}{{% else %}}{{{{ part.text }}}}{{% endif %}}{{% endfor %}}"
    "\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "four-axes-tied": _config(),
        "three-axes-untied-biases": _config(
            {
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "attention_bias": True,
                "rope_parameters": {"rope_type": "default", "rope_theta": 800.0, "mrope_section": [1, 2, 1]},
                "tie_word_embeddings": False,
            },
            {"num_attention_heads": 1, "patch_size": 8, "hidden_size": 28, "max_image_size": 40},
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    xdrope = {"type": "xdrope", "alpha": 3.0, "factor": 1.0, "rope_theta": 300.0, "xdrope_section": [2, 3, 2, 1]}
    words = {
        "model_type": "hunyuan_vl_text",
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 256 + len(CONTROL) + 2,
        "max_position_embeddings": 512,
        "rope_parameters": {**xdrope, "rope_type": "xdrope"},
        "tie_word_embeddings": True,
        **CONTROL_IDS,
        **(text or {}),
    }
    tower = {
        "model_type": "hunyuan_vl_vision",
        "hidden_size": 36,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "patch_size": 6,
        "max_image_size": 42,
        **(vision or {}),
    }
    return {
        "architectures": ["HunYuanVLForConditionalGeneration"],
        "model_type": "hunyuan_vl",
        "image_token_id": 259,
        "im_start_id": 260,
        "im_end_id": 261,
        "tie_word_embeddings": True,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, shapes_of(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    images = {
        "image_processor_type": "HunYuanVLImageProcessor",
        "size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
        "patch_size": config["vision_config"]["patch_size"],
        "temporal_patch_size": 1,
        "merge_size": 2,
        "resample": 1,  # which no code reads
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_resize": True,
        **RESCALING,
    }
    save_processor(folder, "HunYuanVLProcessor", images)
    names = {"image_token": IMAGE, "image_start_token": START, "image_end_token": END}
    save_byte_tokenizer(
        folder, CONTROL, begins_with=BOS, pad_token=PAD, eos_token=EOS, bos_token=BOS, extra_special_tokens=names
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def model(folder: Path) -> Any:
    """Return transformers' model with heads turned as the authors' own code and vLLM turn them.

    That of transformers 5.23 splits all numbers of a head into as many stretches as there are axes, so that the two of
    a pair turn by different ones; the authors split each half (`xdrope_section * 2`, of a list).
    """
    import torch
    from transformers import HunYuanVLForConditionalGeneration

    found, report = HunYuanVLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    if any(report.values()):
        raise ValueError(f"{folder} is not what the model wants: {report}")
    rotary = found.model.language_model.rotary_emb

    def by_halves(freq: Any) -> Any:
        parts = [axis[number] for number, axis in enumerate(freq.split(rotary.mrope_section, dim=-1))]
        return torch.cat([*parts, *parts], dim=-1)

    rotary.recomposition_frequencies = by_halves
    return found.eval()


def shapes_of(config: Config) -> Shapes:
    """Name every weight, as transformers saves them."""
    text, vision = config["text_config"], config["vision_config"]
    prefix, head = "model.language_model.", text["head_dim"]
    shapes = decoder_shapes({**text, "model_type": "llama"}, prefix)
    for number in range(text["num_hidden_layers"]):
        shapes |= {f"{prefix}layers.{number}.self_attn.{name}_layernorm.weight": (head,) for name in ("query", "key")}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    return shapes | _tower_shapes(vision, text["hidden_size"], "model.vision_tower.")


def _tower_shapes(vision: Config, out: int, prefix: str) -> Shapes:
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    shapes: Shapes = {
        f"{prefix}embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{prefix}embeddings.patch_embedding.bias": (width,),
        f"{prefix}embeddings.position_embedding.weight": ((vision["max_image_size"] // patch) ** 2 + 1, width),
    }
    for number in range(vision["num_hidden_layers"]):
        layer = f"{prefix}layers.{number}."
        shapes |= norm_shapes(width, f"{layer}layer_norm1", f"{layer}layer_norm2")
        for name in "qkvo":
            shapes |= linear_shapes(f"{layer}self_attn.{name}_proj", width, width)
        shapes |= linear_shapes(f"{layer}mlp.fc1", inner, width) | linear_shapes(f"{layer}mlp.fc2", width, inner)
    merger = f"{prefix}patch_merger."
    shapes |= {f"{merger}before_rms.weight": (width,), f"{merger}after_rms.weight": (out,)}
    shapes |= {f"{merger}proj_conv.weight": (2 * width, width, 2, 2), f"{merger}proj_conv.bias": (2 * width,)}
    shapes |= {f"{merger}proj_out.weight": (4 * width, 2 * width, 1, 1), f"{merger}proj_out.bias": (4 * width,)}
    shapes |= {f"{merger}image_{name}": (out,) for name in ("begin", "end", "sep")}
    return shapes | {f"{merger}image_newline": (4 * width,)} | linear_shapes(f"{merger}mlp", out, 4 * width)
