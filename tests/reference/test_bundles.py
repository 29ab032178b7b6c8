"""Bundles of the shipped checkpoints are known by name, and so are measured on the scenes held out for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.exporter import export_checkpoint
from reference.bundles import CHECKPOINTS, SHIPPED, checkpoint_digest, reference_name


def test_a_demo_serves_the_dense_models_only() -> None:
    assert list(CHECKPOINTS) == ["vlm", "clip"]
    assert list(SHIPPED) == ["vlm", "clip", "vlm-ternary", "vlm-mote"]


def test_every_shipped_checkpoint_has_a_digest_of_its_own() -> None:
    assert len({checkpoint_digest(name) for name in SHIPPED}) == len(SHIPPED)


@pytest.mark.parametrize("name", ["vlm-ternary", "vlm-mote"])
def test_bundle_of_a_shipped_checkpoint_is_recognised(name: str, tmp_path: Path) -> None:
    export_checkpoint(SHIPPED[name], tmp_path / "bundle", name=f"pocketvlm-{name}")
    assert reference_name(tmp_path / "bundle") == name


def test_bundle_of_another_model_is_nobodys(smolvlm_bundle: Path) -> None:
    assert reference_name(smolvlm_bundle) is None
