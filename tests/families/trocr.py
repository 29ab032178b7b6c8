"""Tiny TrOCR checkpoints: ViT and DeiT before a decoder whose places are learned or sines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import RESCALING, save_byte_tokenizer, save_model, save_processor, write_json
from safetensors.numpy import load_file, save_file
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes

BOS, PAD, EOS = "<s>", "<pad>", "</s>"
CONTROL = [BOS, PAD, EOS, "<mask>"]
BOS_ID, PAD_ID, EOS_ID = range(256, 259)
IDS = {"bos_token_id": BOS_ID, "pad_token_id": PAD_ID, "eos_token_id": EOS_ID}
TAKES_VIDEOS = False
_QUIET = {"self_attn.out_proj.weight": 0.25, "encoder_attn.out_proj.weight": 0.25, "embed_positions.weight": 2}
_QUIET_SINES = {
    "self_attn.out_proj.weight": 4,
    "encoder_attn.out_proj.weight": 0.1,
    "encoder_attn.out_proj.bias": 0.1,
    "embed_tokens.weight": 0.1,
}


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "learned-places-other-width-looked-at-tied": _config(),
        "distilled-sines-scaled-projected-untied": _config(
            {
                "d_model": 40,
                "decoder_attention_heads": 5,
                "use_learned_position_embeddings": False,
                "layernorm_embedding": False,
                "scale_embedding": True,
                "activation_function": "relu",
                "cross_attention_hidden_size": None,
                "tie_word_embeddings": False,
            },
            {"model_type": "deit", "qkv_bias": True, "num_attention_heads": 4, "patch_size": 6, "image_size": 30},
        ),
    }


def _config(text: Config | None = None, vision: Config | None = None) -> Config:
    tower = {
        "model_type": "vit",
        "hidden_size": 36,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
        "qkv_bias": False,
        "layer_norm_eps": 1e-12,
        **(vision or {}),
    }
    words = {
        "model_type": "trocr",
        "d_model": 48,
        "decoder_layers": 3,
        "decoder_attention_heads": 3,
        "decoder_ffn_dim": 56,
        "vocab_size": 256 + len(CONTROL) + 1,
        "max_position_embeddings": 112,
        "decoder_start_token_id": EOS_ID,
        "cross_attention_hidden_size": tower["hidden_size"],
        "is_decoder": True,
        "add_cross_attention": True,
        "tie_word_embeddings": True,
        **IDS,
        **(text or {}),
    }
    return {
        "architectures": ["VisionEncoderDecoderModel"],
        "model_type": "vision-encoder-decoder",
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
        "encoder": tower,
        "decoder": words,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a chat template, as published."""
    save_model(folder, config, _shapes(config))
    quieten(folder / "model.safetensors")
    write_json(folder / "generation_config.json", {**IDS, "decoder_start_token_id": EOS_ID})
    side = config["encoder"]["image_size"]
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    images = {"do_resize": True, "size": {"height": side, "width": side}, "resample": 2, **half, **RESCALING}
    if config["encoder"]["model_type"] == "deit":
        crop = {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
        larger = {"height": side + 5, "width": side + 5}
        images = {**images, "image_processor_type": "DeiTImageProcessor", **crop, "size": larger, "resample": 3}
    else:
        images["image_processor_type"] = "ViTImageProcessor"
    save_processor(folder, "TrOCRProcessor", images)
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, bos_token=BOS, eos_token=EOS)


def quieten(path: Path) -> None:
    """Make what attention adds quiet beside tokens and their places, so that answers do not repeat themselves."""
    stored = load_file(path)
    has_sines = not any(name.endswith("embed_positions.weight") for name in stored)
    # sines are small beside tokens, and without learned places what was said must tell tokens apart
    factors = _QUIET_SINES if has_sines else _QUIET
    for name in stored:
        for ending, factor in factors.items():
            if name.startswith("decoder.") and name.endswith(ending):
                stored[name] *= np.float32(factor)
    save_file(stored, path, metadata={"format": "pt"})


