"""What the tests of training share."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def quick_steps() -> Iterator[None]:
    """Leave out Muon's iterations: minutes where a processor has no bfloat16, and no test asks what was learnt."""
    torch = pytest.importorskip("torch", reason="training needs the [train] extra")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Muon", functools.partial(torch.optim.Muon, ns_steps=0))
        yield
