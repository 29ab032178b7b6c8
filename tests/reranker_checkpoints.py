"""Tiny checkpoints that score two texts, with random weights, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import save_model, write_json
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [*SPECIAL, *LETTERS, *(f"##{c}" for c in LETTERS)]
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS]
_SIZES = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 56}
_ONE = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
# Pairs of the drawn weights should not all score the same, nor all 0 or 1
_HEAD_GAIN = 1.5


def config(kind: str, **changes: Any) -> Config:
    """Return a tiny config of "bert", "xlm-roberta", "roberta" or "modernbert"; arguments override it."""
    own: Config = {
        "bert": {
            "architectures": ["BertForSequenceClassification"],
            "vocab_size": len(WORDS),
            "max_position_embeddings": 48,
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
            "pad_token_id": 0,
        },
        "xlm-roberta": {
            "architectures": ["XLMRobertaForSequenceClassification"],
            "vocab_size": len(PIECES),
            "max_position_embeddings": 50,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
            "pad_token_id": 1,
        },
        "modernbert": {
            "architectures": ["ModernBertForSequenceClassification"],
            "vocab_size": len(WORDS),
            "max_position_embeddings": 48,
            "global_attn_every_n_layers": 2,
            "local_attention": 6,
            "num_hidden_layers": 3,
            "pad_token_id": 0,
        },
    }[{"roberta": "xlm-roberta"}.get(kind, kind)]
    if kind == "roberta":
        own["architectures"] = ["RobertaForSequenceClassification"]
    return {"model_type": kind, **_SIZES, **_ONE, **own, **changes}


def save(folder: Path, kind: str, **changes: Any) -> Config:
    """Write a whole checkpoint into `folder`, in float32; return its config."""
    raw = config(kind, **changes)
    shapes = _modernbert_shapes(raw) if kind == "modernbert" else _bert_shapes(raw)
    save_model(folder, raw, shapes)
    weights = load_file(folder / "model.safetensors")
    near_one = {name: 1 + each for name, each in weights.items() if name.endswith("LayerNorm.weight")}
    head = "classifier.out_proj.weight" if "classifier.out_proj.weight" in weights else "classifier.weight"
    save_file({**weights, **near_one, head: _HEAD_GAIN * weights[head]}, folder / "model.safetensors", {"format": "pt"})
    _save_tokenizer(folder, raw)
    return raw


def _save_tokenizer(folder: Path, raw: Config) -> None:
    has_pieces = raw["model_type"].endswith("roberta")
    backend = _pieces() if has_pieces else _words(by_type=raw["model_type"] == "bert")
    backend.save(str(folder / "tokenizer.json"))
    if has_pieces:
        names = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
        names |= {"bos_token": "<s>", "eos_token": "</s>"}
        kind, longest = "XLMRobertaTokenizer", raw["max_position_embeddings"] - 2
    else:
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        kind = "BertTokenizer" if raw["model_type"] == "bert" else "TokenizersBackend"
        longest = raw["max_position_embeddings"]
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": kind, "model_max_length": longest, **names})


def _words(*, by_type: bool) -> Tokenizer:
    backend = Tokenizer(models.WordPiece({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    second = 1 if by_type else 0
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B:{second} [SEP]:{second}",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    backend.add_special_tokens(SPECIAL)
    return backend


def _pieces() -> Tokenizer:
    backend = Tokenizer(models.Unigram([(piece, -1.0) for piece in PIECES], unk_id=3, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    backend.add_special_tokens(PIECES[:4])
    return backend


def _bert_shapes(raw: Config) -> Shapes:
    size, inner = raw["hidden_size"], raw["intermediate_size"]
    top = "bert." if raw["model_type"] == "bert" else "roberta."
    found: Shapes = {
        f"{top}embeddings.word_embeddings.weight": (raw["vocab_size"], size),
        f"{top}embeddings.position_embeddings.weight": (raw["max_position_embeddings"], size),
        f"{top}embeddings.token_type_embeddings.weight": (raw["type_vocab_size"], size),
        **norm_shapes(size, f"{top}embeddings.LayerNorm"),
    }
    for layer in (f"{top}encoder.layer.{number}." for number in range(raw["num_hidden_layers"])):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            found |= linear_shapes(f"{layer}attention.{part}", size, size)
        found |= linear_shapes(f"{layer}intermediate.dense", inner, size)
        found |= linear_shapes(f"{layer}output.dense", size, inner)
        found |= norm_shapes(size, f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm")
    if top == "bert.":
        return found | linear_shapes("bert.pooler.dense", size, size) | linear_shapes("classifier", 1, size)
    return found | linear_shapes("classifier.dense", size, size) | linear_shapes("classifier.out_proj", 1, size)


def _modernbert_shapes(raw: Config) -> Shapes:
    size = raw["hidden_size"]
    return {
        **modernbert_tower_shapes(raw, "model."),
        "head.dense.weight": (size, size),
        "head.norm.weight": (size,),
        **linear_shapes("classifier", 1, size),
    }


def modernbert_tower_shapes(raw: Config, top: str) -> Shapes:
    """Name the weights of a tower without biases."""
    size, inner = raw["hidden_size"], raw["intermediate_size"]
    found: Shapes = {
        f"{top}embeddings.tok_embeddings.weight": (raw["vocab_size"], size),
        f"{top}embeddings.norm.weight": (size,),
        f"{top}final_norm.weight": (size,),
    }
    for number in range(raw["num_hidden_layers"]):
        layer = f"{top}layers.{number}."
        found |= {f"{layer}attn.Wqkv.weight": (3 * size, size), f"{layer}attn.Wo.weight": (size, size)}
        found |= {f"{layer}mlp.Wi.weight": (2 * inner, size), f"{layer}mlp.Wo.weight": (size, inner)}
        found |= {f"{layer}mlp_norm.weight": (size,)}
        if number:
            found |= {f"{layer}attn_norm.weight": (size,)}
    return found
