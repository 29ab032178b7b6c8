"""Tiny UnIVAL checkpoints: three and four stages of a ResNet, with and without what layers may have beside matrices."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from checkpoints import RESCALING, save_byte_tokenizer, save_model, save_processor, write_json
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, processors
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes

from export.models.unival import UnIVAL

BOS, PAD, EOS = "<s>", "<pad>", "</s>"
CONTROL = [BOS, PAD, EOS, "<mask>", "<bin_0>", "<bin_1>"]
BOS_ID, PAD_ID, EOS_ID = range(256, 259)
IDS = {"bos_token_id": BOS_ID, "pad_token_id": PAD_ID, "eos_token_id": EOS_ID}
TAKES_VIDEOS = False


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "four-stages-all-norms-and-gains": _config(
            image_encoder_name="timm_resnet",
            resnet_layers=[1, 2, 1, 1],
            patch_image_size=84,
            scale_attn=True,
            scale_fc=True,
            scale_heads=True,
            scale_resids=True,
            disable_entangle=True,
            add_mm_type_embedding=True,
        ),
        "three-stages-bare-entangled": _config(
            image_encoder_name="resnet",
            resnet_layers=[1, 1, 2],
            encoder_embed_dim=40,
            encoder_attention_heads=5,
            decoder_attention_heads=5,
            encoder_layers=1,
            add_type_embedding=False,
            patch_layernorm_embedding=False,
            entangle_position_embedding=True,
            token_bucket_size=8,
            image_bucket_size=3,
        ),
    }


def _config(**changes: Any) -> Config:
    return {
        "architectures": ["UnIVALModel"],
        "model_type": "unival",
        "arch": "unival_base",
        "encoder_embed_dim": 48,
        "encoder_ffn_embed_dim": 56,
        "decoder_ffn_embed_dim": 72,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 3,
        "decoder_attention_heads": 3,
        "max_source_positions": 64,
        "max_target_positions": 112,
        "token_bucket_size": 12,
        "image_bucket_size": 5,
        "patch_image_size": 44,
        "resnet_width": 6,
        "vocab_size": 256 + len(CONTROL) + 1,
        **IDS,
        **changes,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32: fairseq's weights by their names, beside its arguments."""
    save_model(folder, config, _shapes(UnIVAL(config).config))
    _complete(folder / "model.safetensors")
    write_json(folder / "generation_config.json", IDS)
    side, half = config["patch_image_size"], {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    images = {"image_processor_type": "ViTImageProcessor", "size": {"height": side, "width": side}, "resample": 3}
    save_processor(folder, "ViTProcessor", {**images, "do_resize": True, **half, **RESCALING})
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, bos_token=BOS, eos_token=EOS)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    around = [(BOS, BOS_ID), (EOS, EOS_ID)]
    backend.post_processor = processors.TemplateProcessing(f"{BOS} $A {EOS}", special_tokens=around)
    backend.save(str(folder / "tokenizer.json"))


def _complete(path: Path) -> None:
    """Enlarge what places add, make gains differ from 1, and answers differ from token to token."""
    stored = load_file(path)
    quiet = {"cross_attn_ln.weight": 0.3, "cross_attn_ln.bias": 0.3, "fc2.weight": 3, "layernorm_embedding.weight": 0.3}
    for name in stored:
        for ending, factor in quiet.items() if "decoder.layers.0.cross_attn_ln.weight" in stored else ():
            if name.startswith("decoder.") and name.endswith(ending):
                stored[name] *= np.float32(factor)
        rng = np.random.default_rng(len(name) + 7 * len(stored[name]))
        if "rel_pos_table" in name:
            stored[name] = rng.standard_normal(stored[name].shape).astype(np.float32)
        if name.endswith(("c_attn", "w_resid")):
            stored[name] = (1 + 0.2 * rng.standard_normal(stored[name].shape)).astype(np.float32)
        if (".bn" in name and name.endswith("weight")) or "downsample.1.weight" in name:
            stored[name] = (0.7 + 0.1 * rng.standard_normal(stored[name].shape)).astype(np.float32)
        if name.endswith("image_proj.weight"):
            stored[name] *= np.float32(0.2)
        if name.startswith("decoder.layers") and name.endswith("out_proj.weight"):
            stored[name] *= np.float32(0.5)
    save_file(stored, path, metadata={"format": "pt"})


