"""Tiny InternVL checkpoints in the authors' layout: InternViT before Qwen3 and InternLM2."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import BOS, CONTROL_IDS, EOS, PAD, save_byte_tokenizer, save_model, write_json
from family_internvl_chat import END, IMAGE, MOST_TILES, START, SYSTEM, inputs_of, tiles_of
from PIL import Image
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, norm_shapes

CONTROL = [PAD, BOS, EOS, IMAGE, START, END, "<|im_end|>"]
LATER_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
TILE_PX = 16


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "qwen3-tied-biases-layer-norms": _config(
            {
                "architectures": ["Qwen3ForCausalLM"],
                "model_type": "qwen3",
                "hidden_size": 68,
                "intermediate_size": 88,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "tie_word_embeddings": True,
                "rope_theta": 900.0,
            },
            {"norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False},
            template="internvl2_5",
        ),
        "internlm2-biases-rms-norms-normed-queries-one-tile": _config(
            {
                "architectures": ["InternLM2ForCausalLM"],
                "model_type": "internlm2",
                "bias": True,
                "num_attention_heads": 6,
                "num_key_value_heads": 2,
                "rope_theta": 5000.0,
                "rope_scaling": {"type": "dynamic", "factor": 2.0},
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": False,
            },
            {"norm_type": "rms_norm", "qkv_bias": False, "qk_normalization": True},
            template="internlm2-chat",
            dynamic_image_size=False,
            downsample_ratio=0.25,
        ),
    }


def _config(text: Config, vision: Config, **top: Any) -> Config:
    words = {
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "vocab_size": 256 + len(CONTROL) + 2,
        "max_position_embeddings": 1024,
        "hidden_act": "silu",
        "use_sliding_window": False,
        **CONTROL_IDS,
        **text,
    }
    tower = {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "patch_size": 4,
        "image_size": TILE_PX,
        "layer_norm_eps": 1e-6,
        "use_flash_attn": True,
        **vision,
    }
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "select_layer": -1,
        "ps_version": "v2",
        "pad2square": False,
        "downsample_ratio": 0.5,
        "force_image_size": TILE_PX,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": MOST_TILES,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "llm_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, with the files of a processor that says nothing of tiles."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    write_json(folder / "preprocessor_config.json", {"feature_extractor_type": "CLIPFeatureExtractor", "size": TILE_PX})
    of_text = "{% for message in messages %}{{ message.content }}{% endfor %}"
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, bos_token=BOS, eos_token=EOS, chat_template=of_text)


def model(folder: Path) -> Any:
    """Return transformers' InternVL with the checkpoint's weights under its names."""
    import torch
    import transformers
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    text, vision = config["llm_config"], config["vision_config"]
    is_internlm2 = text["model_type"] == "internlm2"
    words = {**text, "model_type": "llama", "attention_bias": True} if is_internlm2 else text
    tower = {
        **vision,
        "model_type": "internvl_vision",
        "attention_bias": vision["qkv_bias"],
        "use_qk_norm": vision["qk_normalization"],
    }
    whole = transformers.InternVLConfig(
        text_config=words,
        vision_config=tower,
        downsample_ratio=config["downsample_ratio"],
        image_token_id=259,
        tie_word_embeddings=text["tie_word_embeddings"],
    )
    heads = (text["num_attention_heads"], text["num_key_value_heads"]) if is_internlm2 else None
    weights = _transformers_names(load_file(folder / "model.safetensors"), heads)
    made = transformers.InternVLForConditionalGeneration(whole)
    found = made.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
    missing = set(found.missing_keys) - ({"lm_head.weight"} if text["tie_word_embeddings"] else set())
    if missing or found.unexpected_keys:
        raise ValueError(f"missing {sorted(missing)}, left over {found.unexpected_keys}")
    made.tie_weights()
    return made.float().eval()


_NAMES = (
    (r"language_model\.(output|lm_head)\.", "lm_head."),
    (r"language_model\.model\.tok_embeddings\.", "model.language_model.embed_tokens."),
    (r"language_model\.model\.", "model.language_model."),
    (r"attention_norm", "input_layernorm"),
    (r"ffn_norm", "post_attention_layernorm"),
    (r"feed_forward\.w1", "mlp.gate_proj"),
    (r"feed_forward\.w3", "mlp.up_proj"),
    (r"feed_forward\.w2", "mlp.down_proj"),
    (r"attention\.wo\.", "self_attn.o_proj."),
    (r"attention\.(w[qkv])", r"self_attn.\1"),
    (r"vision_model\.", "model.vision_tower."),
    (r"class_embedding", "cls_token"),
    (r"patch_embedding\.", "patch_embeddings.projection."),
    (r"position_embedding$", "position_embeddings"),
    (r"encoder\.layers\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls([12])$", r".lambda_\1"),
    (r"mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"mlp1\.3\.", "model.multi_modal_projector.linear_2."),
)


def _transformers_names(
    stored: dict[str, np.ndarray], internlm2_heads: tuple[int, int] | None
) -> dict[str, np.ndarray]:
    """Return weights under transformers' names: packed rows of the tower in thirds, InternLM2's by heads."""
    found = {}
    for key, value in stored.items():
        name = key
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        if ".attention.qkv." in name:
            for letter, part in zip("qkv", np.split(value, 3), strict=True):
                found[name.replace(".qkv.", f".{letter}_proj.")] = part
        elif ".wqkv." in name and internlm2_heads is not None:
            num, shared = internlm2_heads
            size = len(value) // (num + 2 * shared)
            groups = value.reshape(shared, num // shared + 2, size, *value.shape[1:])
            parts = groups[:, :-2], groups[:, -2], groups[:, -1]
            for letter, part in zip("qkv", parts, strict=True):
                found[name.replace(".wqkv.", f".{letter}_proj.")] = part.reshape(-1, *value.shape[1:])
        else:
            found[name] = value
    return found


def processor(folder: Path) -> Any:
    """Return the tokenizer, the processor of tiles, the tokens of a tile, and the config."""
    return tiles_of(folder, TILE_PX, 4)


def inputs(processor: Any, parts: list[str | Image.Image]) -> Any:
    """Return what the authors' `chat` makes of a message, by the conversation of the config."""
    tokenizer, tiles, tokens_per_tile, config = processor
    if config["template"] == "internvl2_5":
        return inputs_of((tokenizer, tiles, tokens_per_tile), parts, "", LATER_SYSTEM, "<|im_end|>\n")
    return inputs_of((tokenizer, tiles, tokens_per_tile), parts, BOS, SYSTEM, "<|im_end|>")


