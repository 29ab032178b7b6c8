"""Tiny T5Gemma 2 checkpoints: an encoder of image and text with windows, one softmax over text and memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import RESCALING, save_byte_tokenizer, save_model, save_processor, write_json
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, processors
from weight_shapes import Config, Shapes, linear_shapes, tower_shapes

PAD, EOS, BOS, START, END, IMAGE = "<pad>", "<eos>", "<bos>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"
CONTROL = [PAD, EOS, BOS, START, END, IMAGE]
IDS = {"pad_token_id": 256, "eos_token_id": 257, "bos_token_id": 258}
TAKES_VIDEOS = False
_SLIDING, _FULL = "sliding_attention", "full_attention"
_ONE = ("norm.weight", "layernorm.weight")


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "windows-of-odd-length-one-key-head": _config(),
        "an-encoder-of-other-heads-biases": _config(
            {
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "num_hidden_layers": 2,
                "layer_types": [_FULL, _SLIDING],
                "intermediate_size": 40,
            },
            {
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "head_dim": 16,
                "attention_bias": True,
                "layer_types": [_SLIDING, _FULL],
                "num_hidden_layers": 2,
                "sliding_window": 40,
                "query_pre_attn_scalar": 9,
                "rope_parameters": {
                    _SLIDING: {"rope_type": "default", "rope_theta": 300.0},
                    _FULL: {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
                },
            },
            {"patch_size": 8, "image_size": 48},
            tokens=9,
        ),
    }


def _config(text: Config | None = None, said: Config | None = None, vision: Config | None = None, tokens: int = 16):
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 24,
        "vocab_size": 256 + len(CONTROL) + 3,
        "max_position_embeddings": 256,
        "query_pre_attn_scalar": 20,
        "sliding_window": 7,
        "layer_types": [_SLIDING, _FULL, _SLIDING],
        **IDS,
    }
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 4,
        "vision_use_head": False,
        **(vision or {}),
    }
    return {
        "architectures": ["T5Gemma2ForConditionalGeneration"],
        "model_type": "t5gemma2",
        "image_token_index": 261,
        "eoi_token_index": 260,
        "tie_word_embeddings": True,
        "encoder": {
            "model_type": "t5gemma2_encoder",
            "mm_tokens_per_image": tokens,
            "boi_token_index": 259,
            "eoi_token_index": 260,
            "image_token_index": 261,
            "text_config": {"model_type": "t5gemma2_text", **sizes, **(text or {})},
            "vision_config": tower,
        },
        "decoder": {"model_type": "t5gemma2_decoder", **sizes, **(said or {})},
        **IDS,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a chat template, as published."""
    save_model(folder, config, _shapes(config))
    _rewrite(folder / "model.safetensors")
    write_json(folder / "generation_config.json", {**IDS, "decoder_start_token_id": IDS["bos_token_id"]})
    encoder = config["encoder"]
    side = encoder["vision_config"]["image_size"]
    images = {
        "image_processor_type": "Gemma3ImageProcessor",
        "size": {"height": side, "width": side},
        "resample": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_resize": True,
        **RESCALING,
    }
    save_processor(folder, "Gemma3Processor", images, image_seq_length=encoder["mm_tokens_per_image"])
    named = {"boi_token": START, "eoi_token": END, "image_token": IMAGE}
    around = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS}
    save_byte_tokenizer(folder, CONTROL, extra_special_tokens=named, **around)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, IDS["bos_token_id"])])
    backend.save(str(folder / "tokenizer.json"))


def _rewrite(path: Path) -> None:
    """Rewrite norms, which checkpoints hold less 1, and make loud what a memory adds."""
    weights = load_file(path)
    for name in weights:
        is_gemma = "vision_tower" not in name or "mm_soft_emb_norm" in name
        if is_gemma and name.endswith(_ONE):
            weights[name] = weights[name] - 1
        if ".post_" in name and "vision" not in name:
            weights[name] = (weights[name] + 1) * np.float32(1.5) - 1
        if name == "model.decoder.norm.weight":
            weights[name] = (weights[name] + 1) * 6 - 1
        if name.endswith("embed_tokens.weight"):
            weights[name] = weights[name] * np.float32(0.05)
        if name.endswith("eoi_embedding"):
            weights[name] = weights[name] * 4
    save_file(weights, path, {"format": "pt"})