def conversations(given: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return messages that it takes, by the names of those that others take: a text is how the answer begins."""
    (wide, _), (_, tall, _, large, _) = given["one image"], given["two images"]
    return {"text": [large], "one image": [wide, "Dear "], "two images": [tall, "No. 12,"]}


def processor(folder: Path) -> Any:
    """Return transformers' processor."""
    from transformers import AutoTokenizer, DeiTImageProcessorPil, TrOCRProcessor, ViTImageProcessorPil

    kind = DeiTImageProcessorPil if "DeiT" in (folder / "processor_config.json").read_text() else ViTImageProcessorPil
    return TrOCRProcessor(kind.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def inputs(processor: Any, parts: list[Any]) -> Any:
    """Return what tower and decoder read; what the decoder does is the prompt, begun as `generate` begins it."""
    import torch

    image, *texts = parts
    said = processor.tokenizer("".join(texts), add_special_tokens=False)["input_ids"]
    return {
        "input_ids": torch.tensor([[EOS_ID, *said]]),
        "pixel_values": processor(images=image, return_tensors="pt")["pixel_values"],
    }


def model(folder: Path) -> Any:
    """Return transformers' model, called with the ids of the decoder.

    Raises:
        ValueError: A weight is missing or left over.
    """
    from transformers import VisionEncoderDecoderModel

    whole, found = VisionEncoderDecoderModel.from_pretrained(folder, output_loading_info=True)
    found = {kind: {name for name in names if ".pooler." not in name} for kind, names in found.items()}
    if any(found.values()):
        raise ValueError(f"{folder} is not what the model wants: {found}")
    whole.eval()
    places = whole.decoder.model.decoder.embed_positions
    if hasattr(places, "weights"):  # transformers 5.23 makes the sines on the meta device and leaves them there
        places.weights = places.get_embedding(*places.weights.shape, places.padding_idx)

    def answered(input_ids: Any, pixel_values: Any, attention_mask: Any) -> Any:
        return whole(pixel_values=pixel_values, decoder_input_ids=input_ids, use_cache=False)

    return answered


def _shapes(config: Config) -> Shapes:
    tower, words = config["encoder"], config["decoder"]
    size, inner, side = tower["hidden_size"], tower["intermediate_size"], tower["patch_size"]
    is_distilled, root = tower["model_type"] == "deit", "encoder."
    num_rows = (tower["image_size"] // side) ** 2 + 1 + is_distilled
    shapes: Shapes = {
        f"{root}embeddings.cls_token": (1, 1, size),
        f"{root}embeddings.position_embeddings": (1, num_rows, size),
        f"{root}embeddings.patch_embeddings.projection.weight": (size, 3, side, side),
        f"{root}embeddings.patch_embeddings.projection.bias": (size,),
        **norm_shapes(size, f"{root}layernorm"),
    }
    if is_distilled:
        shapes[f"{root}embeddings.distillation_token"] = (1, 1, size)
    for layer in (f"{root}encoder.layer.{number}." for number in range(tower["num_hidden_layers"])):
        for name in ("query", "key", "value"):
            shapes |= linear_shapes(f"{layer}attention.attention.{name}", size, size, bias=tower["qkv_bias"])
        shapes |= linear_shapes(f"{layer}attention.output.dense", size, size)
        shapes |= linear_shapes(f"{layer}intermediate.dense", inner, size)
        shapes |= linear_shapes(f"{layer}output.dense", size, inner)
        shapes |= norm_shapes(size, f"{layer}layernorm_before", f"{layer}layernorm_after")
    width, across = words["d_model"], words["cross_attention_hidden_size"]
    if across is None and width != size:
        shapes |= linear_shapes("enc_to_dec_proj", width, size)
    if not words["tie_word_embeddings"]:
        shapes["decoder.output_projection.weight"] = (words["vocab_size"], width)
    return shapes | bart_decoder_shapes(words, across or width)


def bart_decoder_shapes(words: Config, across: int) -> Shapes:
    """Name the weights of a decoder of BART's kind; `across` is the width of what it looks at."""
    width, inner, root = words["d_model"], words["decoder_ffn_dim"], "decoder.model.decoder."
    shapes: Shapes = {f"{root}embed_tokens.weight": (words["vocab_size"], width)}
    if words.get("use_learned_position_embeddings", True):
        shapes[f"{root}embed_positions.weight"] = (words["max_position_embeddings"] + 2, width)
    if words.get("layernorm_embedding", True):
        shapes |= norm_shapes(width, f"{root}layernorm_embedding")
    for layer in (f"{root}layers.{number}." for number in range(words["decoder_layers"])):
        for attention, columns in (("self_attn", width), ("encoder_attn", across)):
            for name in ("k_proj", "v_proj"):
                shapes |= linear_shapes(f"{layer}{attention}.{name}", width, columns)
            for name in ("q_proj", "out_proj"):
                shapes |= linear_shapes(f"{layer}{attention}.{name}", width, width)
            shapes |= norm_shapes(width, f"{layer}{attention}_layer_norm")
        shapes |= linear_shapes(f"{layer}fc1", inner, width) | linear_shapes(f"{layer}fc2", width, inner)
        shapes |= norm_shapes(width, f"{layer}final_layer_norm")
    return shapes
