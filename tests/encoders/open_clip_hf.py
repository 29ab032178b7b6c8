"""open_clip with text towers of transformers', whose sizes it takes from their names."""

from __future__ import annotations

import encoder_files as files
import pytest
from encoder_open_clip import CONFIG, changed, save_model, save_processor, stored

from export.nn.bert import ROBERTA_DEFAULTS, TEXT_DEFAULTS
from export.towers.open_clip_text import HF_TEXTS

__all__ = ["CONFIG", "changed", "save_model", "save_processor", "stored"]
_TINY = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
_TINY |= {"max_position_embeddings": 60}
SIZES = {
    "bert-base-uncased": {**TEXT_DEFAULTS, **_TINY, "vocab_size": len(files.BERT_WORDS)},
    "xlm-roberta-base": {**ROBERTA_DEFAULTS, **_TINY, "vocab_size": len(files.UNIGRAM_PIECES) + 1},
}
"""Of the towers of that name here, in the place of their own."""
REFUSED = [
    ({"text_cfg": {"hf_model_name": "roberta-base", "hf_pooler_type": "max_pooler"}}, "hf_pooler_type is 'max_pooler'"),
    ({"text_cfg": {"hf_model_name": "roberta-base", "hf_proj_type": "deep"}}, "hf_proj_type is 'deep'"),
]


def geometries() -> list[files.Config]:
    """Return a BERT by its mean with two matrices, and an XLM-R by its pooler with one."""
    return [{"name": "bert"}, {"name": "roberta"}]


def patches(patch: pytest.MonkeyPatch) -> None:
    """Let the towers' names stand for tiny ones."""
    for name, sizes in SIZES.items():
        patch.setitem(HF_TEXTS, name, sizes)
