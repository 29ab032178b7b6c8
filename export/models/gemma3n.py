"""Gemma 3n (google/gemma-3n-E2B-it, E4B-it): MobileNetV5's tower, and a decoder of several streams.

Its audio tower is not built: its weights are left out, and requests with audio are refused as of every model. What the
vocabulary has of it is built: tokens of images and sounds have rows of their own, which export computes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.gemma3n import Gemma3nPrompt
from export.config import Raw, sub_config
from export.decoders.gemma3n_text import Gemma3nText
from export.family import Family
from export.found_processor import FoundProcessor
from export.image_processors.image_processor import edge_of
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.linear import Embedding, Linear
from export.nn.module import Module, Weight
from export.nn.norms import BareRMSNorm, RMSNorm
from export.towers.mobilenetv5 import MobileNetV5Tower
from export.towers.mobilenetv5_config import FUSED_SIZE, MobileNetV5Config
from export.vision_language import VisionLanguage
from graphs.labels import Label

_DEFAULTS: Raw = {"tie_word_embeddings": True, "vision_soft_tokens_per_image": 256, "image_token_id": 262_145}
_IMAGE_SIDE_PX = 768
_PART_DEFAULTS: dict[str, Raw] = {
    "vision": {"hidden_size": FUSED_SIZE, "vocab_size": 128, "vocab_offset": 262_144, "rms_norm_eps": 1e-6},
    "audio": {"hidden_size": 1536, "vocab_size": 128, "vocab_offset": 262_272, "rms_norm_eps": 1e-6},
}
_HARD = ("embedding.weight", "hard_embedding_norm.weight", "embedding_projection.weight")


@dataclass(frozen=True)
class _Part:
    """Tokens that the vocabulary has of images, or of sounds.

    Attributes:
        first: Id of the first.
        num: How many of them there are.
        size: Width of their own table.
        eps: Of its norms.
    """

    first: int
    num: int
    size: int
    eps: float


class _HardRows(Weight):
    """Rows of tokens that stand in tables of their own, normed and projected as the model does at every token.

    Args:
        name: In the graph.
        parts: Of images and of sounds.
        size: D.
    """

    def __init__(self, name: str, parts: Sequence[_Part], size: int) -> None:
        super().__init__(sum(part.num for part in parts), size, name=name, label=Label("table"))
        self._own, self._parts = name, tuple(parts)

    @property
    def source_keys(self) -> tuple[str, ...]:
        """The keys in the checkpoint, once the weight is part of a graph."""
        around = str(self.name).removesuffix(self._own)
        return tuple(f"{around}model.embed_{part}.{key}" for part in _PART_DEFAULTS for key in _HARD)

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a checkpoint tensor of that shape is one of the parts."""
        width = int(self.shape[1])
        return any(stored in ((part.size,), (width, part.size)) or stored[1:] == (part.size,) for part in self._parts)

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return all rows, [tokens, D]."""
        return np.concatenate(
            [_hard_rows(part, *parts[3 * at : 3 * at + 3]) for at, part in enumerate(self._parts)]
        ).astype(np.float32)


def _hard_rows(
    part: _Part, table: npt.NDArray[np.float32], weight: npt.NDArray[np.float32], matrix: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Return [tokens, D] of a table, the weight of its norm and a matrix; normed once more behind."""
    rows = _normed(table[: part.num].astype(np.float64), part.eps) * weight
    return _normed(rows @ matrix.T.astype(np.float64), part.eps)


def _normed(x: npt.NDArray[np.float64], eps: float) -> npt.NDArray[np.float64]:
    scaled: npt.NDArray[np.float64] = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
    return scaled


