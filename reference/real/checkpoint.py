"""A vision-language checkpoint around the real decoder, as transformers reads it; made without torch."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from bundle.directory import sha256_of
from bundle.errors import CheckpointError
from export.checkpoint import Checkpoint
from export.decoders.table import load_decoder
from export.gguf_decoder import open_gguf, read_field, read_gguf
from reference.real.tokens import CHAT_TEMPLATE, IMAGE, IMAGE_TOKENS, read_tokenizer
from reference.real.wheel import GGUF_SHA256

REFERENCE_TOWER = Path(__file__).resolve().parents[1] / "checkpoints" / "vlm"
_ROWS = 49_280
"""Of the token table, as in SmolVLM-256M, whose decoder this one is: 49,152 and the tokens for images, rounded up."""
_PREFIX = "model.text_model"
_TABLE = f"{_PREFIX}.embed_tokens.weight"
_TOWER, _CONNECTOR = "model.vision_model.", "model.connector."
_PROJECTION = f"{_CONNECTOR}modality_projection.proj.weight"
_SEED = 8
"""Of a connector that nobody trained."""
_BOS, _EOS, _UNKNOWN = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

Weights = dict[str, npt.NDArray[np.float32]]


def build_checkpoint(decoder: Path, folder: Path, vision: Path | None = None) -> None:
    """Write a SmolVLM checkpoint whose decoder and tokenizer are the GGUF's.

    Weights are float32, in which the GGUF's are exact; they take 0.54 GB. The rows of the image tokens, which the GGUF
    has not, are the mean of all others: no such token is ever likely. `folder` appears whole or not at all.

    Args:
        decoder: SmolLM2-135M-Instruct as GGUF; `reference.real.wheel` gives it.
        folder: What stands there is replaced.
        vision: A checkpoint folder with a trained tower and connector under SmolVLM's names, `config.json` and
            `processor_config.json`. None: the small reference model's tower and a random connector, with which
            answers about images mean nothing.

    Raises:
        CheckpointError: A file is absent, broken, or of other sizes than the rest.
    """
    reader = open_gguf(decoder)
    text, tokenizer = _text_config(reader), read_tokenizer(reader)
    source = Checkpoint.open(vision or REFERENCE_TOWER)
    weights = {**_vision_weights(source, text, is_trained=vision is not None), **_decoder_weights(decoder, text)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        aside = Path(scratch) / folder.name
        aside.mkdir()
        save_file(weights, aside / "model.safetensors", {"format": "pt"})
        _write_json(aside / "config.json", _config(source, text, tokenizer.get_vocab()[IMAGE]))
        _write_json(aside / "generation_config.json", {**_token_ids(text), "max_new_tokens": 256})
        shutil.copyfile(source.folder / "processor_config.json", aside / "processor_config.json")
        _write_tokenizer(aside, tokenizer, text["max_position_embeddings"])
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        aside.rename(folder)


def checkpoint_key(vision: Path | None = None) -> str:
    """Return a hex digest of all that `build_checkpoint` makes a checkpoint of: another one, another checkpoint."""
    source = vision or REFERENCE_TOWER
    files = [source / name for name in ("config.json", "processor_config.json", "model.safetensors")]
    parts = [GGUF_SHA256, *map(sha256_of, files), CHAT_TEMPLATE, *IMAGE_TOKENS, str(_ROWS), str(vision is not None)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _text_config(reader: gguf.GGUFReader) -> dict[str, Any]:
    """Return the decoder's config, of the file's own sizes but for the rows of the image tokens."""

    def size(name: str) -> Any:
        found = read_field(reader, f"llama.{name}")
        if found is None:
            raise CheckpointError(f"the GGUF names no llama.{name}: it is not the decoder that was asked for")
        return found

    return {
        "model_type": "llama",
        "vocab_size": _ROWS,
        "hidden_size": size("embedding_length"),
        "intermediate_size": size("feed_forward_length"),
        "num_hidden_layers": size("block_count"),
        "num_attention_heads": size("attention.head_count"),
        "num_key_value_heads": size("attention.head_count_kv"),
        "max_position_embeddings": size("context_length"),
        "rms_norm_eps": float(f"{size('attention.layer_norm_rms_epsilon'):.6g}"),  # it is stored as float32
        "rope_parameters": {"rope_type": "default", "rope_theta": size("rope.freq_base")},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": read_field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": read_field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": read_field(reader, "tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
    }


def _decoder_weights(file: Path, text: dict[str, Any]) -> Weights:
    own = load_decoder({**text, "vocab_size": len(read_field(open_gguf(file), "tokenizer.ggml.tokens"))}).config
    weights = {name: tensor.read() for name, tensor in read_gguf(file, own, _PREFIX).items()}
    table = weights[_TABLE]
    missing = text["vocab_size"] - len(table)
    if missing < len(IMAGE_TOKENS):
        raise CheckpointError(f"{file.name} has {len(table)} rows of tokens; at most {_ROWS - len(IMAGE_TOKENS)} fit")
    mean = table.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
    return {**weights, _TABLE: np.concatenate([table, np.repeat(mean, missing, axis=0)])}


def _vision_weights(source: Checkpoint, text: dict[str, Any], *, is_trained: bool) -> Weights:
    parts = (_TOWER, _CONNECTOR) if is_trained else (_TOWER,)
    weights = {name: tensor.read() for name, tensor in source.tensors.items() if name.startswith(parts)}
    if not is_trained:
        stored = source.tensors[_PROJECTION].shape
        drawn = np.random.default_rng(_SEED).standard_normal((text["hidden_size"], stored[1]))
        weights[_PROJECTION] = (drawn / stored[1] ** 0.5).astype(np.float32)
    found = weights[_PROJECTION].shape if _PROJECTION in weights else None
    if found is None or found[0] != text["hidden_size"]:
        raise CheckpointError(
            f"{source.folder} has {_PROJECTION} of shape {found}; the decoder takes features {text['hidden_size']} wide"
        )
    return weights


def _token_ids(text: dict[str, Any]) -> dict[str, int]:
    return {name: text[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _config(source: Checkpoint, text: dict[str, Any], image_token_id: int) -> dict[str, Any]:
    return {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "scale_factor": source.config.get("scale_factor", 2),
        "image_token_id": image_token_id,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "text_config": text,
        "vision_config": source.config["vision_config"],
        **_token_ids(text),
    }


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, max_tokens: int) -> None:
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    settings = {
        "tokenizer_class": "TokenizersBackend",
        "processor_class": "Idefics3Processor",
        "bos_token": _BOS,
        "eos_token": _EOS,
        "pad_token": _EOS,
        "unk_token": _UNKNOWN,
        "extra_special_tokens": list(IMAGE_TOKENS),
        "model_max_length": max_tokens,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
