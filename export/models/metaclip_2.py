"""MetaCLIP 2 (arXiv 2507.22062): CLIP with a tokenizer for every language."""

from __future__ import annotations

from bundle.errors import UnsupportedConfigError
from export.config import Raw
from export.models.clip import Clip


class MetaClip2(Clip):
    """`model_type` metaclip_2; a text ends at `eos_token_id`, which is 2 in published checkpoints and means it."""

    has_older_ends = False

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        if not isinstance(self._text["eos_token_id"], int):
            raise UnsupportedConfigError(
                f"text_config.eos_token_id is {self._text['eos_token_id']!r}; texts end at one token"
            )