def conversations(given: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return messages that it takes, by the names of those that others take."""
    (wide, _), (_, tall, _, large, _) = given["one image"], given["two images"]
    return {
        "text": [large, " in this image, there is"],
        "one image": [wide, "What stands here, and for how long has it done so?"],
        "two images": [tall, "\n<eos> a"],
    }


def processor(folder: Path) -> Any:
    """Return transformers' processor, put together from its parts, of which one of images is on Pillow."""
    from transformers import AutoTokenizer, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    config = json.loads((folder / "config.json").read_text())
    images, words = Gemma3ImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return Gemma3Processor(images, words, image_seq_length=config["encoder"]["mm_tokens_per_image"])


def inputs(processor: Any, parts: list[Any]) -> Any:
    """Return what encoder and decoder read; the decoder's are the prompt. What a user writes is no special token."""
    import torch

    image, text = parts
    made = processor(images=image, text=START, return_tensors="pt")
    plain = processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids = torch.cat([made["input_ids"], torch.tensor([plain])], dim=1)
    begun = torch.tensor([[IDS["bos_token_id"]]])
    return {"input_ids": begun, "encoder_ids": ids, "pixel_values": made["pixel_values"]}


def model(folder: Path) -> Any:
    """Return transformers' model, called with the ids of the decoder.

    Raises:
        ValueError: A weight is missing or left over.
    """
    from transformers import T5Gemma2ForConditionalGeneration

    whole, found = T5Gemma2ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    if any(found.values()):
        raise ValueError(f"{folder} is not what T5Gemma 2 wants: {found}")
    whole.eval()

    def answered(input_ids: Any, encoder_ids: Any, pixel_values: Any, attention_mask: Any) -> Any:
        return whole(input_ids=encoder_ids, pixel_values=pixel_values, decoder_input_ids=input_ids)

    return answered


def _shapes(config: Config) -> Shapes:
    encoder, said = config["encoder"], config["decoder"]
    read, vision, width = encoder["text_config"], encoder["vision_config"], said["hidden_size"]
    before = "model.encoder.text_model."
    shapes: Shapes = {
        f"{before}embed_tokens.weight": (said["vocab_size"], width),
        f"{before}embed_tokens.eoi_embedding": (width,),
        "model.encoder.multi_modal_projector.mm_input_projection_weight": (vision["hidden_size"], width),
        "model.encoder.multi_modal_projector.mm_soft_emb_norm.weight": (vision["hidden_size"],),
    }
    for stack, text in ((before, read), ("model.decoder.", said)):
        shapes[f"{stack}norm.weight"] = (width,)
        for layer in (f"{stack}layers.{number}." for number in range(text["num_hidden_layers"])):
            shapes |= _layer_shapes(text, layer)
    tower = tower_shapes(vision, "model.encoder.vision_tower.")
    return shapes | {name: shape for name, shape in tower.items() if ".head." not in name}


def _layer_shapes(text: Config, layer: str) -> Shapes:
    width, inner, size = text["hidden_size"], text["intermediate_size"], text["head_dim"]
    heads, kv = text["num_attention_heads"] * size, text["num_key_value_heads"] * size
    bias, shapes = bool(text.get("attention_bias")), dict[str, tuple[int, ...]]()
    for name, rows, columns in (("q", heads, width), ("k", kv, width), ("v", kv, width), ("o", width, heads)):
        shapes |= linear_shapes(f"{layer}self_attn.{name}_proj", rows, columns, bias=bias)
    for name, rows, columns in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
        shapes |= linear_shapes(f"{layer}mlp.{name}_proj", rows, columns, bias=False)
    norms = ("pre_self_attn", "post_self_attn", "pre_feedforward", "post_feedforward")
    shapes |= {f"{layer}{name}_layernorm.weight": (width,) for name in norms}
    return shapes | {f"{layer}self_attn.{name}_norm.weight": (size,) for name in "qk"}
