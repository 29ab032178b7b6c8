"""Makes the exports of this folder: tiny models with random weights, exported by Optimum, and what torch makes of them.

Optimum wants another transformers than the tests, so this runs in an environment of its own:

    python -m venv /tmp/optimum && /tmp/optimum/bin/pip install torch==2.13.0
    /tmp/optimum/bin/pip install optimum-onnx==0.1.0 transformers==4.57.6 onnxruntime pillow
    /tmp/optimum/bin/python tests/data/optimum/make.py

`transformers_js` has the layout of that project's exports: a graph for each tower, below onnx/.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessor,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPTokenizerFast,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)
from transformers.models.clip.tokenization_clip import bytes_to_unicode

HERE = Path(__file__).resolve().parent
SIDE_PX, LETTERS = 28, "abcdefghijklmnopqrstuvwxyz"
TEXTS = ["a cat", "the hat on", "x"]
_VISION = {
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": SIDE_PX,
    "patch_size": 7,
}
_TEXT = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}


def _clip_tokenizer(folder: Path) -> int:
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "th", "at</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: at for at, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\na t</w>\n")
    CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24).save_pretrained(
        folder
    )
    return len(words)


def _bert_tokenizer(folder: Path) -> int:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *LETTERS,
        *(f"##{each}" for each in LETTERS),
        "the",
        "cat",
        "猫",
    ]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=24).save_pretrained(folder)
    return len(words)


def _siglip_tokenizer(folder: Path) -> int:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in "▁" + LETTERS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "model_input_names": ["input_ids"]}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **named).save_pretrained(folder)
    return len(pieces)


def _clip(folder: Path) -> Any:
    size = _clip_tokenizer(folder)
    text = {
        **_TEXT,
        "vocab_size": size,
        "max_position_embeddings": 24,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
    }
    text, vision = ({**sizes, "projection_dim": 20} for sizes in (text, _VISION))
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))
    square = {"height": SIDE_PX, "width": SIDE_PX}
    CLIPImageProcessor(size={"shortest_edge": SIDE_PX}, crop_size=square).save_pretrained(folder)
    return model


def _chinese_clip(folder: Path) -> Any:
    text = {**_TEXT, "vocab_size": _bert_tokenizer(folder), "max_position_embeddings": 24}
    model = ChineseCLIPModel(ChineseCLIPConfig(text_config=text, vision_config=_VISION, projection_dim=20))
    square = {"height": SIDE_PX, "width": SIDE_PX}
    ChineseCLIPImageProcessor(size=square, crop_size=square).save_pretrained(folder)
    return model


def _siglip(folder: Path) -> Any:
    text = {**_TEXT, "vocab_size": _siglip_tokenizer(folder), "max_position_embeddings": 16, "projection_size": 36}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=_VISION))
    model.logit_bias.data.fill_(-9.5)
    SiglipImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX}).save_pretrained(folder)
    return model


def _bert(folder: Path) -> Any:
    return BertModel(BertConfig(**_TEXT, vocab_size=_bert_tokenizer(folder), max_position_embeddings=24))


def _picture() -> Image.Image:
    y, x = np.mgrid[0:40, 0:52]
    return Image.fromarray(np.stack([x * 4, y * 6, (x * y) % 256], axis=-1).astype(np.uint8))


def _expected(model: Any, folder: Path) -> dict[str, Any]:
    """Return what torch makes of the picture and the texts, through transformers' own processors."""
    from transformers import AutoImageProcessor, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    padding = "max_length" if isinstance(model, SiglipModel) else True
    asked = tokenizer(TEXTS, padding=padding, return_tensors="pt")
    with torch.no_grad():
        if isinstance(model, BertModel):
            return {"last_hidden_state": model(**asked).last_hidden_state, "attention_mask": asked["attention_mask"]}
        pixels = AutoImageProcessor.from_pretrained(folder, use_fast=False)(_picture(), return_tensors="pt")
        found = model(**pixels, **{name: asked[name] for name in ("input_ids", "attention_mask") if name in asked})
    kept = {name: getattr(found, name) for name in ("image_embeds", "text_embeds", "logits_per_image")}
    return {**kept, "scale": model.logit_scale.exp().detach()}


def _towers_apart(model: Any, checkpoint: Path, folder: Path) -> None:
    """Write each tower as a graph of its own, as transformers.js has them."""
    (folder / "onnx").mkdir(parents=True)
    vision, text = (
        kind.from_pretrained(checkpoint).eval() for kind in (CLIPVisionModelWithProjection, CLIPTextModelWithProjection)
    )
    batch, both = {0: "batch_size"}, {0: "batch_size", 1: "sequence_length"}
    torch.onnx.export(
        vision,
        (torch.zeros(1, 3, SIDE_PX, SIDE_PX),),
        folder / "onnx" / "vision_model.onnx",
        dynamo=False,
        opset_version=14,
        input_names=["pixel_values"],
        output_names=["image_embeds", "last_hidden_state"],
        dynamic_axes={"pixel_values": batch, "image_embeds": batch, "last_hidden_state": batch},
    )
    torch.onnx.export(
        text,
        (torch.ones(1, 5, dtype=torch.int64),),
        folder / "onnx" / "text_model.onnx",
        dynamo=False,
        opset_version=14,
        input_names=["input_ids"],
        output_names=["text_embeds", "last_hidden_state"],
        dynamic_axes={"input_ids": both, "text_embeds": batch, "last_hidden_state": both},
    )
    for file in checkpoint.glob("*.json"):
        shutil.copyfile(file, folder / file.name)


def main() -> None:
    """Write every export beside this file."""
    for name, make in {"clip": _clip, "chinese_clip": _chinese_clip, "siglip": _siglip, "bert": _bert}.items():
        torch.manual_seed(7)
        with TemporaryDirectory() as scratch:
            checkpoint, target = Path(scratch), HERE / name
            shutil.rmtree(target, ignore_errors=True)
            model = make(checkpoint).eval()
            for weight in model.parameters():  # a random initialisation is so small that towers say nearly the same
                weight.data += 0.05 * torch.randn_like(weight)
            if hasattr(model, "logit_scale"):
                model.logit_scale.data.fill_(3.25)
            model.save_pretrained(checkpoint)
            task = "feature-extraction" if name == "bert" else "zero-shot-image-classification"
            tool = str(Path(sys.executable).with_name("optimum-cli"))
            subprocess.run([tool, "export", "onnx", "--model", scratch, "--task", task, str(target)], check=True)
            expected = _expected(model, checkpoint)
            np.savez_compressed(target / "expected.npz", **{key: value.numpy() for key, value in expected.items()})
            if name == "clip":
                shutil.rmtree(HERE / "transformers_js", ignore_errors=True)
                _towers_apart(model, checkpoint, HERE / "transformers_js")
                shutil.copyfile(target / "expected.npz", HERE / "transformers_js" / "expected.npz")
    _picture().save(HERE / "picture.png")


if __name__ == "__main__":
    main()
