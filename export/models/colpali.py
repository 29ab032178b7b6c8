"""ColPali (Faysse et al., arXiv 2407.01449): PaliGemma whose every token has a vector, for late interaction."""

from __future__ import annotations

import json

from bundle.layouts.prompt import ImagePrompt
from export.config import Raw, sub_config
from export.embedding import Head, StateVectors
from export.found_processor import FoundProcessor
from export.models.paligemma import PaliGemma

_HEAD = "embedding_proj_layer"
_NUM_AUGMENTING = 10
"""Padding tokens behind a query, whose vectors look for what the query does not say (section 3.2)."""
_TEMPLATE = (
    "{%% set parts = messages[-1].content %%}"
    "{%% if parts | selectattr('type', 'equalto', 'image') | list %%}"
    "{%% for part in parts if part.type == 'image' %%}%(image)s{%% endfor %%}{{ bos_token }}%(visual)s"
    "{%% for part in parts if part.type == 'text' %%}{{ part.text }}{%% endfor %%}{{ '\\n' }}"
    "{%% else %%}{{ bos_token }}%(query)s"
    "{%% for part in parts %%}{{ part.text }}{%% endfor %%}%(behind)s{{ '\\n' }}{%% endif %%}"
)


class ColPali(PaliGemma):
    """`model_type` colpali, as transformers keeps it."""

    renames = (
        (r"^vlm\.(?:model\.)?", ""),
        *PaliGemma.renames,
        (r"^language_model\.", "model.language_model."),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(sub_config(config, "vlm_config"))
        self.embedding = StateVectors("tokens", Head(_HEAD, int(config.get("embedding_dim", 128)), has_bias=True))

    def input_template(self, found: FoundProcessor, prompt: ImagePrompt) -> str:
        """Return an image before the wish to describe it, and a text as a query, as the processor writes both."""
        filler = found.vocabulary.template_tokens.get("pad_token", "")
        pieces = {
            "image": prompt.image_token,
            "visual": found.settings.get("visual_prompt_prefix") or "Describe the image.",
            "query": found.settings.get("query_prefix") or "Question: ",
            "behind": filler * _NUM_AUGMENTING,
        }
        return _TEMPLATE % {name: f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" for name, text in pieces.items()}
