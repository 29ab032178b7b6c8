"""GGUF files of a tiny Llama decoder, in any type that the gguf package writes.

Tests reach this through the fixture `gguf_files` of tests/conftest.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
"""Of the text config that the files fit."""
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


class Maker:
    """Writes GGUF files of the checkpoint's sizes."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder = folder
        self.checkpoint = checkpoint
        self.rng = np.random.default_rng(3)

    def write(self, kind: Kind, table: Kind, **others: Kind) -> Path:
        """Return a new file whose matrices are of a type, the table of another, and single ones of others."""
        path = self.folder / f"{kind.name}-{table.name}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(1)
        writer.add_embedding_length(64)
        writer.add_feed_forward_length(96)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        self._add(writer, "token_embd", (self.vocab_size, 64), table)
        for norm in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
            writer.add_tensor(f"{norm}.weight", 1 + 0.1 * self.rng.standard_normal(64).astype(np.float32))
        shapes = {
            "attn_k": (32, 64),
            "attn_v": (32, 64),
            "ffn_gate": (96, 64),
            "ffn_up": (96, 64),
            "ffn_down": (64, 96),
        }
        for name in MATRICES:
            self._add(writer, f"blk.0.{name}", shapes.get(name, (64, 64)), others.get(name, kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    @property
    def vocab_size(self) -> int:
        return int(json.loads((self.checkpoint / "config.json").read_text())["text_config"]["vocab_size"])

    def _add(self, writer: gguf.GGUFWriter, name: str, shape: tuple[int, int], kind: Kind) -> None:
        values = (0.4 * self.rng.standard_normal(shape)).astype(np.float32)
        data = gguf.quants.quantize(values, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