def conversations(given: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return messages that it takes, by the names of those that others take."""
    (wide, _), (_, tall, _, large, _) = given["one image"], given["two images"]
    return {
        "text": [large, "<CAPTION>"],
        "one image": [wide, " what is in it?"],
        "two images": [tall, " which region does the text <bin_1> describe?"],
    }


def processor(folder: Path) -> Any:
    """Return transformers' tokenizer and processor of images."""
    from transformers import AutoTokenizer, ViTImageProcessorPil

    return AutoTokenizer.from_pretrained(folder), ViTImageProcessorPil.from_pretrained(folder)


def inputs(processor: Any, parts: list[Any]) -> Any:
    """Return what encoder and decoder read: the question begins the answer, but for a caption's."""
    import torch

    tokenizer, images = processor
    image, text = parts
    asked, begun = (" what does the image describe?", "") if text == "<CAPTION>" else (text, text)
    said = tokenizer(begun, add_special_tokens=False)["input_ids"]
    return {
        "input_ids": torch.tensor([[BOS_ID, *said]]),
        "question_ids": tokenizer(asked, return_tensors="pt")["input_ids"],
        "pixel_values": images(image, return_tensors="pt")["pixel_values"],
    }


def model(folder: Path) -> Any:
    """Return the reference, called as a model of transformers is."""
    spec = importlib.util.spec_from_file_location("unival_reference", Path(__file__).parents[1] / "unival_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    reference = module.Reference(folder, UnIVAL(json.loads((folder / "config.json").read_text())).config)

    def answered(input_ids: Any, question_ids: Any, pixel_values: Any, attention_mask: Any) -> Any:
        return SimpleNamespace(logits=reference(pixel_values, question_ids, input_ids))

    return answered


def _shapes(config: Config) -> Shapes:
    width, heads, side = config["encoder_embed_dim"], config["encoder_attention_heads"], config["image_bucket_size"]
    shapes: Shapes = {
        "encoder.embed_tokens.weight": (config["vocab_size"], width),
        "encoder.embed_positions.weight": (config["max_source_positions"] + 2, width),
        "encoder.embed_image_positions.weight": (side**2 + 1, width),
        "decoder.embed_positions.weight": (config["max_target_positions"] + 2, width),
        **norm_shapes(width, "encoder.pos_ln", "encoder.image_pos_ln", "encoder.layer_norm"),
        **norm_shapes(width, "decoder.pos_ln", "decoder.layer_norm"),
        **norm_shapes(width, "encoder.layernorm_embedding", "decoder.layernorm_embedding"),
    }
    if config["patch_layernorm_embedding"]:
        shapes |= norm_shapes(width, "encoder.patch_layernorm_embedding")
    if config["add_mm_type_embedding"] or config["add_type_embedding"]:
        shapes["encoder.type_embedding.weight"] = (4 if config["add_mm_type_embedding"] else 2, width)
    names = ("encoder.pos_q", "encoder.pos_k", *(f"decoder.{w}_pos_{p}" for w in ("self", "cross") for p in "qk"))
    for name in names:
        shapes |= linear_shapes(f"{name}_linear", width, width)
    distances = {"token": 2 * config["token_bucket_size"] - 1, "image": (2 * side - 1) ** 2 + 3}
    for half in ("encoder", "decoder"):
        for number in range(config[f"{half}_layers"]):
            for kind, rows in distances.items():
                if (half, kind) != ("decoder", "image"):
                    shapes[f"{half}.{kind}_rel_pos_table_list.{number}.weight"] = (rows, heads)
            shapes |= _layer_shapes(config, half, f"{half}.layers.{number}.")
    return shapes | _tower_shapes(config)


def _layer_shapes(config: Config, half: str, at: str) -> Shapes:
    width, inner = config["encoder_embed_dim"], config[f"{half}_ffn_embed_dim"]
    shapes = linear_shapes(f"{at}fc1", inner, width) | linear_shapes(f"{at}fc2", width, inner)
    shapes |= norm_shapes(width, f"{at}final_layer_norm")
    attentions = ("self_attn", "encoder_attn") if half == "decoder" else ("self_attn",)
    for attention in attentions:
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear_shapes(f"{at}{attention}.{name}", width, width)
        shapes |= norm_shapes(width, f"{at}{attention}_layer_norm")
        if config["scale_heads"]:
            shapes[f"{at}{attention}.c_attn"] = (config["encoder_attention_heads"],)
    if config["scale_attn"]:
        names = ("self_attn_ln", "cross_attn_ln") if half == "decoder" else ("attn_ln",)
        shapes |= norm_shapes(width, *(f"{at}{name}" for name in names))
    if config["scale_fc"]:
        shapes |= norm_shapes(inner, f"{at}ffn_layernorm")
    if config["scale_resids"]:
        shapes[f"{at}w_resid"] = (width,)
    return shapes


def _tower_shapes(config: Config) -> Shapes:
    root, size = "encoder.embed_images.", config["resnet_width"]
    shapes: Shapes = {f"{root}conv1.weight": (size, 3, 7, 7), **_batch_norm(f"{root}bn1", size)}
    for stage, depth in enumerate(config["resnet_layers"]):
        width = config["resnet_width"] << stage
        for number in range(depth):
            at = f"{root}layer{stage + 1}.{number}."
            shapes |= {f"{at}conv1.weight": (width, size, 1, 1), f"{at}conv2.weight": (width, width, 3, 3)}
            shapes[f"{at}conv3.weight"] = (4 * width, width, 1, 1)
            for name, channels in (("bn1", width), ("bn2", width), ("bn3", 4 * width)):
                shapes |= _batch_norm(f"{at}{name}", channels)
            if not number:
                shapes[f"{at}downsample.0.weight"] = (4 * width, size, 1, 1)
                shapes |= _batch_norm(f"{at}downsample.1", 4 * width)
            size = 4 * width
    return shapes | linear_shapes("encoder.image_proj", config["encoder_embed_dim"], size)


def _batch_norm(name: str, size: int) -> Shapes:
    return {f"{name}.{part}": (size,) for part in ("weight", "bias", "running_mean", "running_var")}
