"""The decoder of a checkpoint as a GGUF, in float32, with its byte tokenizer; llama.cpp's quantizer makes the others.

Rows of queries and keys are not put in llama.cpp's order: of random weights, speed alone is measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes  # noqa: F401  (numpy knows bfloat16 by it)
import numpy as np
from gguf import TokenType
from safetensors import safe_open

_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""The checkpoint's own, for contents that are plain text: what llama-server hands over."""

_MERGED = "ab"
"""The one token that is merged of two: llama.cpp wants a merge."""

_OF_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_DECODER = "model.text_model."
_OUTSIDE = {f"{_DECODER}embed_tokens": "token_embd", f"{_DECODER}norm": "output_norm", "lm_head": "output"}


def write_decoder(checkpoint: Path, output: Path) -> None:
    """Write the decoder and the tokenizer of a SmolVLM checkpoint."""
    text = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["text_config"]
    writer = gguf.GGUFWriter(output, "llama")
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_rope_freq_base(text["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(text["vocab_size"])
    _add_tokenizer(writer, json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8")), text)
    for name, value in decoder_weights(checkpoint):
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def decoder_weights(checkpoint: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield llama.cpp's names and float32 values."""
    with safe_open(checkpoint / "model.safetensors", "numpy") as weights:
        for name in weights.keys():  # noqa: SIM118  (a file is no mapping)
            own = _own_name(name.removesuffix(".weight"))
            if own:
                yield f"{own}.weight", np.ascontiguousarray(weights.get_tensor(name), np.float32)


def _own_name(name: str) -> str:
    """Return llama.cpp's name of a weight; empty for those of other parts."""
    if name.startswith(f"{_DECODER}layers."):
        _, layer, part = name.removeprefix(_DECODER).split(".", 2)
        return f"blk.{layer}.{_OF_LAYER[part]}"
    return _OUTSIDE.get(name, "")


def _add_tokenizer(writer: gguf.GGUFWriter, told: dict[str, Any], text: dict[str, Any]) -> None:
    """Add the byte-level vocabulary, with a merge, and filled up to the rows of the table."""
    special = {each["content"]: each["id"] for each in told["added_tokens"]}
    names = {number: name for name, number in {**told["model"]["vocab"], **special}.items()}
    names[1 + max(names)] = _MERGED
    tokens = [names.get(number, f"<unused_{number}>") for number in range(text["vocab_size"])]
    is_known = [number in names for number in range(len(tokens))]
    kinds = [
        TokenType.CONTROL if name in special else TokenType.NORMAL if known else TokenType.UNUSED
        for name, known in zip(tokens, is_known, strict=True)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(_MERGED)])
    writer.add_bos_token_id(text["bos_token_id"])
    writer.add_eos_token_id(text["eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(_TEMPLATE)
