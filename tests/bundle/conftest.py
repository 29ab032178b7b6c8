"""Photographs that scikit-learn and scikit-image bring along, and small real tokenizers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from PIL import Image
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

SPECIAL = ["<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"]
MARKERS = ["<global-img>", *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7))]
CORPUS = [
    "User: What is in this picture?<end_of_utterance>\nAssistant: A red square left of a blue circle.\n",
    "You are a helpful assistant. Describe the image, please!  Two  spaces.\n\nAnd a new paragraph.",
    "naïve café, größe, 日本語のテキスト, emoji 🙂🙃, ∞ ≤ ≥, def f(x): return x + 1",
] * 4


def _folder(package: str, inside: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / inside


PHOTOGRAPHS = {
    "china": _folder("sklearn", "datasets/images") / "china.jpg",
    "flower": _folder("sklearn", "datasets/images") / "flower.jpg",
    "astronaut": _folder("skimage", "data") / "astronaut.png",
    "coffee": _folder("skimage", "data") / "coffee.png",
    "chelsea": _folder("skimage", "data") / "chelsea.png",
    "camera": _folder("skimage", "data") / "camera.png",
    "text": _folder("skimage", "data") / "text.png",
}


@pytest.fixture(scope="session")
def photographs() -> dict[str, Image.Image]:
    """RGB photographs by name; grayscale ones converted."""
    return {name: Image.open(path).convert("RGB") for name, path in PHOTOGRAPHS.items()}


@pytest.fixture(scope="session")
def photograph_files() -> dict[str, Path]:
    """The same as files."""
    return PHOTOGRAPHS


def _byte_level() -> Backend:
    """GPT-2 style, as SmolLM2's: byte level BPE, markers added but not special."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    backend.add_tokens([AddedToken(text, normalized=False) for text in MARKERS])
    return backend


def _byte_fallback() -> Backend:
    """Llama style, as LLaVA-1.5's: words begin with U+2581, unknown characters fall back to bytes, BOS in front."""
    letters = sorted({letter for line in CORPUS for letter in line if letter.isascii() and letter not in " \n"})
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(first))}
    merges = []
    for left, right in [("▁", "a"), ("▁", "t"), ("h", "e"), ("▁t", "he"), ("i", "n"), ("▁", "i")]:
        vocab.setdefault(left + right, len(vocab))
        merges.append((left, right))
    backend = Backend(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>", "<image>")])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return backend


@pytest.fixture(scope="session")
def byte_level() -> Backend:
    return _byte_level()


@pytest.fixture(scope="session")
def byte_fallback() -> Backend:
    return _byte_fallback()
