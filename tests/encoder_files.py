"""Tiny checkpoints of dual encoders, written by transformers from a config, with weights drawn so that places differ.

tests/encoders/ has a file for each family, which says its configs and its processor's files by these functions.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from string import ascii_letters, digits, punctuation
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from weight_shapes import drawn_weight

Config = dict[str, Any]

CLIP_COLOURS = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF_COLOURS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
WORDS = ["a", "cat", "dog", "photo", "of", "the", "two", "red", "s", "##s", "##ing", "walk", "猫", "我"]
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BERT_WORDS = [*BERT_SPECIAL, *WORDS, *digits, *punctuation]
PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
GEMMA_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
UNIGRAM_PIECES = [
    *PIECES,
    ("▁a", -1.0),
    ("▁cat", -1.5),
    ("▁dog", -1.6),
    *((c, -4.0) for c in "▁" + ascii_letters + "猫,.'"),
]
TEXTS = ["a photo of a cat", "Two dogs, walking.", "a", "the red cat's photo of the dog: 猫 and 我", "x" * 9]


def save_model(folder: Path, config: Config, save_config: Config | None = None) -> None:
    """Write config and weights; `config` has `architectures`, and may leave out what has its default."""
    import transformers

    kind = getattr(transformers, config["architectures"][0])
    model = kind(kind.config_class.from_dict(json.loads(json.dumps(config))))
    draw(model)
    model.save_pretrained(folder)
    write_json(folder / "config.json", save_config or config)


def draw(model: Any, dtype: Any = None) -> None:
    """Give a model of torch weights that follow from their names and shapes, rounded to a dtype where one is given."""
    import torch

    state = model.state_dict()
    for name, weight in state.items():
        if weight.is_floating_point():
            drawn = torch.from_numpy(_drawn(name, tuple(weight.shape)))
            state[name] = drawn if dtype is None else drawn.to(dtype).float()
    model.load_state_dict(state)


def _drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("running_var"):
        return np.exp(drawn_weight(name, shape))
    if re.search(r"[_.]bn\.|batchnorm\.|\.identity\.", name):
        name = re.sub(r"bn\.|identity\.", "norm.", name)
    if name.endswith((".gamma", ".lambda1")) and len(shape) == 1:
        name = f"{name}.norm.weight"
    return drawn_weight(name.lower(), shape)


def write_json(path: Path, content: Config) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def save_images(folder: Path, kind: str, **settings: Any) -> None:
    """Write `preprocessor_config.json`."""
    write_json(folder / "preprocessor_config.json", {"image_processor_type": kind, **settings})


def cropped(side_px: int) -> Config:
    """Return settings of a crop out of the middle."""
    return {"size": {"shortest_edge": side_px}, "crop_size": square(side_px), **CLIP_COLOURS}


def stretched(side_px: int) -> Config:
    """Return settings of a stretch to a square."""
    return {"size": square(side_px), "do_center_crop": False, **CLIP_COLOURS}


def square(side_px: int) -> Config:
    return {"height": side_px, "width": side_px}


def save_bert_tokenizer(folder: Path, max_tokens: int, **settings: Any) -> None:
    """Write a WordPiece tokenizer of a few words, each character of others unknown."""
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(BERT_WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    around = [("[CLS]", 2), ("[SEP]", 3)]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    _save(folder, backend, BERT_SPECIAL)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    named = dict(zip(names, BERT_SPECIAL, strict=True))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "model_max_length": max_tokens, **named, **settings},
    )


def save_unigram_tokenizer(folder: Path, max_tokens: int, **settings: Any) -> None:
    """Write XLM-R's tokenizer with letters for pieces."""
    backend = Tokenizer(models.Unigram(UNIGRAM_PIECES, unk_id=3, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    around = [("<s>", 0), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=around)
    _save(folder, backend, [piece for piece, _ in PIECES])
    named = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    named |= {"pad_token": "<pad>", "mask_token": "<mask>"}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": max_tokens, **named, **settings},
    )


def save_gemma_tokenizer(folder: Path, max_tokens: int, **settings: Any) -> None:
    """Write SigLIP 2's tokenizer, Gemma's, with letters for words and without the bytes of what has none."""
    words = [*GEMMA_SPECIAL, *"▁abcdefghijklmnopqrstuvwxyz猫,.'"]
    vocab = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    _save(folder, backend, GEMMA_SPECIAL)
    named = {f"{word[1:-1]}_token": word for word in GEMMA_SPECIAL}
    own = {"padding_side": "right", "add_bos_token": False, "add_eos_token": True, "model_max_length": max_tokens}
    own |= {"model_input_names": ["input_ids"]}  # padding is read, as in training
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "Siglip2Tokenizer", **named, **own, **settings})


def _save(folder: Path, backend: Tokenizer, special: list[str]) -> None:
    backend.add_special_tokens(special)
    backend.save(str(folder / "tokenizer.json"))


def picture(seed: int, width_px: int, height_px: int) -> Image.Image:
    """Return an image of smooth colours and some noise, so that places differ."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((width_px, height_px))
    noise = rng.integers(-20, 20, (height_px, width_px, 3))
    return Image.fromarray(np.clip(np.asarray(small).astype(int) + noise, 0, 255).astype(np.uint8))


def pictures() -> list[Image.Image]:
    """Return images of several shapes, one of them without colours."""
    return [picture(1, 70, 37), picture(2, 33, 90).convert("L"), picture(3, 130, 128)]


def towers(model: Any, inputs: Any) -> tuple[Any, Any, Any]:
    """Return the vectors of images and texts, and the logits [I, B], of a model that has them."""
    given = model(**{key: inputs[key] for key in ("input_ids", "attention_mask", "pixel_values")})
    return given.image_embeds, given.text_embeds, given.logits_per_image


class Apart:
    """Transformers' image processor and tokenizer, as their files say, without what a processor's class adds."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        self.images = AutoImageProcessor.from_pretrained(folder, backend="pil")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def __call__(self, images: list[Image.Image], text: list[str], **options: Any) -> Any:
        seen = self.images(images, return_tensors=options["return_tensors"])
        return {**self.tokenizer(text, **options), **seen}
