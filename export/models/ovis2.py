"""Ovis2 (arXiv 2405.20797): an AIMv2 tower, a visual vocabulary, and a Qwen2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.ovis2 import MARKS, Ovis2Prompt
from export.config import Raw, sub_config
from export.connectors.visual_vocabulary import VisualVocabulary
from export.found_processor import FoundProcessor
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.module import Module, Weight
from export.towers.aimv2 import Aimv2Tower, Aimv2VisionConfig
from export.vision_language import VisionLanguage
from graphs.labels import Label

_DEFAULTS: Raw = {
    "tie_word_embeddings": True,
    "visual_indicator_token_ids": (151_666, 151_667, 151_668, 151_669, 151_670),
}
_IMAGE = "<IMG_ATOM>"
_VISUAL_TABLE = "model.visual_embeddings_table.weight"


class _TableWeight(Weight):
    """A table of tokens, some of whose rows are the last of the visual table.

    Args:
        shape: [V, D].
        rows: Tokens, in the order of those last rows.
    """

    def __init__(self, shape: tuple[int, int], rows: Sequence[int]) -> None:
        super().__init__(*shape, name="weight", label=Label("table"))
        self._rows = list(rows)

    @property
    def source_keys(self) -> tuple[str, ...]:
        """The table of tokens, and the visual one."""
        return (*super().source_keys, _VISUAL_TABLE)

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Return whether a tensor may be one of the two: of their numbers of rows the other graphs know."""
        return len(stored) == 2 and stored[1] == int(self.shape[1])

    def from_stored(self, parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Return [V, D]."""
        tokens, visual = parts
        table = tokens.copy()
        table[self._rows] = visual[-len(self._rows) :]
        return table


class _Table(Module):
    def __init__(self, shape: tuple[int, int], rows: Sequence[int], *, name: str) -> None:
        super().__init__(name)
        self.weight = _TableWeight(shape, rows)

    def forward(self, op: OpBuilder, ids: ir.Value) -> ir.Value:
        return op.Gather(self.weight, ids, axis=0)


class Ovis2(VisionLanguage):
    """`model_type` ovis2."""

    text_prefix = "model.language_model"
    default_text = "qwen2"
    image_processor = "Ovis2ImageProcessor"
    template_placeholder = "<image>"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__({**_DEFAULTS, **config})
        vision = sub_config(config, "vision_config")
        self._tower = Aimv2VisionConfig.read(vision)
        function = vision.get("tokenize_function", "softmax")
        if function != "softmax":
            raise UnsupportedConfigError(f"vision_config.tokenize_function {function!r}: built are shares by softmax")
        self._factor = int(vision.get("hidden_stride", 1))
        if self._tower.vision.grid % self._factor:
            raise UnsupportedConfigError(
                f"vision_config.hidden_stride {self._factor} does not divide the {self._tower.vision.grid} patches of "
                "a tile's side"
            )
        self._num_words = int(vision.get("vocab_size", 16_384)) - len(MARKS)
        self._check_sizes(vision)

    def _check_sizes(self, vision: Raw) -> None:
        marks = list(self.config["visual_indicator_token_ids"])
        stated = int(vision.get("num_visual_indicator_tokens", len(MARKS)))
        if stated != len(MARKS) or len(marks) != len(MARKS):
            raise UnsupportedConfigError(
                f"num_visual_indicator_tokens {stated} and visual_indicator_token_ids {marks}: built are the "
                f"{len(MARKS)} {', '.join(MARKS)}"
            )
        sizes = self.decoder.config
        for key, of_text in (("vocab_size", sizes.vocab_size), ("hidden_size", sizes.hidden_size)):
            if self.config.get(key, of_text) != of_text:
                raise UnsupportedConfigError(f"{key} is {self.config[key]}, and text_config has {of_text}")

    @property
    def image_size_px(self) -> int:
        """Side of a tile."""
        return self._tower.vision.image_size_px

    @property
    def tokens_per_tile(self) -> int:
        """Squares of patches."""
        return int((self._tower.vision.grid // self._factor) ** 2)

    def table(self) -> Module:
        """Return the table of tokens, in which the marks around and between tiles are visual words."""
        sizes = self.decoder.config
        marks = self.config["visual_indicator_token_ids"]
        return _Table((sizes.vocab_size, sizes.hidden_size), marks, name=f"{self.text_prefix}.embed_tokens")

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and vocabulary."""
        grid, width = self._tower.vision.grid, self.decoder.config.hidden_size
        words = VisualVocabulary(
            grid,
            self._tower.hidden_size,
            self._num_words,
            width,
            self._factor,
            name="model.vision_tower",
            table=_VISUAL_TABLE,
        )
        return Chain(Aimv2Tower(self._tower, dialect, "model.vision_tower.transformer"), words)

    def image_prompt(self, found: FoundProcessor) -> Ovis2Prompt:
        """Return the whole image and its tiles, with marks around and between them.

        Raises:
            UnsupportedConfigError: The processor counts other tokens, or the vocabulary has other marks.
        """
        stated = found.settings.get("image_seq_length")
        if stated is not None and int(stated) != self.tokens_per_tile:
            raise UnsupportedConfigError(
                f"processor_config.json: image_seq_length {stated}, and the tower makes {self.tokens_per_tile} tokens "
                "of a tile"
            )
        ids = [found.vocabulary.id_of(mark, "a mark around or between tiles") for mark in MARKS]
        if ids != list(self.config["visual_indicator_token_ids"]):
            raise UnsupportedConfigError(
                f"config.json: visual_indicator_token_ids {list(self.config['visual_indicator_token_ids'])}, but "
                f"tokenizer.json gives {', '.join(MARKS)} the ids {ids}"
            )
        return Ovis2Prompt(
            image_token=_IMAGE,
            image_token_id=found.image_token_id(self.config, _IMAGE),
            tokens_per_tile=self.tokens_per_tile,
        )
