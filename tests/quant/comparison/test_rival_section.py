from __future__ import annotations

import pytest

from bundle.report import Replies, TeacherForced
from quant.comparison.rival_section import FORCED_HEAD, forced_cells


@pytest.mark.parametrize(
    ("delta_nll", "told"),
    [(-1.41, "1.4100<small>below fp32</small>"), (0.02, "0.0200<small>above fp32</small>"), (-0.00001, "0.0000")],
)
def test_a_loss_below_the_parent_s_is_as_far_off_as_one_above(delta_nll: float, told: str) -> None:
    """A variant that fails may be surer of right answers than its parent: the lowest number must not look best."""
    forced = TeacherForced(
        num_samples=9, num_tokens=9, kl_mean=0.5, kl_p99=1.0, top1_agreement=0.5, delta_nll=delta_nll
    )
    cells = dict(zip(FORCED_HEAD, forced_cells(forced, Replies(n=9, identical=0.5, first_divergence=1.0)), strict=True))
    assert cells["NLL off by"] == told
