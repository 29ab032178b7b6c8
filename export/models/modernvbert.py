"""ModernVBERT as a single vector (ModernVBERT/modernvbert-embed, bimodernvbert; arXiv 2510.01149).

transformers has the model and no class that pools it; colpali_engine's BiModernVBert, which such checkpoints name,
takes the mean of all states. Checkpoints keep the model at the top or under `model`, its tower once or twice in its own
name.
"""

from __future__ import annotations

from typing import ClassVar

from export.config import Raw
from export.embedding import StateVectors
from export.found_processor import FoundProcessor
from export.models.colmodernvbert import ColModernVBert


class ModernVBert(ColModernVBert):
    """`model_type` modernvbert; heads of words and of labels are left out."""

    states_prefixes: ClassVar[bool] = True
    renames = (
        (r"^(?:model\.)?(vision_model|text_model|connector)\.", r"vlm.\1."),
        (r"^vlm\.vision_model\.vision_model\.", "vlm.vision_model."),
        *ColModernVBert.renames,
    )
    unused = (*ColModernVBert.unused, r"(?:lm_head|projection_head|head|classifier)\..*")

    def __init__(self, config: Raw) -> None:
        super().__init__({"vlm_config": config})
        self.vectors = StateVectors("mean")
        self.embedding = self.vectors

    def around_query(self, found: FoundProcessor) -> tuple[str, str]:
        """Return nothing: a text is a text."""
        return "", ""
