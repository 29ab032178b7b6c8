"""Gemma 3's decoder (arXiv 2503.19786): Gemma 2's layers with normed queries and keys, and angles by kind of layer."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import DecoderConfig, Raw
from export.decoders import gemma2
from export.decoders.gemma import Gemma, GemmaNorm
from export.decoders.gemma2 import FULL, SLIDING, FourNorms, read_gemma, read_scale, read_windows
from export.nn.attention import CachedAttention
from export.nn.dialect import Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module
from export.nn.rotary import Angles, rotary_angles
from export.rope import RopeConfig

DEFAULTS: Raw = {
    **gemma2.DEFAULTS,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}
_DEFAULT_THETAS: Mapping[str, float] = {FULL: 1_000_000.0, SLIDING: 10_000.0}
_OLD_THETAS: Mapping[str, str] = {FULL: "rope_theta", SLIDING: "rope_local_base_freq"}
_DEFAULT_PATTERN = 6
_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_GLOBAL, _LOCAL = 0, 1
"""Of the decoder's angles."""


class Gemma3Text(Gemma):
    """`model_type` gemma3_text.

    Args:
        config: Sizes, with the rotary embedding of layers that see everything.
        local: The rotary embedding of the others.
        kinds: Of each layer, whether it is one of the others.
        windows: Rows that the tokens of each layer see; None: all.
        scale: Of scores.
    """

    def __init__(
        self,
        config: DecoderConfig,
        local: RopeConfig,
        kinds: tuple[bool, ...],
        windows: tuple[int | None, ...],
        scale: float,
    ) -> None:
        super().__init__(config)
        self._local, self._kinds, self._windows, self._scale = local, kinds, windows, scale

    @classmethod
    def read(cls, raw: Raw) -> Gemma3Text:
        """Return the decoder that a text config describes.

        Raises:
            UnsupportedConfigError: As of Gemma 2; or capped scores or logits, which transformers leaves as they are
                where the model sees images and caps where it does not.
        """
        merged = {**DEFAULTS, **raw}
        if capped := [key for key in _CAPS if merged[key]]:
            raise UnsupportedConfigError(
                f"text_config.{capped[0]} {merged[capped[0]]!r}: Gemma 3 has none; set it to null, or text_config."
                "model_type to gemma2 where that is what the weights are of"
            )
        ropes = {kind: _read_rope(merged, kind) for kind in (FULL, SLIDING)}
        whole = {**merged, "rope_parameters": ropes[FULL], "rope_scaling": None}
        pattern = int(merged.get("sliding_window_pattern") or _DEFAULT_PATTERN)
        kinds = read_windows({**merged, "max_position_embeddings": 1 << 62}, pattern)
        return cls(
            read_gemma(whole),
            RopeConfig.read({"rope_parameters": ropes[SLIDING]}),
            tuple(window is not None for window in kinds),
            read_windows(merged, pattern),
            read_scale(merged),
        )

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return self._scale

    def has_window(self, number: int) -> bool:
        """Return whether a layer is one of those with windows, however long."""
        return self._kinds[number]

    def angles_of(self, number: int) -> int:
        """Return which of the decoder's angles a layer turns by."""
        return _LOCAL if self._kinds[number] else _GLOBAL

    def window_of(self, number: int) -> int | None:
        """Return how many rows the tokens of a layer see; None: all."""
        return self._windows[number]

    def angles(self, op: OpBuilder, position_ids: ir.Value) -> tuple[Angles, ...]:
        """Return the angles of layers that see everything, and of the others."""
        size, ropes = self.config.head_size, (self.config.rope, self._local)
        names = ("rotary_global_frequencies", "rotary_local_frequencies")
        return tuple(
            rotary_angles(op, position_ids, *of_kind) for of_kind in zip(ropes, (size, size), names, strict=True)
        )

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention with norms of queries and keys, and a gated feed-forward, each between two norms."""
        config = self.config
        query_norm, key_norm = (GemmaNorm(config.head_size, config.rms_norm_eps, dialect) for _ in range(2))
        attention = CachedAttention(config, dialect, number, (query_norm, key_norm), scale=self._scale)
        return FourNorms(config, dialect, attention, GatedMLP(config), self.angles_of(number))


def _read_rope(merged: Raw, kind: str) -> dict[str, object]:
    """Return the rotary settings of a kind of layers, in transformers' newer spelling or its older one.

    In the older one, `rope_scaling` is of the layers that see everything.
    """
    of_kind = dict((merged.get("rope_parameters") or {}).get(kind) or {})
    older = dict(merged.get("rope_scaling") or {}) if kind == FULL else {}
    theta = merged.get(_OLD_THETAS[kind], _DEFAULT_THETAS[kind])
    return {"rope_type": "default", "rope_theta": theta, **of_kind, **older}
