"""What `/v1/models` says a model offers is what requests to it may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundle.directory import open_bundle
from bundle.errors import ParameterError
from quant.kv.table import POLICIES
from quant.visual_tokens.inside.table import METHODS as INSIDE
from quant.visual_tokens.table import METHODS
from serving.models.cards import card_of
from serving.models.kv import KVPolicies
from serving.protocol import KVCompression, VisionReduction
from serving.settings import EngineSettings


def test_policies_are_those_that_are_not_refused(smolvlm_bundle: Path) -> None:
    manifest, settings = open_bundle(smolvlm_bundle).manifest, EngineSettings()
    card, policies = card_of(manifest, settings), KVPolicies(manifest, settings)
    assert 0 < len(card.kv_policies) < len(POLICIES)
    for name in POLICIES:
        if name in card.kv_policies:
            assert policies.wanted(KVCompression(name, 0.5)) == KVCompression(name, 0.5)
        else:
            with pytest.raises(ParameterError):
                policies.wanted(KVCompression(name, 0.5))


def test_a_model_that_was_not_cut_offers_what_happens_before_the_decoder(smolvlm_bundle: Path) -> None:
    card = card_of(open_bundle(smolvlm_bundle).manifest, EngineSettings())
    assert card.vision_methods == tuple(METHODS)
    assert not set(card.vision_methods) & set(INSIDE)


def test_defaults_are_told_where_they_change_something(smolvlm_bundle: Path, clip_bundle: Path) -> None:
    manifest = open_bundle(smolvlm_bundle).manifest
    card = card_of(manifest, EngineSettings())
    assert (card.vision_default, card.kv_default) == (None, None)
    settings = EngineSettings(vision_method="dart", vision_keep=0.25, kv_policy="snapkv", kv_budget=0.5)
    card = card_of(manifest, settings)
    assert card.vision_default == VisionReduction("dart", 0.25)
    assert card.kv_default == KVCompression("snapkv", 0.5)
    card = card_of(open_bundle(clip_bundle).manifest, settings)
    assert (card.vision_methods, card.vision_default, card.kv_policies, card.kv_default) == ((), None, (), None)
