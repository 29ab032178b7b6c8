"""open_clip with ViTs of timm's, whose sizes it takes from their names: SigLIP's, and BiomedCLIP's beside a BERT."""

from __future__ import annotations

import encoder_files as files
import pytest
from encoder_open_clip import CONFIG, changed, save_model, save_processor, stored

from export.config import TowerConfig
from export.nn.bert import TEXT_DEFAULTS
from export.towers.open_clip_text import HF_TEXTS
from export.towers.timm_vit import TIMM_VITS, TimmVitConfig

__all__ = ["CONFIG", "changed", "save_model", "save_processor", "stored"]
SIGLIP, PLAIN, BERT = "vit_large_patch16_siglip_512", "vit_base_patch16_224", "bert-base-uncased"
_TINY = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
SIZES = {
    SIGLIP: TimmVitConfig(TowerConfig(24, 72, 2, 3, "gelu_pytorch_tanh", 1e-6), 32, 8, True),
    PLAIN: TimmVitConfig(TowerConfig(24, 96, 2, 3, "gelu", 1e-6), 32, 8, False),
}
"""Of the towers of that name here, in the place of their own."""
REFUSED = [
    (
        {"vision_cfg": {"timm_model_name": "vit_giant"}},
        "timm_model_name is 'vit_giant'; built are .*vit_base_patch16_224",
    ),
    (
        {"vision_cfg": {"timm_model_name": PLAIN, "image_size": 384}},
        "image_size is 384; vit_base_patch16_224 takes 224",
    ),
    ({"vision_cfg": {"timm_model_name": PLAIN, "image_size": 224, "timm_pool": "avg"}}, "timm_pool 'avg'"),
]


def geometries() -> list[files.Config]:
    """Return one pooled by a query without a projection, and one with a class token and a projection."""
    return [{"name": "siglip"}, {"name": "biomed"}]


def patches(patch: pytest.MonkeyPatch) -> None:
    """Let the towers' names stand for tiny ones."""
    for name, sizes in SIZES.items():
        patch.setitem(TIMM_VITS, name, sizes)
    bert = {**TEXT_DEFAULTS, **_TINY, "max_position_embeddings": 60, "vocab_size": len(files.BERT_WORDS)}
    patch.setitem(HF_TEXTS, BERT, bert)
