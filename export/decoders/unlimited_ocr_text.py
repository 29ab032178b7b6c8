"""Unlimited-OCR's decoder: DeepSeek-OCR's, in which tokens of an answer see the prompt and the newest of the answer."""

from __future__ import annotations

from typing import ClassVar, Self

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.manifest import TensorSpec
from export.config import Raw
from export.decoders.deepseek_moe import DeepSeekMoe

_DEFAULTS: Raw = {
    "vocab_size": 129_280,
    "hidden_size": 1280,
    "intermediate_size": 6848,
    "num_hidden_layers": 12,
    "num_attention_heads": 10,
    "num_key_value_heads": 10,
    "max_position_embeddings": 32_768,
    "moe_intermediate_size": 896,
    "num_experts_per_tok": 6,
}
_WINDOW_TOKENS = 128
_NEAR, _FAR = "reference_sliding_attention", "full_attention"


class UnlimitedOcrText(DeepSeekMoe):
    """`model_type` unlimited_ocr_text (transformers, `create_reference_sliding_window_causal_mask`).

    Attributes:
        windows: How many rows behind the prompt the tokens of each layer see, themselves among them; None: all.
    """

    keeps_prompt: ClassVar[bool] = True
    windows: tuple[int | None, ...] = ()

    @classmethod
    def read(cls, raw: Raw) -> Self:
        """Return the decoder that a text config describes."""
        full = {**_DEFAULTS, **raw}
        decoder = super().read(full)
        num = decoder.config.num_layers
        stated, window = full.get("layer_types") or [_NEAR] * num, full.get("sliding_window", _WINDOW_TOKENS)
        if len(stated) != num or not set(stated) <= {_NEAR, _FAR} or not isinstance(window, int) or window < 1:
            raise UnsupportedConfigError(
                f"text_config.layer_types {stated!r} with sliding_window {window!r}: wanted is {_NEAR} or {_FAR} for "
                f"each of {num} layers, and a number of tokens"
            )
        decoder.windows = tuple(window if kind == _NEAR else None for kind in stated)
        return decoder

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """How many rows of the prompt each token sees whatever the window."""
        return (TensorSpec(name=tensors.MEMORY_SEEN, dtype="int64", shape=("B", "T", 3)),)

    def window_of(self, number: int) -> int | None:
        """Return how many rows the tokens of a layer see behind the prompt."""
        return self.windows[number]