def _shapes(config: Config) -> Shapes:
    text, vision = config["llm_config"], config["vision_config"]
    width, size = text["hidden_size"], vision["hidden_size"]
    decoder = _internlm2_shapes(text) if text["model_type"] == "internlm2" else _qwen3_shapes(text)
    own, num = "vision_model.embeddings.", (vision["image_size"] // vision["patch_size"]) ** 2
    shapes = decoder | {
        f"{own}class_embedding": (1, 1, size),
        f"{own}position_embedding": (1, num + 1, size),
        f"{own}patch_embedding.weight": (size, 3, vision["patch_size"], vision["patch_size"]),
        f"{own}patch_embedding.bias": (size,),
    }
    has_biases = vision["norm_type"] == "layer_norm"
    for layer in (f"vision_model.encoder.layers.{number}." for number in range(vision["num_hidden_layers"])):
        shapes |= linear_shapes(f"{layer}attn.qkv", 3 * size, size, bias=vision["qkv_bias"])
        shapes |= linear_shapes(f"{layer}attn.proj", size, size)
        shapes |= linear_shapes(f"{layer}mlp.fc1", vision["intermediate_size"], size)
        shapes |= linear_shapes(f"{layer}mlp.fc2", size, vision["intermediate_size"])
        shapes |= {f"{layer}ls{number}": (size,) for number in (1, 2)}
        norms = norm_shapes(size, f"{layer}norm1", f"{layer}norm2")
        shapes |= {name: shape for name, shape in norms.items() if has_biases or name.endswith("weight")}
        if vision["qk_normalization"]:
            shapes |= {f"{layer}attn.{name}_norm.weight": (size,) for name in "qk"}
    wide = size * int(1 / config["downsample_ratio"]) ** 2
    shapes |= norm_shapes(wide, "mlp1.0") | linear_shapes("mlp1.1", width, wide) | linear_shapes("mlp1.3", width, width)
    return shapes


def _qwen3_shapes(text: Config) -> Shapes:
    shapes = decoder_shapes({**text, "model_type": "llama"}, "language_model.model.")
    for number in range(text["num_hidden_layers"]):
        attention = f"language_model.model.layers.{number}.self_attn"
        shapes |= {f"{attention}.{name}_norm.weight": (text["head_dim"],) for name in "qk"}
    return shapes


def _internlm2_shapes(text: Config) -> Shapes:
    width, inner = text["hidden_size"], text["intermediate_size"]
    root, rows = "language_model.", width // text["num_attention_heads"]
    shapes: Shapes = {
        f"{root}model.tok_embeddings.weight": (text["vocab_size"], width),
        f"{root}model.norm.weight": (width,),
        f"{root}output.weight": (text["vocab_size"], width),
    }
    for layer in (f"{root}model.layers.{number}." for number in range(text["num_hidden_layers"])):
        shapes |= {f"{layer}{name}_norm.weight": (width,) for name in ("attention", "ffn")}
        heads = text["num_attention_heads"] + 2 * text["num_key_value_heads"]
        shapes |= linear_shapes(f"{layer}attention.wqkv", heads * rows, width, bias=text["bias"])
        shapes |= linear_shapes(f"{layer}attention.wo", width, width, bias=text["bias"])
        for name, out, into in (("w1", inner, width), ("w3", inner, width), ("w2", width, inner)):
            shapes |= linear_shapes(f"{layer}feed_forward.{name}", out, into, bias=False)
    return shapes
