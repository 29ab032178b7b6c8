"""Tiny Llama 3.2 Vision checkpoints: grids of tiles, gates, and layers that attend to a memory of images."""

from __future__ import annotations

from pathlib import Path
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
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, norm_shapes

IMAGE = "<|image|>"
CONTROL = [PAD, BOS, EOS, IMAGE]
VOCAB = 256 + len(CONTROL) - 1  # the image token is the first of those that are never said
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|image|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}assistant\n{% endif %}"
)


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "three-heads-memory-first-four-tiles": config(),
        "shared-keys-neighbours-three-tiles-older-names": config(
            {
                "hidden_size": 64,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "cross_attention_layers": [1, 2],
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 600.0,
                    "factor": 4.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            },
            {
                "hidden_size": 32,
                "attention_heads": 2,
                "image_size": 20,
                "patch_size": 4,
                "max_num_tiles": 3,
                "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [2, 1], [3, 1]],
                "intermediate_layers_indices": [1],
                "vision_output_dim": 64,
            },
        ),
    }


def config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    """Return a tiny config; arguments override its parts."""
    words = {
        "model_type": "mllama_text_model",
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "cross_attention_layers": [0, 2],
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 900.0},
        **CONTROL_IDS,
        **(text or {}),
    }
    tower = {
        "model_type": "mllama_vision_model",
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_global_layers": 2,
        "attention_heads": 3,
        "image_size": 16,
        "patch_size": 4,
        "max_num_tiles": 4,
        "supported_aspect_ratios": None,
        "intermediate_layers_indices": [2, 0],
        "vision_output_dim": 72,
        **(vision or {}),
    }
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": VOCAB,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    side = config["vision_config"]["image_size"]
    images = {
        "image_processor_type": "MllamaImageProcessor",
        "size": {"height": side, "width": side},
        "max_image_tiles": config["vision_config"]["max_num_tiles"],
        "resample": 2,
        "do_pad": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
        "do_resize": True,
        **RESCALING,
    }
    save_processor(folder, "MllamaProcessor", images)
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, bos_token=BOS, eos_token=EOS)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def processor(folder: Path) -> Any:
    """Return transformers' processor."""
    from transformers import AutoTokenizer, MllamaImageProcessorPil, MllamaProcessor

    images, tokenizer = MllamaImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return MllamaProcessor(images, tokenizer, chat_template=TEMPLATE)


def _shapes(config: Config) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    is_older = len(vision["intermediate_layers_indices"]) == 1
    stack, root, head = (
        ("language_model.model.", "", "language_model.lm_head.weight")
        if is_older
        else ("model.language_model.", "model.", "lm_head.weight")
    )
    shapes = decoder_shapes({**text, "model_type": "llama"}, stack)
    width, head_size = text["hidden_size"], text["hidden_size"] // text["num_attention_heads"]
    shapes[f"{stack}embed_tokens.weight"] = (text["vocab_size"] + 8, width)
    shapes[head] = (text["vocab_size"], width)
    for layer in (f"{stack}layers.{number}." for number in text["cross_attention_layers"]):
        own = [name for name in shapes if name.startswith(f"{layer}self_attn.")]
        shapes |= {name.replace("self_attn", "cross_attn"): shapes.pop(name) for name in own}
        shapes |= {f"{layer}cross_attn.{part}_norm.weight": (head_size,) for part in "qk"}
        shapes |= {f"{layer}cross_attn_{part}_gate": (1,) for part in ("attn", "mlp")}
    shapes |= linear_shapes(f"{root}multi_modal_projector", width, vision["vision_output_dim"])
    return shapes | _tower_shapes(vision, f"{root}vision_model.")


def _tower_shapes(vision: Config, prefix: str) -> Shapes:
    width, inner, patch, tiles = (
        vision[name] for name in ("hidden_size", "intermediate_size", "patch_size", "max_num_tiles")
    )
    num_grids = sum(rows * cols <= tiles for rows in range(1, tiles + 1) for cols in range(1, tiles + 1))
    num_rows = (vision["image_size"] // patch) ** 2 + 1
    positions = f"{prefix}gated_positional_embedding."
    shapes: Shapes = {
        f"{prefix}patch_embedding.weight": (width, 3, patch, patch),
        f"{prefix}class_embedding": (width,),
        f"{positions}embedding": (num_rows, width),
        f"{positions}gate": (1,),
        f"{positions}tile_embedding.weight": (num_grids + 1, tiles * num_rows * width),
    }
    for place in ("pre", "post"):
        tile = f"{prefix}{place}_tile_positional_embedding."
        shapes |= {f"{tile}embedding.weight": (num_grids + 1, tiles * width), f"{tile}gate": (1,)}
    shapes |= norm_shapes(width, f"{prefix}layernorm_pre", f"{prefix}layernorm_post")
    stacks = (("transformer", vision["num_hidden_layers"]), ("global_transformer", vision["num_global_layers"]))
    for stack, num_layers in stacks:
        for layer in (f"{prefix}{stack}.layers.{number}." for number in range(num_layers)):
            for name in "qkvo":
                shapes |= linear_shapes(f"{layer}self_attn.{name}_proj", width, width, bias=False)
            shapes |= linear_shapes(f"{layer}mlp.fc1", inner, width) | linear_shapes(f"{layer}mlp.fc2", width, inner)
            shapes |= norm_shapes(width, f"{layer}input_layernorm", f"{layer}post_attention_layernorm")
            if stack == "global_transformer":
                shapes |= {f"{layer}gate_{part}": (1,) for part in ("attn", "ffn")}
    return shapes
