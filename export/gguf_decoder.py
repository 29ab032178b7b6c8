"""A decoder's weights read from a llama.cpp file: GGUF, of any of its quantization types, TQ1_0 and TQ2_0 among them.

A GGUF file holds a language model alone; config, tokenizer and vision tower come from the checkpoint folder. Weights
are restored by the `gguf` package, which defines the types; the file is memory-mapped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from bundle.errors import CheckpointError, UnsupportedConfigError
from export.config import DecoderConfig
from export.gguf_blocks import block_codes
from export.lfs import require_content
from quant.rounding.block_codes import BlockCodes

_WHOLE = {"token_embd": "embed_tokens", "output_norm": "norm"}
_TABLE = "token_embd.weight"
_HEAD = "output.weight"
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FOUR_NORMS = {
    **_OF_LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_PADDING = re.compile(r"\[PAD\d+\]|<(unused|pad)_?\d*>")
"""Tokens that stand for rows of the table without a text."""
_MOST_OTHER_TOKENS = 0.1
_FLOAT32_ROUNDING = 1e-5
_ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of rotary frequencies, which the config's rope_scaling gives as well."""


@dataclass(frozen=True)
class _Architecture:
    """How llama.cpp writes a decoder (convert_hf_to_gguf).

    Attributes:
        of_layer: Names of a layer's tensors, and what they are called in checkpoints.
        permutes: Rows of queries and keys are reordered: it turns neighbouring pairs of a head where Hugging Face turns
            its halves.
        norm_offset: What its norms hold more than the checkpoint's.
        has_two_bases: Some layers turn by another base, so that the file's is not the config's one.
    """

    of_layer: Mapping[str, str]
    permutes: bool = False
    norm_offset: float = 0.0
    has_two_bases: bool = False


