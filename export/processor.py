"""A checkpoint's processor files to the bundle's own: preprocessing, tokenizer, chat template, sampling defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.image import ImageSpec
from bundle.manifest import ImagePrompt


@dataclass(frozen=True)
class ProcessorFiles:
    """What the manifest wants to know of the files that `convert_processor` wrote.

    Attributes:
        image_spec: As written to `preprocessor.json`; its `tile_size_px` is the vision encoder's (height, width).
        image_prompt: How an image is written into a prompt; None for dual encoders.
        template_tokens: Special tokens by the name a chat template uses ("bos_token", "eos_token", ...).
        bos_token_id: None where the tokenizer has none.
        eos_token_ids: Generation ends at any; the tokenizer's alone for dual encoders.
        pad_token_id: None where the tokenizer has none.
        max_text_tokens: Longest text of a dual encoder; None for vision-language models.
        pads_to_max: Dual encoders: texts are padded to `max_text_tokens` (SigLIP).
    """

    image_spec: ImageSpec
    image_prompt: ImagePrompt | None
    template_tokens: dict[str, str]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    max_text_tokens: int | None
    pads_to_max: bool


def convert_processor(checkpoint: Path, config: Mapping[str, Any], output: Path) -> ProcessorFiles:
    """Write the checkpoint's preprocessing into a bundle folder and return what the manifest records of it.

    Writes `preprocessor.json` and `tokenizer.json`; for vision-language models also `chat_template.jinja` and
    `generation.json`.

    Args:
        checkpoint: Folder with `preprocessor_config.json` or `processor_config.json`, `tokenizer.json`,
            `tokenizer_config.json` and, for vision-language models, a chat template.
        config: The checkpoint's parsed `config.json`.
        output: The bundle folder; exists.

    Raises:
        CheckpointError: A file is missing or not JSON.
        UnsupportedConfigError: A setting that the preprocessing does not reproduce; the message names it.
    """
    raise NotImplementedError
