"""Muon in float32 does what torch's does in bfloat16."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _late_imports() -> None:
    """Import torch here, so that collecting takes none of it."""
    global torch, Float32Muon, orthogonal
    torch = pytest.importorskip("torch", reason="training needs the [train] extra")

    from reference.muon import Float32Muon, orthogonal


def test_five_steps_bring_singular_values_near_one() -> None:
    for shape in ((20, 50), (50, 20)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(1)), 5))
        assert 0.6 < values.min() <= values.max() < 1.3


def test_updates_equal_torchs_but_for_its_rounding() -> None:
    first = torch.randn(40, 70, generator=torch.Generator().manual_seed(2))
    theirs, ours = (torch.nn.Parameter(first.clone()) for _ in range(2))
    options = {"lr": 0.01, "weight_decay": 0.02, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = torch.optim.Muon([theirs], **options), Float32Muon([ours], **options)
    for seed in range(3, 8):
        for matrix, optimizer in zip((theirs, ours), optimizers, strict=True):
            matrix.grad = torch.randn(40, 70, generator=torch.Generator().manual_seed(seed))
            optimizer.step()
    with torch.no_grad():
        moved = (theirs - first).abs().mean()
        assert (theirs - ours).abs().mean() < 0.01 * moved
    saved = optimizers[1].state_dict()
    optimizers[0].load_state_dict(saved)
    assert torch.equal(optimizers[0].state_dict()["state"][0]["momentum_buffer"], saved["state"][0]["momentum_buffer"])
