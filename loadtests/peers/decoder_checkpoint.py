"""The decoder of a SmolVLM checkpoint as a Llama checkpoint of its own, for systems that take no towers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (numpy knows bfloat16 by it)
from safetensors import safe_open
from safetensors.numpy import save_file

_DECODER = "model.text_model."
_COPIED = ("tokenizer_config.json", "generation_config.json", "chat_template.jinja")


def write_decoder_checkpoint(source: Path, output: Path) -> None:
    """Write a folder with the decoder's weights, config and tokenizer."""
    output.mkdir(parents=True)
    with safe_open(source / "model.safetensors", "numpy") as weights:
        names = [name for name in weights.keys() if name.startswith((_DECODER, "lm_head"))]  # noqa: SIM118
        kept = {name.replace(_DECODER, "model."): weights.get_tensor(name) for name in names}
    save_file(kept, output / "model.safetensors", {"format": "pt"})
    (output / "config.json").write_text(json.dumps(_config(source), indent=2), encoding="utf-8")
    _write_tokenizer(source, output)


def _config(source: Path) -> dict[str, Any]:
    whole = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text: dict[str, Any] = whole["text_config"]
    return {
        **text,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": whole["dtype"],
        "tie_word_embeddings": whole["tie_word_embeddings"],
        "rope_theta": text["rope_parameters"]["rope_theta"],  # where older readers look for it
    }


def _write_tokenizer(source: Path, output: Path) -> None:
    """Write the tokenizer, with one merge: readers of byte-pair vocabularies want some."""
    told = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = told["model"]["vocab"]
    free = 1 + max(*vocabulary.values(), *(each["id"] for each in told["added_tokens"]))
    vocabulary["ab"], told["model"]["merges"] = free, [["a", "b"]]
    (output / "tokenizer.json").write_text(json.dumps(told), encoding="utf-8")
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copy(source / name, output)
