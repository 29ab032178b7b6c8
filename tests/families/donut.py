"""Tiny Donut checkpoints: Swin's shifted windows over pages that are no squares, and mBART's decoder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from checkpoints import RESCALING, save_byte_tokenizer, save_model, save_processor
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, processors
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes

BOS, PAD, EOS = "<s>", "<pad>", "</s>"
MARKS = ["<s_docvqa>", "<s_question>", "</s_question>", "<s_answer>", "</s_answer>", "<sep/>", "<yes/>", "<s_receipt>"]
CONTROL = [BOS, PAD, EOS, *MARKS]
BOS_ID, PAD_ID, EOS_ID = range(256, 259)
START_ID = 256 + CONTROL.index("<s_receipt>")
IDS = {"bos_token_id": BOS_ID, "pad_token_id": PAD_ID, "eos_token_id": EOS_ID}
TAKES_VIDEOS = False


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "filled-windows-odd-maps-projected": _config(
            {"image_size": [76, 52], "embed_dim": 12, "depths": [2, 3], "num_heads": [2, 3], "window_size": 4}
        ),
        "one-window-wide-same-width-unscaled": _config(
            {
                "image_size": [24, 48],
                "patch_size": 2,
                "embed_dim": 20,
                "depths": [2, 2],
                "num_heads": [1, 4],
                "window_size": 6,
                "mlp_ratio": 1.5,
                "qkv_bias": False,
            },
            {"d_model": 40, "decoder_attention_heads": 5, "scale_embedding": False, "tie_word_embeddings": False},
        ),
    }


def _config(vision: Config, text: Config | None = None) -> Config:
    tower = {"model_type": "donut-swin", "patch_size": 4, "mlp_ratio": 2.0, "qkv_bias": True, **vision}
    words = {
        "model_type": "mbart",
        "d_model": 48,
        "decoder_layers": 2,
        "decoder_attention_heads": 3,
        "decoder_ffn_dim": 56,
        "encoder_layers": 1,
        "vocab_size": 256 + len(CONTROL) + 2,
        "max_position_embeddings": 112,
        "scale_embedding": True,
        "add_final_layer_norm": True,
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
        "decoder_start_token_id": START_ID,
        "encoder": tower,
        "decoder": words,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a chat template, as published."""
    save_model(folder, config, _shapes(config))
    _complete(folder / "model.safetensors", config["encoder"])
    height, width = config["encoder"]["image_size"]
    images = {
        "image_processor_type": "DonutImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,
        "do_thumbnail": True,
        "do_align_long_axis": config["encoder"]["patch_size"] == 2,
        "do_pad": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        **RESCALING,
    }
    save_processor(folder, "DonutProcessor", images)
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, bos_token=BOS, eos_token=EOS)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    around = [(BOS, BOS_ID), (EOS, EOS_ID)]
    backend.post_processor = processors.TemplateProcessing(f"{BOS} $A {EOS}", special_tokens=around)
    backend.save(str(folder / "tokenizer.json"))


def _complete(path: Path, tower: Config) -> None:
    """Add the numbers of places in a window, as checkpoints hold them, and enlarge what each head adds by them."""
    window = tower["window_size"]
    places = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij"), -1).reshape(-1, 2)
    apart = places[:, None] - places[None] + window - 1
    index = (apart[..., 0] * (2 * window - 1) + apart[..., 1]).astype(np.int64)
    stored = load_file(path)
    for name in list(stored):
        if name.endswith("relative_position_bias_table"):
            stored[name.replace("bias_table", "index")] = index
            noise = np.random.default_rng(len(stored)).standard_normal(stored[name].shape)
            stored[name] = (0.3 * noise).astype(np.float32)
        if ".decoder." in name and name.endswith("out_proj.weight"):
            stored[name] *= np.float32(0.25)
        if name.endswith("embed_positions.weight"):
            stored[name] *= np.float32(8)
    save_file(stored, path, metadata={"format": "pt"})


def conversations(given: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return messages that it takes, by the names of those that others take."""
    (wide, _), (_, tall, _, large, _) = given["one image"], given["two images"]
    return {
        "text": [large],
        "one image": [wide, "<s_receipt><s_question>"],
        "two images": [tall, "What is the total?"],
    }


def processor(folder: Path) -> Any:
    """Return transformers' processor."""
    from transformers import AutoTokenizer, DonutImageProcessorPil, DonutProcessor

    return DonutProcessor(DonutImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def inputs(processor: Any, parts: list[Any]) -> Any:
    """Return what tower and decoder read; a question is written as the model's users write it."""
    image, *texts = parts
    asked = "".join(texts) or "<s_receipt>"
    if "<s_" not in asked:
        asked = f"<s_docvqa><s_question>{asked}</s_question><s_answer>"
    made = processor(images=image, text=asked, return_tensors="pt")
    return {"input_ids": made["input_ids"], "pixel_values": made["pixel_values"]}


def _trocr() -> ModuleType:
    spec = importlib.util.spec_from_file_location("family_trocr_parts", Path(__file__).parent / "trocr.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model(folder: Path) -> Any:
    """Return transformers' model, called with the ids of the decoder."""
    return _trocr().model(folder)


def _shapes(config: Config) -> Shapes:
    tower, words, root = config["encoder"], config["decoder"], "encoder."
    size, side = tower["embed_dim"], tower["patch_size"]
    shapes: Shapes = {
        f"{root}embeddings.patch_embeddings.projection.weight": (size, 3, side, side),
        f"{root}embeddings.patch_embeddings.projection.bias": (size,),
        **norm_shapes(size, f"{root}embeddings.norm"),
    }
    for stage, (depth, heads) in enumerate(zip(tower["depths"], tower["num_heads"], strict=True)):
        at, inner = f"{root}encoder.layers.{stage}.", int(tower["mlp_ratio"] * size)
        for block in (f"{at}blocks.{number}." for number in range(depth)):
            for name in ("query", "key", "value"):
                shapes |= linear_shapes(f"{block}attention.self.{name}", size, size, bias=tower["qkv_bias"])
            table = (2 * tower["window_size"] - 1) ** 2, heads
            shapes[f"{block}attention.self.relative_position_bias_table"] = table
            shapes |= linear_shapes(f"{block}attention.output.dense", size, size)
            shapes |= linear_shapes(f"{block}intermediate.dense", inner, size)
            shapes |= linear_shapes(f"{block}output.dense", size, inner)
            shapes |= norm_shapes(size, f"{block}layernorm_before", f"{block}layernorm_after")
        if stage < len(tower["depths"]) - 1:
            shapes |= linear_shapes(f"{at}downsample.reduction", 2 * size, 4 * size, bias=False)
            shapes |= norm_shapes(4 * size, f"{at}downsample.norm")
            size *= 2
    width = words["d_model"]
    if width != size:
        shapes |= linear_shapes("enc_to_dec_proj", width, size)
    shapes |= norm_shapes(width, "decoder.model.decoder.layer_norm")
    if not words["tie_word_embeddings"]:
        shapes["decoder.lm_head.weight"] = (words["vocab_size"], width)
    return shapes | _trocr().bart_decoder_shapes(words, width)
