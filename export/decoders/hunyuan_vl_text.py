"""HunyuanOCR's decoder (arXiv 2511.19575): a Llama turned by several axes, its queries and keys normed behind that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import DecoderConfig, Raw, read_sizes
from export.decoders import llama
from export.decoders.decoder import Decoder
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import DecoderLayer
from export.nn.dialect import Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module
from export.nn.norms import RMSNorm
from export.nn.rotary import Angles, rotary_angles_by_axis

DEFAULTS: Raw = {**llama.DEFAULTS, "vocab_size": 290_943, "rms_norm_eps": 1e-5}
_OLDER = (("head_dim", "attention_head_dim"), ("vocab_size", "org_vocab_size"))
_NAMES = ("mrope_section", "xdrope_section")
_LEAST_AXES = 3


class HunYuanVLText(Decoder):
    """`model_type` hunyuan_vl_text.

    Args:
        config: Sizes.
        sections: How many pairs of a head turn by each axis.
    """

    def __init__(self, config: DecoderConfig, sections: tuple[int, ...]) -> None:
        super().__init__(config)
        self.sections = sections

    @property
    def axes(self) -> tuple[int, ...]:
        """Sizes before [B, T] of `position_ids`: as many as there are sections."""
        return (len(self.sections),)

    @classmethod
    def read(cls, raw: Raw) -> HunYuanVLText:
        """Return the decoder that a text config describes.

        Raises:
            UnsupportedConfigError: Sections that are not pairs of a head, or angles of another kind.
        """
        older = {name: raw[old] for name, old in _OLDER if raw.get(old) is not None and raw.get(name) is None}
        given: dict[str, Any] = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
        kind = given.get("rope_type", given.get("type", "default"))
        plain = {**given, "rope_type": "dynamic" if kind == "xdrope" else kind}
        plain["rope_theta"] = given.get("rope_theta") or raw.get("rope_theta", 10_000.0)
        merged = {**DEFAULTS, **raw, **older, "rope_scaling": None, "rope_parameters": plain, "mlp_bias": False}
        config = read_sizes(merged, qkv_bias=bool(raw.get("attention_bias", False)))
        alpha, size = given.get("alpha"), config.head_size
        if alpha and plain["rope_type"] == "dynamic":  # NTK by a fixed factor: another base for all positions
            theta = config.rope.theta * float(alpha) ** (size / (size - 2))
            config = replace(config, rope=replace(config.rope, theta=theta))
        return cls(config, _sections(given, size))

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention whose queries and keys are normed once they are turned, and a gated feed-forward."""
        config = self.config
        norms = [
            RMSNorm(config.head_size, config.rms_norm_eps, dialect, name=name)
            for name in ("query_layernorm", "key_layernorm")
        ]
        attention = CachedAttention(config, dialect, number, (norms[0], norms[1]), norms_turned=True)
        return DecoderLayer(config, dialect, attention, GatedMLP(config))

    def angles(self, op: OpBuilder, position_ids: ir.Value) -> tuple[Angles, ...]:
        """Return the angles of tokens at `position_ids` [axes, B, T]."""
        config = self.config
        by_axis: npt.NDArray[np.int64] = np.repeat(np.arange(len(self.sections)), self.sections)
        return (rotary_angles_by_axis(op, position_ids, config.rope, config.head_size, by_axis),)


def _sections(given: Raw, head_size: int) -> tuple[int, ...]:
    """Return how many pairs of a head turn by each axis.

    Raises:
        UnsupportedConfigError: They are fewer than three, no whole numbers, or not all pairs of a head.
    """
    stated = next((given[name] for name in _NAMES if given.get(name) is not None), ())
    sections = tuple(int(each) for each in stated)
    if list(sections) != list(stated) or len(sections) < _LEAST_AXES or sum(sections) != head_size // 2:
        raise UnsupportedConfigError(
            f"mrope_section {list(stated)}: wanted are {_LEAST_AXES} numbers of pairs or more, {head_size // 2} in "
            f"all, as a head has {head_size} numbers"
        )
    return sections
