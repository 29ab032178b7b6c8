"""ColQwen2 (Faysse et al., arXiv 2407.01449): Qwen2-VL whose every token has a vector, for late interaction."""

from __future__ import annotations

import json

from bundle.layouts.prompt import ImagePrompt
from export.config import Raw, sub_config
from export.embedding import Head, StateVectors
from export.found_processor import FoundProcessor
from export.models.qwen2_vl import Qwen2VL

_HEAD = "embedding_proj_layer"
_VISUAL_PROMPT = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.<|im_end|><|endoftext|>"
)
_NUM_AUGMENTING = 10
"""Padding tokens behind a query, whose vectors look for what the query does not say (section 3.2; Khattab and Zaharia,
arXiv 2004.12832, section 3.2)."""
_TEMPLATE = (
    "{%% for message in messages if message.role != 'system' %%}{%% for part in message.content %%}"
    "{%% if part.type == 'image' %%}%(visual)s{%% else %%}%(query)s{{ part.text }}%(behind)s{{ '\\n' }}{%% endif %%}"
    "{%% endfor %%}{%% endfor %%}"
)


class ColQwen2(Qwen2VL):
    """`model_type` colqwen2, as transformers keeps it."""

    renames = (
        (r"^vlm\.(lm_head\.)", r"\1"),
        (r"^vlm\.(model\.)?visual\.", "model.visual."),
        (r"^vlm\.(model\.)?(language_model\.)?(model\.)?", "model.language_model."),
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(sub_config(config, "vlm_config"))
        self.embedding = StateVectors("tokens", Head(_HEAD, int(config.get("embedding_dim", 128)), has_bias=True))

    def input_template(self, found: FoundProcessor, prompt: ImagePrompt) -> str:
        """Return an image before the wish to describe it, and a text as a query, as the processor writes both."""
        filler = found.vocabulary.template_tokens.get("pad_token", "")
        pieces = {
            "visual": found.settings.get("visual_prompt_prefix") or _VISUAL_PROMPT,
            "query": found.settings.get("query_prefix") or "Query: ",
            "behind": filler * _NUM_AUGMENTING,
        }
        return _TEMPLATE % {name: f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" for name, text in pieces.items()}