_ARCHITECTURES: Mapping[str, _Architecture] = {
    "llama": _Architecture(_OF_LAYER, permutes=True),
    "qwen2": _Architecture(_OF_LAYER),
    "gemma3": _Architecture(_FOUR_NORMS, norm_offset=1.0, has_two_bases=True),
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file.

    Attributes:
        data: Its rows, as stored.
        kind: How they are encoded.
        shape: Of the weight.
        heads: Heads whose rows alternate between the halves of a head; 0: rows are in their places.
        offset: What its numbers are above the checkpoint's.
    """

    data: npt.NDArray[Any]
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    heads: int
    offset: float = 0.0

    def read(self) -> npt.NDArray[np.float32]:
        """Return the weight, rows in Hugging Face's order."""
        restored = np.asarray(self._in_order(gguf.quants.dequantize(self.data, self.kind)), np.float32)
        return restored - np.float32(self.offset) if self.offset else restored

    def try_blocks(self) -> BlockCodes | None:
        """Return the weight's own codes and scales, rows in the same order; None where they cannot be held as such."""
        found = block_codes(self.data, self.kind) if len(self.shape) == 2 else None
        return None if found is None else found.map(self._in_order)

    def _in_order(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return an array of one row per output, in Hugging Face's order."""
        if not self.heads:
            return rows
        pairs = rows.reshape(self.heads, len(rows) // self.heads // 2, 2, *rows.shape[1:])
        return pairs.swapaxes(1, 2).reshape(rows.shape)


def read_gguf(file: Path, config: DecoderConfig, prefix: str) -> dict[str, GgufTensor]:
    """Return the tensors of a GGUF file under the names of the graphs, not yet read.

    Args:
        file: The GGUF.
        config: The decoder that the checkpoint's config.json describes.
        prefix: Where its layers stand, e.g. "model.text_model".

    Raises:
        CheckpointError: Not a GGUF file, or of another decoder than the config's.
        UnsupportedConfigError: An architecture or a type of tensors that is not read.
    """
    reader = open_gguf(file)
    name = read_field(reader, "general.architecture")
    if name not in _ARCHITECTURES or config.experts is not None:
        raise UnsupportedConfigError(
            f"{file.name} holds a decoder of architecture {name!r}; read are {', '.join(_ARCHITECTURES)}, dense"
        )
    _require_agreement(file, reader, str(name), config)
    architecture = _ARCHITECTURES[str(name)]
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads} if architecture.permutes else {}
    return {
        _graph_name(tensor.name, prefix, architecture): _tensor(file, tensor, heads, architecture)
        for tensor in reader.tensors
        if tensor.name != _ROPE_FACTORS or config.rope.kind != "llama3"
    }


def open_gguf(file: Path) -> gguf.GGUFReader:
    """Return a GGUF file, memory-mapped.

    Raises:
        CheckpointError: It is absent, cut short, or another kind of file.
    """
    try:
        require_content(file)
        return gguf.GGUFReader(file)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise CheckpointError(f"{file} cannot be read as a GGUF file: {error}") from error


def read_field(reader: gguf.GGUFReader, name: str) -> Any:
    """Return what a file says of a name; None where it says nothing."""
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _require_agreement(file: Path, reader: gguf.GGUFReader, architecture: str, config: DecoderConfig) -> None:
    """Check that file and config describe one decoder.

    Raises:
        CheckpointError: Names the first size in which they differ.
    """
    expected = {
        "block_count": config.num_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
    }
    for key, size in expected.items():
        found = read_field(reader, f"{architecture}.{key}")
        if found is not None and found != size:
            raise CheckpointError(
                f"{file.name} says {architecture}.{key} {found}, config.json {size}. They are not of one model."
            )
    numbers = {"attention.layer_norm_rms_epsilon": ("rms_norm_eps", config.rms_norm_eps)}
    if not _ARCHITECTURES[architecture].has_two_bases:
        numbers["rope.freq_base"] = ("rope_theta", config.rope.theta)
    for key, (setting, wanted) in numbers.items():
        told = read_field(reader, f"{architecture}.{key}")
        if told is not None and not math.isclose(told, wanted, rel_tol=_FLOAT32_ROUNDING):
            raise CheckpointError(
                f"{file.name} says {architecture}.{key} {told:g}, config.json {setting} {wanted:g}. They are not of "
                "one model."
            )
    rows = next((int(tensor.shape[1]) for tensor in reader.tensors if tensor.name == _TABLE), config.vocab_size)
    if rows != config.vocab_size:
        raise CheckpointError(
            f"{file.name} holds a vocabulary of {rows} tokens, config.json says text_config.vocab_size "
            f"{config.vocab_size}. Take a GGUF that was converted from this very checkpoint, added tokens and all."
        )


def require_vocabulary(file: Path, ids: Mapping[str, int]) -> None:
    """Check that a GGUF file's tokens are a tokenizer's; a few may have other names, as those for images do.

    Args:
        file: The GGUF; one without tokens is taken.
        ids: Token text to id.

    Raises:
        CheckpointError: More than a tenth are not; names the first.
    """
    texts = read_field(open_gguf(file), "tokenizer.ggml.tokens") or []
    own = {number: text for text, number in ids.items()}
    compared = [number for number, text in enumerate(texts) if number in own and not _PADDING.fullmatch(text)]
    others = [number for number in compared if own[number] != texts[number]]
    if len(others) > _MOST_OTHER_TOKENS * len(compared):
        first = others[0]
        raise CheckpointError(
            f"{file.name} was made for another tokenizer: token {first} is {texts[first]!r} there and {own[first]!r} "
            f"in the checkpoint; {len(others)} of {len(compared)} tokens differ. Take a GGUF that was converted from "
            "this very checkpoint."
        )


def _graph_name(name: str, prefix: str, architecture: _Architecture) -> str:
    """Return the graphs' name of a tensor; one that no graph has keeps its own, and is reported as surplus."""
    if name == _HEAD:
        return "lm_head.weight"
    stem, _, kind = name.rpartition(".")
    if stem in _WHOLE:
        return f"{prefix}.{_WHOLE[stem]}.{kind}"
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if layer is None or layer[2] not in architecture.of_layer:
        return name
    return f"{prefix}.layers.{layer[1]}.{architecture.of_layer[layer[2]]}.{kind}"


def _tensor(file: Path, tensor: gguf.ReaderTensor, heads: Mapping[str, int], architecture: _Architecture) -> GgufTensor:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    try:
        gguf.quants.dequantize(tensor.data[:1], tensor.tensor_type)
    except NotImplementedError as error:
        raise UnsupportedConfigError(
            f"{file.name} stores {tensor.name} as {tensor.tensor_type.name}, which the gguf package cannot restore; "
            "convert the file to another type with llama-quantize"
        ) from error
    stem = tensor.name.split(".")[-2] if "." in tensor.name else ""
    offset = architecture.norm_offset if stem.endswith("norm") else 0.0
    return GgufTensor(tensor.data, tensor.tensor_type, shape, heads.get(stem, 0), offset)
