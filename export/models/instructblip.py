"""InstructBLIP (arXiv 2305.06500): BLIP-2 whose Q-Former reads the question beside its queries; a Vicuna or an OPT."""

from __future__ import annotations

from typing import ClassVar

from export.config import Raw, sub_config
from export.connectors.qformer import QFormerConfig
from export.found_processor import FoundProcessor
from export.models.blip_2 import Blip2
from export.vision_language import QuestionReading

_FOLDER = "qformer_tokenizer"
"""Where transformers' processor saves the tokenizer of the Q-Former."""
# No template comes with the checkpoints, and instructions stand as they are written (appendix C has those of training).
# Images stand before the token that begins a text.
_TEMPLATE = (
    "{% for message in messages %}{% if message.content is not string %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% endif %}{% endfor %}{% endif %}{% endfor %}{{ bos_token }}"
    "{% for message in messages %}{% set parts = message.content %}"
    "{% set text = parts if parts is string else parts | selectattr('type', 'equalto', 'text') | map(attribute='text') "
    "| join %}{% if text %}{% if not loop.first %}{{ ' ' }}{% endif %}{{ text }}{% endif %}{% endfor %}"
)


class InstructBlip(Blip2):
    """`model_type` instructblip, with a decoder alone behind its queries."""

    text_prefix = "language_model.model"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        *Blip2.renames,
        (r"^language_model\.model\.decoder\.", "language_model.model."),  # of OPT
    )

    def __init__(self, config: Raw) -> None:
        text = {"model_type": "opt", **sub_config(config, "text_config")}
        is_tied = text.get("tie_word_embeddings", text["model_type"] == "opt")
        super().__init__({**config, "tie_word_embeddings": is_tied})

    def _read_queries(self, raw: Raw) -> QFormerConfig:
        return super()._read_queries(raw).reading(raw)

    @property
    def question(self) -> QuestionReading:
        """What the Q-Former reads: words of its own vocabulary, as many as it has positions."""
        return QuestionReading(self._queries.vocab_size, self._queries.num_positions, _FOLDER)

    def skipped(self) -> tuple[str, ...]:
        """Return what no graph wants: of the last layer, what it would make of words that nobody reads."""
        last = self._queries.layers.num_layers - 1
        return (*super().skipped(), rf"qformer\.encoder\.layer\.{last}\.(intermediate|output)\..*")

    def default_template(self, found: FoundProcessor) -> str:
        """Return prompts of instructions as they are, behind the images."""
        return _TEMPLATE
