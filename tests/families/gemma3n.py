"""Tiny Gemma 3n checkpoints: streams, shared rows, closed gates, tokens with rows elsewhere, MobileNetV5's blocks."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from checkpoints import (
    BOS,
    CONTROL_IDS,
    EOS,
    NAMED,
    PAD,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from safetensors.numpy import load_file, save_file
from weight_shapes import Config, Shapes, linear_shapes

START, END, IMAGE = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
SOUND = {"boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>", "audio_token": "<audio_soft_token>"}
CONTROL = [PAD, BOS, EOS, START, SOUND["boa_token"], "<|turn>", END, IMAGE, "<image_more>", *list(SOUND.values())[1:]]
FIRST_IMAGE, FIRST_SOUND, VOCAB = 262, 265, 268
"""Ids from which tokens have rows elsewhere; there is one token more than the tokenizer has."""
MEDIA_IDS = {"image_token_id": 263, "audio_token_id": 266}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<image_soft_token>"
    "{% else %}{{ part.text | trim }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
_SLIDING, _FULL = "sliding_attention", "full_attention"
_BRANCH_SCALE = 0.3
"""Of what branches of a layer add, for rounding errors not to grow from layer to layer."""
_ROUTER_SCALE = 5.0
"""Of what weighs streams: what it reads is divided by the width."""
_LOGIT_SCALE = 6.0
_TABLE_SCALE = 0.04
_HEAD_SCALE = 0.25
_SOUND_WIDTH = 32


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "four-streams-two-layers-share-rows-tied": config(),
        "three-streams-the-last-active-no-scale-untied": config(
            {
                "layer_types": None,
                "num_hidden_layers": 5,
                "num_kv_shared_layers": 0,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "hidden_size": 32,
                "head_dim": 24,
                "intermediate_size": 88,
                "altup_num_inputs": 3,
                "altup_active_idx": 2,
                "altup_correct_scale": False,
                "activation_sparsity_pattern": None,
                "attention_bias": True,
                "sliding_window": 40,
                "rope_parameters": {
                    _SLIDING: {"rope_type": "default", "rope_theta": 300.0},
                    _FULL: {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
                },
            },
            [
                ["er_r1_k5_s2_e2_c8", "er_r1_k3_s1_e3_c16"],
                ["uir_r1_a5_k3_s2_e3_c16"],
                ["uir_r1_a3_k0_s2_e2_c24", "mqa_r1_k5_h2_v2_s1_d8_c24"],
                ["uir_r1_a0_k5_s2_e2_c40", "mqa_r1_k3_h5_s1_d16_c40", "uir_r1_a0_k0_s1_e2_c40"],
            ],
            resolution=4,
            tie_word_embeddings=False,
        ),
    }


_BLOCKS = [
    ["er_r1_k3_s2_e4_c16", "er_r1_k5_s1_e3_c16"],
    ["uir_r1_a3_k5_s2_e6_c24", "uir_r1_a5_k0_s1_e4_c24"],
    ["uir_r1_a5_k5_s2_e3_c40", "uir_r1_a0_k0_s1_e1_c40", "mqa_r1_k3_h3_v2_s1_d16_c40", "uir_r1_a0_k0_s1_e2_c40"],
    ["uir_r1_a5_k3_s2_e2_c48", "mqa_r1_k3_h2_s1_d24_c48", "uir_r1_a0_k0_s1_e2_c48"],
]


def config(
    text: Config | None = None, blocks: list[list[str]] | None = None, *, resolution: int = 3, **top: Any
) -> Config:
    """Return a tiny config; arguments override its parts."""
    words = {
        "model_type": "gemma3n_text",
        "hidden_size": 48,
        "intermediate_size": [96, 96, 64, 80, 96],
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 2,
        "layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING, _FULL],
        "head_dim": 16,
        "rope_theta": 20_000.0,
        "rope_local_base_freq": 500.0,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": FIRST_IMAGE,
        "vocab_size": VOCAB,
        "final_logit_softcapping": 20.0,
        "activation_sparsity_pattern": [0.9, 0.0, 0.6, 0.3, 0.0],
        "altup_num_inputs": 4,
        "altup_active_idx": 0,
        "altup_correct_scale": True,
        "laurel_rank": 8,
        "max_position_embeddings": 512,
        "sliding_window": 6,
        **CONTROL_IDS,
        **(text or {}),
    }
    if "rope_parameters" in words:
        words = {key: value for key, value in words.items() if key not in ("rope_theta", "rope_local_base_freq")}
    model_args = {
        "block_args": reference().block_args(*(blocks or _BLOCKS)),
        "stem_size": 16,
        "msfa_output_resolution": resolution,
    }
    tower = {
        "model_type": "gemma3n_vision",
        "architecture": "mobilenetv5_300m_enc",
        "do_pooling": False,
        "hidden_size": 2048,
        "model_args": model_args,
        "label_names": ["LABEL_0", "LABEL_1"],
        "vocab_offset": FIRST_IMAGE,
        "vocab_size": 4,
    }
    sounds = {
        "model_type": "gemma3n_audio",
        "hidden_size": _SOUND_WIDTH,
        "vocab_offset": FIRST_SOUND,
        "vocab_size": 3,
        "conf_num_hidden_layers": 1,
    }
    return {
        "architectures": ["Gemma3nForConditionalGeneration"],
        "model_type": "gemma3n",
        "vision_soft_tokens_per_image": resolution**2,
        "boi_token_id": 259,
        "eoi_token_id": 262,
        "boa_token_id": 260,
        "eoa_token_id": 265,
        **MEDIA_IDS,
        "tie_word_embeddings": True,
        "text_config": words,
        "vision_config": tower,
        "audio_config": sounds,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, shapes(config))
    _rewrite(folder / "model.safetensors")
    write_json(folder / "generation_config.json", CONTROL_IDS)
    num_tokens = config["vision_soft_tokens_per_image"]
    side = 96 if num_tokens == 9 else 64
    images = {
        "image_processor_type": "SiglipImageProcessor",
        "feature_extractor_type": "Gemma3nAudioFeatureExtractor",
        "size": {"height": side, "width": side},
        "do_normalize": False,
        "do_rescale": True,
        "do_resize": True,
        "rescale_factor": 1 / 255,
        "resample": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "dither": 0.0,
        "feature_size": 128,
        "hop_length": 160,
        "sampling_rate": 16_000,
        "return_attention_mask": True,
    }
    save_processor(folder, "Gemma3nProcessor", images, image_seq_length=num_tokens, audio_seq_length=188)
    named = {"boi_token": START, "eoi_token": END, "image_token": IMAGE, **SOUND}
    save_byte_tokenizer(folder, CONTROL, extra_special_tokens=named, **NAMED)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def processor(folder: Path) -> Any:
    """Return transformers' processor, put together from its parts, of which one of images is on Pillow."""
    from transformers import AutoTokenizer, Gemma3nAudioFeatureExtractor, Gemma3nProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    config = json.loads((folder / "config.json").read_text())
    return Gemma3nProcessor(
        Gemma3nAudioFeatureExtractor(),
        SiglipImageProcessorPil.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        chat_template=TEMPLATE,
        image_seq_length=config["vision_soft_tokens_per_image"],
    )