class _TextTables(Module):
    """The decoder's two tables."""

    def __init__(self, prefix: str, decoder: Gemma3nText) -> None:
        super().__init__(prefix)
        sizes = decoder.config
        self.embed_tokens = Embedding(sizes.vocab_size, sizes.hidden_size, scale=decoder.embedding_scale)
        self.embed_tokens_per_layer = decoder.per_layer_table
        self.num_per_layer = decoder.own.per_layer_tokens

    def forward(self, op: OpBuilder, ids: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return [B, T, D] and [B, T, L*P] of ids [B, T]; those beyond the second table look up its first row."""
        known = op.Where(op.Less(ids, self.num_per_layer), ids, 0)
        return self.embed_tokens(op, ids), self.embed_tokens_per_layer(op, known)


class _Tables(Module):
    """Embeddings, which tokens of images and sounds have elsewhere, and what a second table holds for each layer.

    Args:
        prefix: Where the checkpoint keeps the decoder.
        decoder: Its tables.
        parts: Of images and of sounds.
    """

    def __init__(self, prefix: str, decoder: Gemma3nText, parts: Sequence[_Part]) -> None:
        super().__init__("")
        self.text = _TextTables(prefix, decoder)
        self.hard = _HardRows("model.hard_rows", parts, decoder.config.hidden_size)
        self.first, self.last = parts[0].first, sum(part.num for part in parts) - 1

    def forward(self, op: OpBuilder, ids: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return [B, T, D] and [B, T, L*P] of ids [B, T]."""
        embeddings, per_layer = self.text(op, ids)
        at = op.Clip(op.Sub(ids, self.first), 0, self.last)
        is_hard = op.Unsqueeze(op.GreaterOrEqual(ids, self.first), [2])
        return op.Where(is_hard, op.Gather(self.hard, at, axis=0), embeddings), per_layer


class _Embedder(Module):
    """Features as the decoder reads them: between two norms, the second without a weight, a matrix."""

    def __init__(self, part: _Part, out_size: int, rows: int, dialect: Dialect) -> None:
        super().__init__("model.embed_vision")
        self.soft_embedding_norm = RMSNorm(part.size, part.eps, dialect)
        self.embedding_projection = Linear(part.size, out_size, rows=rows, bias=False)
        self.embedding_post_projection_norm = BareRMSNorm(out_size, part.eps, dialect)
        self.scale = math.sqrt(part.size)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, P, D] of [I, P, size]."""
        normed = self.soft_embedding_norm(op, op.Mul(x, self.scale))
        return self.embedding_post_projection_norm(op, self.embedding_projection(op, normed))


class Gemma3n(VisionLanguage):
    """`model_type` gemma3n."""

    text_prefix = "model.language_model"
    default_text = "gemma3n_text"
    image_processor = "SiglipImageProcessor"
    caps_logits: ClassVar[bool] = True
    reads_image_settings: ClassVar[bool] = True  # images may have another size than most checkpoints say
    unused: ClassVar[tuple[str, ...]] = (
        *Family.unused,
        r"model\.audio_tower\..*",
        r"model\.embed_audio\.soft_embedding_norm\.weight",
    )

    def __init__(self, config: Raw) -> None:
        super().__init__({**_DEFAULTS, **config})
        self._tower = MobileNetV5Config.read(sub_config(config, "vision_config"))
        num, side = self.config["vision_soft_tokens_per_image"], self._tower.resolution
        if num != side**2:
            raise UnsupportedConfigError(
                f"vision_soft_tokens_per_image {num}: the tower gives {side} x {side} features of an image "
                "(vision_config.model_args.msfa_output_resolution)"
            )
        self._parts = self._read_parts()

    def _read_parts(self) -> tuple[_Part, _Part]:
        """Return what the vocabulary has of images and of sounds.

        Raises:
            UnsupportedConfigError: Tables of fewer tokens, or a tower of another width.
        """
        vocab_size = self._text().config.vocab_size
        stated = [
            {**defaults, **(self.config.get(f"{name}_config") or {})} for name, defaults in _PART_DEFAULTS.items()
        ]
        firsts = [int(each["vocab_offset"]) for each in stated]
        ends = [firsts[1], vocab_size]
        for name, each, first, end in zip(_PART_DEFAULTS, stated, firsts, ends, strict=True):
            if not 0 < end - first <= each["vocab_size"]:
                raise UnsupportedConfigError(
                    f"{name}_config.vocab_offset {first}: tokens from there to {end - 1} are to have one of the "
                    f"{each['vocab_size']} rows of its own table each (vocab_size)"
                )
        if stated[0]["hidden_size"] != FUSED_SIZE:
            raise UnsupportedConfigError(
                f"vision_config.hidden_size {stated[0]['hidden_size']}: the tower gives {FUSED_SIZE} numbers of a place"
            )
        images, sounds = (
            _Part(first, end - first, int(each["hidden_size"]), float(each["rms_norm_eps"]))
            for each, first, end in zip(stated, firsts, ends, strict=True)
        )
        return images, sounds

    @property
    def image_size_px(self) -> int:
        """Side of the input: the processor's, where it says one.

        Raises:
            UnsupportedConfigError: Images of that side are not fused by whole places.
        """
        side = edge_of(self.stated_images.get("size") or _IMAGE_SIDE_PX) or _IMAGE_SIDE_PX
        self._tower.check_side(side)
        return side

    @property
    def tokens_per_tile(self) -> int:
        """Places behind the fusion of scales."""
        return self._tower.resolution**2

    def skipped(self) -> tuple[str, ...]:
        """Return `unused`, keys and values of layers that read another's, and scales that are not applied."""
        decoder = self._text()
        shared = [n for n in range(decoder.config.num_layers) if decoder.source_of(n) is not None]
        before = rf"{re.escape(self.text_prefix)}\.layers"
        names = "|".join(map(str, shared))
        keys = [rf"{before}\.({names})\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\..*"] if shared else []
        scales = [] if decoder.own.streams.has_scale else [rf"{before}\.\d+\.altup\.correct_output_scale"]
        return (*super().skipped(), *keys, *scales)

    def stand_ins(self) -> dict[str, str]:
        """Return table and output matrix for each other, where the config ties them."""
        return super().stand_ins() if self.config["tie_word_embeddings"] else {}

    def _text(self) -> Gemma3nText:
        """Return the decoder, of this family's kind.

        Raises:
            UnsupportedConfigError: Another.
        """
        decoder = self.decoder
        if not isinstance(decoder, Gemma3nText):
            raise UnsupportedConfigError(
                f"text_config.model_type {self.text_config['model_type']!r}: Gemma 3n's is gemma3n_text"
            )
        return decoder

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and connector."""
        tower = MobileNetV5Tower(self._tower, dialect, "model.vision_tower.timm_model", self.image_size_px)
        sizes = self.decoder.config
        return Chain(tower, _Embedder(self._parts[0], sizes.hidden_size, self.tokens_per_tile, dialect))

    def table(self) -> Module:
        """Return the module input_ids [B, T] -> inputs_embeds [B, T, D], and numbers for layers."""
        return _Tables(self.text_prefix, self._text(), self._parts)

    def image_prompt(self, found: FoundProcessor) -> Gemma3nPrompt:
        """Return the tokens of an image between a start and an end, in lines of their own.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or a token is not in the vocabulary.
        """
        stated = int(found.settings.get("image_seq_length", self.tokens_per_tile))
        if stated != self.tokens_per_tile:
            raise UnsupportedConfigError(
                f"image_seq_length {stated} of the processor, and vision_soft_tokens_per_image {self.tokens_per_tile} "
                "of the model: each image would have another number of tokens than of features"
            )
        token = found.token("image_token", "<image_soft_token>")
        start, end = found.token("boi_token", "<start_of_image>"), found.token("eoi_token", "<end_of_image>")
        found.vocabulary.id_of(start, "the token before an image")
        found.vocabulary.id_of(end, "the token behind an image")
        return Gemma3nPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=self.tokens_per_tile,
            start_token=start,
            end_token=end,
        )
