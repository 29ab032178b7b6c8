"""Tiny BLIP checkpoints: one that captions, and one that answers questions which saw the image."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from blip_shapes import tower_shapes
from checkpoints import CLIP_MEAN, CLIP_STD, RESCALING, save_byte_tokenizer, save_model, save_processor, write_json
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, processors
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes

PAD, CLS, SEP = "[PAD]", "[CLS]", "[SEP]"
CONTROL = [PAD, CLS, SEP, "[MASK]"]
PAD_ID, CLS_ID, SEP_ID = range(256, 259)
DEC_ID = 256 + len(CONTROL)
"""Behind the tokenizer's vocabulary, as in published checkpoints."""
TAKES_VIDEOS = False


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "captions-of-a-wider-image": _config("BlipForConditionalGeneration"),
        "answers-of-three-layers": _config(
            "BlipForQuestionAnswering",
            {"hidden_size": 40, "num_attention_heads": 5, "num_hidden_layers": 3, "encoder_hidden_size": 40},
            {"hidden_size": 40, "num_attention_heads": 4, "patch_size": 6, "image_size": 30},
        ),
    }


def _config(architecture: str, text: Config | None = None, vision: Config | None = None) -> Config:
    tower = {
        "model_type": "blip_vision_model",
        "hidden_size": 36,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
        **(vision or {}),
    }
    words = {
        "model_type": "blip_text_model",
        "hidden_size": 48,
        "encoder_hidden_size": 36,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "vocab_size": DEC_ID + 2,
        "max_position_embeddings": 112,
        "bos_token_id": DEC_ID,
        "eos_token_id": 2,
        "pad_token_id": PAD_ID,
        "sep_token_id": SEP_ID,
        **(text or {}),
    }
    return {
        "architectures": [architecture],
        "model_type": "blip",
        "text_config": words,
        "vision_config": tower,
        "image_text_hidden_size": 12,
        "projection_dim": 8,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a chat template, as published."""
    save_model(folder, config, _shapes(config))
    _complete(folder / "model.safetensors")
    words = config["text_config"]
    ids = {name: words[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", ids)
    side = config["vision_config"]["image_size"]
    images = {"image_processor_type": "BlipImageProcessor", "size": {"height": side, "width": side}, "resample": 3}
    colours = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, **RESCALING}
    save_processor(folder, "BlipProcessor", {**images, "do_resize": True, **colours})
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, cls_token=CLS, sep_token=SEP)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    around = [(CLS, CLS_ID), (SEP, SEP_ID)]
    backend.post_processor = processors.TemplateProcessing(f"{CLS} $A {SEP}", special_tokens=around)
    backend.save(str(folder / "tokenizer.json"))


def _complete(path: Path) -> None:
    """Make what attention adds quiet beside tokens and their places, so that answers do not repeat themselves."""
    stored = load_file(path)
    for name in stored:
        if name.endswith("LayerNorm.weight"):
            stored[name] += np.float32(1)
        if name.startswith("text_decoder") and "attention.output.dense.weight" in name:
            stored[name] *= np.float32(0.25)
        if name == "text_decoder.bert.embeddings.position_embeddings.weight":
            stored[name] *= np.float32(2)
    save_file(stored, path, metadata={"format": "pt"})


def conversations(given: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return messages that it takes, by the names of those that others take."""
    (wide, _), (_, tall, _, large, _) = given["one image"], given["two images"]
    return {"text": [large, "how many?"], "one image": [wide, "a photograph of"], "two images": [tall, "what is it?"]}


def processor(folder: Path) -> Any:
    """Return transformers' processor, and whether the checkpoint answers questions."""
    from transformers import AutoTokenizer, BlipImageProcessorPil, BlipProcessor

    answers = "QuestionAnswering" in json.loads((folder / "config.json").read_text())["architectures"][0]
    return BlipProcessor(BlipImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)), answers


def inputs(processor: Any, parts: list[Any]) -> Any:
    """Return what encoder and decoder read, as `generate` makes it of what the processor gives."""
    import torch

    own, answers = processor
    image, text = parts
    made = own(images=image, text=text, return_tensors="pt")
    if answers:
        begun = torch.tensor([[DEC_ID]])
        return {"input_ids": begun, "question_ids": made["input_ids"], "pixel_values": made["pixel_values"]}
    ids = made["input_ids"][:, :-1].clone()
    ids[:, 0] = DEC_ID
    return {"input_ids": ids, "pixel_values": made["pixel_values"]}


def model(folder: Path) -> Any:
    """Return transformers' model, called with the ids of the decoder.

    Raises:
        ValueError: A weight is missing or left over.
    """
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    whole, found = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    if any(found.values()):
        raise ValueError(f"{folder} is not what BLIP wants: {found}")
    whole.eval()

    def answered(input_ids: Any, pixel_values: Any, attention_mask: Any, question_ids: Any = None) -> Any:
        if question_ids is None:
            return SimpleNamespace(logits=whole(pixel_values=pixel_values, input_ids=input_ids).logits)
        image = whole.vision_model(pixel_values=pixel_values).last_hidden_state
        asked = whole.text_encoder(input_ids=question_ids, encoder_hidden_states=image).last_hidden_state
        return whole.text_decoder(input_ids=input_ids, encoder_hidden_states=asked, is_decoder=True)

    return answered


def _shapes(config: Config) -> Shapes:
    words, head = config["text_config"], "text_decoder.cls.predictions."
    width, answers = words["hidden_size"], "QuestionAnswering" in config["architectures"][0]
    shapes: Shapes = {
        f"{head}bias": (words["vocab_size"],),
        **linear_shapes(f"{head}transform.dense", width, width),
        **norm_shapes(width, f"{head}transform.LayerNorm"),
    }
    shapes |= tower_shapes(config["vision_config"]) | bert_shapes(words, "text_decoder.bert.", words)
    return shapes | bert_shapes(words, "text_encoder.", words) if answers else shapes


def bert_shapes(words: Config, root: str, across: Config | None) -> Shapes:
    """Name the weights of a BERT; `across`: its layers look at rows of `encoder_hidden_size` numbers."""
    width, inner = words["hidden_size"], words["intermediate_size"]
    shapes: Shapes = {
        f"{root}embeddings.word_embeddings.weight": (words["vocab_size"], width),
        f"{root}embeddings.position_embeddings.weight": (words["max_position_embeddings"], width),
        **norm_shapes(width, f"{root}embeddings.LayerNorm"),
    }
    looked = {"attention": width} | ({} if across is None else {"crossattention": across["encoder_hidden_size"]})
    for layer in (f"{root}encoder.layer.{number}." for number in range(words["num_hidden_layers"])):
        for attention, columns in looked.items():
            shapes |= linear_shapes(f"{layer}{attention}.self.query", width, width)
            for name in ("key", "value"):
                shapes |= linear_shapes(f"{layer}{attention}.self.{name}", width, columns)
            shapes |= linear_shapes(f"{layer}{attention}.output.dense", width, width)
            shapes |= norm_shapes(width, f"{layer}{attention}.output.LayerNorm")
        shapes |= linear_shapes(f"{layer}intermediate.dense", inner, width)
        shapes |= linear_shapes(f"{layer}output.dense", width, inner)
        shapes |= norm_shapes(width, f"{layer}output.LayerNorm")
    return shapes
