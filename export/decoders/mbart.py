"""mBART's decoder (arXiv 2001.08210): BART's with the norms before attention and feed-forward, as Donut has it."""

from __future__ import annotations

from typing import ClassVar

from export.decoders.bart import Bart


class MBart(Bart):
    """`model_type` mbart, its decoder."""

    norms_first: ClassVar[bool] = True
