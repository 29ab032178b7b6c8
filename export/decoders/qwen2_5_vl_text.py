"""The decoder of Qwen2-VL and Qwen2.5-VL (arXiv 2409.12191, 2502.13923): Qwen2 turned by time, height and width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import DecoderConfig, Raw, read_sizes
from export.decoders.llama import Llama
from export.decoders.qwen2 import refuse_windows
from export.nn.rotary import Angles, rotary_angles_by_axis

DEFAULTS: Raw = {
    "vocab_size": 152_064,
    "hidden_size": 8192,
    "intermediate_size": 29_568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
}
_DEFAULT_SECTIONS = (16, 24, 24)


class Qwen25VLText(Llama):
    """`model_type` qwen2_5_vl_text and qwen2_vl_text.

    Args:
        config: Sizes.
        axes: [C/2] the axis by which each pair of a head turns.
    """

    position_axes = (3,)

    def __init__(self, config: DecoderConfig, axes: npt.NDArray[np.int64]) -> None:
        super().__init__(config)
        self._axes = axes

    @classmethod
    def read(cls, raw: Raw) -> Qwen25VLText:
        """Return the decoder that a text config describes."""
        refuse_windows(raw)
        config = read_sizes({**DEFAULTS, **raw}, qkv_bias=True)
        sections = read_sections(raw, _DEFAULT_SECTIONS, config.head_size)
        return cls(config, np.repeat(np.arange(len(sections)), sections))

    def angles(self, op: OpBuilder, position_ids: ir.Value) -> tuple[Angles, ...]:
        """Return the angles of tokens at `position_ids` [3, B, T]."""
        config = self.config
        return (rotary_angles_by_axis(op, position_ids, config.rope, config.head_size, self._axes),)


def read_sections(raw: Raw, default: Sequence[int], head_size: int) -> tuple[int, ...]:
    """Return how many pairs of a head turn by each of the three axes.

    Raises:
        UnsupportedConfigError: They are not three, or not all pairs of a head.
    """
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    sections = tuple(rope.get("mrope_section", default))
    if len(sections) != 3 or sum(sections) != head_size // 2 or min(sections) < 0:
        raise UnsupportedConfigError(
            f"mrope_section {list(sections)}: wanted are three numbers of pairs, {head_size // 2} in all, as a head "
            f"has {head_size} numbers"
        )
    return sections