def model(folder: Path) -> Any:
    """Return transformers' model around MobileNetV5's blocks written anew: timm's wants torchvision."""
    from safetensors.torch import load_file as load_tensors
    from transformers import AutoConfig, AutoModel, Gemma3nConfig, Gemma3nForConditionalGeneration

    written = reference()
    AutoConfig.register("mobilenetv5_reference", written.MobileNetV5ReferenceConfig, exist_ok=True)
    AutoModel.register(written.MobileNetV5ReferenceConfig, written.MobileNetV5Reference, exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    stated = {key: value for key, value in config["vision_config"].items() if key not in ("model_type", "label_names")}
    tower = written.MobileNetV5ReferenceConfig(**stated)
    found = Gemma3nForConditionalGeneration(Gemma3nConfig(**{**config, "vision_config": tower}))
    weights = load_tensors(folder / "model.safetensors")
    if config["tie_word_embeddings"]:
        weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    told = found.load_state_dict(weights, strict=False)
    shared = [f"layers.{at}.self_attn.{name}" for at in (3, 4) for name in ("k_", "v_")]
    left = [key for key in told.unexpected_keys if not any(name in key for name in shared)]
    if left or any("audio_tower" not in key for key in told.missing_keys):
        raise ValueError(f"{folder} is not what transformers wants: {told}")
    return found.eval()


def reference() -> ModuleType:
    """Return tests/mobilenetv5.py."""
    if "mobilenetv5" not in sys.modules:
        spec = importlib.util.spec_from_file_location("mobilenetv5", Path(__file__).parents[1] / "mobilenetv5.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return sys.modules["mobilenetv5"]


def _rewrite(path: Path) -> None:
    """Rewrite weights that random numbers around 0 say nothing of, or too much."""
    weights = load_file(path)
    for name in weights:
        if name.endswith("correct_output_scale"):
            weights[name] = weights[name] + np.float32(0.8)
        elif name.endswith("modality_router.weight"):
            weights[name] = weights[name] * np.float32(_ROUTER_SCALE)
        elif ".post_" in name and "language_model" in name:
            weights[name] = weights[name] * np.float32(_BRANCH_SCALE)
        elif name.endswith("language_model.norm.weight"):
            weights[name] = weights[name] * np.float32(_LOGIT_SCALE)
        elif name.endswith("embed_tokens.weight"):
            weights[name] = weights[name] * np.float32(_TABLE_SCALE)
        elif name == "lm_head.weight":
            weights[name] = weights[name] * np.float32(_HEAD_SCALE)
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            weights[name][list(MEDIA_IDS.values())] = 0  # never said: transformers would look for an image of it
    save_file(weights, path, {"format": "pt"})


def shapes(config: Config) -> Shapes:
    """Name every weight."""
    text, vision = config["text_config"], config["vision_config"]
    width, before, num = text["hidden_size"], "model.language_model.", text["num_hidden_layers"]
    own, streams = text["hidden_size_per_layer_input"], text["altup_num_inputs"]
    found: Shapes = {
        f"{before}embed_tokens.weight": (text["vocab_size"], width),
        f"{before}embed_tokens_per_layer.weight": (text["vocab_size_per_layer_input"], own * num),
        f"{before}per_layer_model_projection.weight": (own * num, width),
        f"{before}per_layer_projection_norm.weight": (own,),
        f"{before}norm.weight": (width,),
        "model.audio_tower.conformer.0.norm.weight": (_SOUND_WIDTH,),
    }
    for name in ("altup_projections", "altup_unembed_projections"):
        found |= {f"{before}{name}.{at}.weight": (width, width) for at in range(streams - 1)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (text["vocab_size"], width)
    for part, size in (("vision", vision["hidden_size"]), ("audio", _SOUND_WIDTH)):
        embedder = f"model.embed_{part}."
        found[f"{embedder}embedding.weight"] = (config[f"{part}_config"]["vocab_size"], size)
        found |= {f"{embedder}{name}_embedding_norm.weight": (size,) for name in ("hard", "soft")}
        found[f"{embedder}embedding_projection.weight"] = (width, size)
    for number in range(num):
        found |= _layer_shapes(text, number, f"{before}layers.{number}.")
    tower = reference().Encoder(vision["model_args"]["block_args"], 16, 1).state_dict()
    return found | {f"model.vision_tower.timm_model.{name}": tuple(each.shape) for name, each in tower.items()}


def _layer_shapes(text: Config, number: int, before: str) -> Shapes:
    width, own, size = text["hidden_size"], text["hidden_size_per_layer_input"], text["head_dim"]
    inner = text["intermediate_size"]
    inner = inner[number] if isinstance(inner, list) else inner
    streams, rank, bias = text["altup_num_inputs"], text["laurel_rank"], bool(text.get("attention_bias"))
    heads, kv = text["num_attention_heads"] * size, text["num_key_value_heads"] * size
    attention, altup = f"{before}self_attn.", f"{before}altup."
    found = linear_shapes(f"{attention}q_proj", heads, width, bias=bias)
    for name in "kv":  # of layers that read another's as well, as in released checkpoints
        found |= linear_shapes(f"{attention}{name}_proj", kv, width, bias=bias)
    found |= linear_shapes(f"{attention}o_proj", width, heads, bias=bias)
    found |= {f"{attention}{name}_norm.weight": (size,) for name in "qk"}
    for name, rows, columns in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
        found |= linear_shapes(f"{before}mlp.{name}_proj", rows, columns, bias=False)
    found |= linear_shapes(f"{before}per_layer_input_gate", own, width, bias=False)
    found |= linear_shapes(f"{before}per_layer_projection", width, own, bias=False)
    found |= linear_shapes(f"{before}laurel.linear_left", rank, width, bias=False)
    found |= linear_shapes(f"{before}laurel.linear_right", width, rank, bias=False)
    found |= linear_shapes(f"{altup}correction_coefs", streams, streams, bias=False)
    found |= linear_shapes(f"{altup}prediction_coefs", streams**2, streams, bias=False)
    found |= linear_shapes(f"{altup}modality_router", streams, width, bias=False)
    found |= {f"{altup}correct_output_scale": (width,), f"{altup}router_norm.weight": (width,)}
    norms = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    norms += ("post_per_layer_input_norm", "laurel.post_laurel_norm")
    return found | {f"{before}{name}.weight": (width,) for name in norms}
