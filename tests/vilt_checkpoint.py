"""Tiny ViLT checkpoints with random weights, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import RESCALING, save_model, save_processor, write_json
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
]


def config(**changes: Any) -> Config:
    """Return a tiny config; arguments override it."""
    return {
        "architectures": ["ViltForImageAndTextRetrieval"],
        "model_type": "vilt",
        "vocab_size": len(WORDS),
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 56,
        "max_position_embeddings": 24,
        "image_size": 24,
        "patch_size": 8,
        "layer_norm_eps": 1e-12,
        **changes,
    }


def shapes(raw: Config) -> Shapes:
    """Name the weights."""
    size, inner, patch = raw["hidden_size"], raw["intermediate_size"], raw["patch_size"]
    text = "vilt.embeddings.text_embeddings."
    found: Shapes = {
        f"{text}word_embeddings.weight": (raw["vocab_size"], size),
        f"{text}position_embeddings.weight": (raw["max_position_embeddings"], size),
        f"{text}token_type_embeddings.weight": (2, size),
        "vilt.embeddings.cls_token": (1, 1, size),
        "vilt.embeddings.position_embeddings": (1, (raw["image_size"] // patch) ** 2 + 1, size),
        "vilt.embeddings.patch_embeddings.projection.weight": (size, 3, patch, patch),
        "vilt.embeddings.patch_embeddings.projection.bias": (size,),
        "vilt.embeddings.token_type_embeddings.weight": (2, size),
        **norm_shapes(size, f"{text}LayerNorm", "vilt.layernorm"),
        **linear_shapes("vilt.pooler.dense", size, size),
        **linear_shapes("rank_output", 1, size),
    }
    for layer in (f"vilt.encoder.layer.{number}." for number in range(raw["num_hidden_layers"])):
        for part in ("query", "key", "value"):
            found |= linear_shapes(f"{layer}attention.attention.{part}", size, size)
        found |= linear_shapes(f"{layer}attention.output.dense", size, size)
        found |= linear_shapes(f"{layer}intermediate.dense", inner, size)
        found |= linear_shapes(f"{layer}output.dense", size, inner)
        found |= norm_shapes(size, f"{layer}layernorm_before", f"{layer}layernorm_after")
    return found


def save(folder: Path, raw: Config | None = None) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    raw = raw or config()
    save_model(folder, raw, shapes(raw))
    side = raw["image_size"]
    images = {
        "image_processor_type": "ViltImageProcessor",
        "size": {"shortest_edge": side},
        "size_divisor": raw["patch_size"],
        "do_resize": True,
        "do_pad": True,
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        **RESCALING,
    }
    save_processor(folder, "ViltProcessor", images)
    backend = Tokenizer(models.WordPiece({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": raw["max_position_embeddings"]}
    write_json(folder / "tokenizer_config.json", {**settings, **names})
