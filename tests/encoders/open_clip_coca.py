"""The contrastive part of open_clip's CoCa: patches pooled by a query, texts by a class token behind them."""

from __future__ import annotations

import encoder_files as files
from encoder_open_clip import CONFIG, changed, save_model, save_processor, stored

__all__ = ["CONFIG", "changed", "save_model", "save_processor", "stored"]
REFUSED = [({"text_cfg": {"proj_type": "mlp"}}, "proj_type is 'mlp'; built are linear and none")]


def geometries() -> list[files.Config]:
    """Return one whose pooler is narrower than its tower, and one where both are as wide."""
    return [{"name": "coca"}, {"name": "coca_as_wide_as_its_tower"}]
