"""Moondream 2's decoder: Phi-1.5's layers (arXiv 2309.05463), keys that heads may share, and biases of the scores."""

from __future__ import annotations

from export.decoders.phi import Phi


class MoondreamText(Phi):
    """`model_type` moondream_text, which `export.models.moondream1` writes of the authors' config."""

    has_head_bias = True
