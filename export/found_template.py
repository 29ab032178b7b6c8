"""A checkpoint's chat template: where it was found, and whether it makes prompts for the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bundle.chat_template import CHAT_TEMPLATE
from bundle.errors import BundleFormatError, CheckpointError, UnsupportedConfigError
from bundle.manifest import ImagePrompt
from bundle.prompt import PromptBuilder
from bundle.text import Tokenizer
from export.lfs import require_content
from export.settings_file import read_settings

_WHOLE = "whole_conversation"
"""The name of what a template writes, within one that looks at it."""
_PROCESSOR, _LEGACY, _TOKENIZER = "processor_config.json", "chat_template.json", "tokenizer_config.json"


@dataclass(frozen=True)
class FoundTemplate:
    """A checkpoint's chat template.

    Attributes:
        text: Its source.
        checkpoint: The folder.
        file: The one in it that holds the template.
    """

    text: str
    checkpoint: Path
    file: str

    @classmethod
    def find(
        cls, checkpoint: Path, processor: Mapping[str, Any], settings: Mapping[str, Any], default: str | None = None
    ) -> FoundTemplate:
        """Return the template, looked for where transformers' processor looks and in its order.

        Args:
            checkpoint: The folder.
            processor: Its `processor_config.json`.
            settings: Its `tokenizer_config.json`.
            default: The family's, taken where the checkpoint has none.

        Raises:
            CheckpointError: There is none.
        """
        raw = checkpoint / CHAT_TEMPLATE
        require_content(raw)
        places = {
            _PROCESSOR: processor.get("chat_template"),
            _LEGACY: read_settings(checkpoint / _LEGACY, required=False).get("chat_template"),
            CHAT_TEMPLATE: raw.read_text(encoding="utf-8") if raw.is_file() else None,
            _TOKENIZER: settings.get("chat_template"),
        }
        file = next((name for name, content in places.items() if content), "")
        text = _default(places.get(file)) if file else default
        if text is None:
            raise CheckpointError(
                f"{checkpoint} holds no chat template: neither {CHAT_TEMPLATE}, {_LEGACY} nor one inside "
                f"{_PROCESSOR} or {_TOKENIZER}. Add {CHAT_TEMPLATE}."
            )
        return cls(text, checkpoint, file or CHAT_TEMPLATE)

    def with_text(self, old: str, new: str) -> FoundTemplate:
        """Return the template with another text wherever it has one."""
        return replace(self, text=self.text.replace(old, new))

    def behind(self, words: str, *, once: bool = False) -> FoundTemplate:
        """Return the template with words before all that it writes; `once`: unless it begins with them itself."""
        if not words:
            return self
        told = json.dumps(words)
        if once:
            text = f"{{% set {_WHOLE} %}}{self.text}{{% endset %}}"
            return replace(self, text=f"{text}{{{{ ('' if {_WHOLE}.startswith({told}) else {told}) ~ {_WHOLE} }}}}")
        # an expression, for a template's first block may take spaces and line ends before it away
        return replace(self, text=f"{{{{ {told} }}}}{self.text}")

    def require_prompts(self, tokenizer: Path, image_prompt: ImagePrompt, template_tokens: Mapping[str, str]) -> None:
        """Check that the template makes prompts with an image in them.

        Args:
            tokenizer: The bundle's `tokenizer.json`.
            image_prompt: How the model writes images.
            template_tokens: Special tokens by the name the template uses.

        Raises:
            UnsupportedConfigError: It does not; the message says where to put one that does.
        """
        try:
            PromptBuilder(Tokenizer.from_file(tokenizer), self.text, image_prompt, template_tokens).require_images()
        except BundleFormatError as error:
            target = CHAT_TEMPLATE if self.file == _TOKENIZER else self.file  # the former is looked for before it
            raise UnsupportedConfigError(
                f"{self.checkpoint / self.file}: {error} It goes into {self.checkpoint / target}."
            ) from error


def _default(found: Any) -> str | None:
    """Return the template of a chat where a file holds several by name."""
    if isinstance(found, list):
        found = {str(entry["name"]): entry["template"] for entry in found}
    if isinstance(found, dict):
        found = found.get("default")
    return found if isinstance(found, str) else None
