"""AKI (arXiv 2503.02597): a LLaVA whose images see the question behind them, by its mask alone.

Sony's checkpoint has a perceiver as its connector and names its parts otherwise; what is read here is a checkpoint in
LLaVA's layout whose config says `model_type` aki.
"""

from __future__ import annotations

from typing import ClassVar

from bundle.layouts.aki import AkiPrompt
from bundle.layouts.prompt import LooksAhead
from export.found_processor import FoundProcessor
from export.models.llava import Llava


class Aki(Llava):
    """`model_type` aki."""

    looks_ahead: ClassVar[LooksAhead] = AkiPrompt.looks_ahead

    def image_prompt(self, found: FoundProcessor) -> AkiPrompt:
        """Return LLaVA's layout, in which images look forward.

        Raises:
            UnsupportedConfigError: As of LLaVA.
        """
        return AkiPrompt(**super().image_prompt(found).model_dump(exclude={"kind"}))
