"""What is decided by times, and that noise in them does not decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from bundle.directory import read_manifest
from bundle.form import Form
from bundle.manifest import Manifest
from quant.planning.layer_runs import Openings, Timed
from quant.planning.layer_times import LayerTimes, tuned_times
from quant.planning.plan import Choice
from quant.planning.planner import Planner, Sites
from quant.planning.profiles import Plans, ProfileName, plan_bundle
from quant.planning.recipes import Asked
from quant.planning.selection import WORTH_CHANGING, Candidates, Decision, decide
from quant.planning.survey import Site

B64, B128, B32 = (Choice("matmul_nbits", Form(4, size)) for size in (64, 128, 32))
W8A8 = Choice("w8a8", Form(8))
SMALL, LARGE = (Candidates(64, outputs, 1, (B64, B128, B32)) for outputs in (16, 256))
BEYOND, SHORT = WORTH_CHANGING - 0.01, WORTH_CHANGING + 0.01
"""Shares of the default's time that are and are not worth changing it."""


def times_of(*rows: tuple[Candidates, Choice, float], usual: Sequence[tuple[Candidates, Choice, float]] = ()):
    """Return times of layers at one row; those that are usual are the same unless given."""
    least, middling = (
        {f"{layer.num_inputs}x{layer.num_outputs} {choice.label} M=1": ms for layer, choice, ms in each}
        for each in (rows, usual)
    )
    return LayerTimes(least, "fixed", {**least, **middling})


def large(b64: float, b128: float, b32: float = 9.0, usual: Sequence[float] | None = None) -> Decision:
    """Return the decision on one large layer by what its forms take."""
    least, middling = (
        [(LARGE, choice, ms) for choice, ms in zip((B64, B128, B32), each, strict=False)]
        for each in ((b64, b128, b32), usual or ())
    )
    return decide([LARGE], times_of(*least, usual=middling))


def test_the_default_is_kept_unless_another_form_saves_enough() -> None:
    assert large(1, SHORT).chosen.choice is None
    assert large(1, BEYOND).chosen.choice == B128
    assert large(1, BEYOND).doubt == large(1, SHORT).doubt == ""


def test_what_is_usual_of_a_form_is_held_against_the_least_of_the_default() -> None:
    assert large(1, 0.5, usual=(1, BEYOND)).chosen.choice == B128
    assert large(1, 0.5, usual=(1, SHORT)).chosen.choice is None
    assert large(1, BEYOND, usual=(5, BEYOND)).chosen.choice == B128
    assert large(1, SHORT, usual=(5, SHORT)).chosen.choice is None


def test_where_noise_leaves_it_open_the_default_is_kept_and_a_message_says_so() -> None:
    found = large(1, 0.5, usual=(1, 0.8))
    assert found.chosen.choice is None
    assert found.doubt == (
        "the machine was too noisy to tell, so matmul_nbits 4-bit b64 is kept: "
        "matmul_nbits 4-bit b128 takes 50% of its time at best and 80% usually"
    )
    assert found.told("linear").doubt == found.doubt


def test_a_form_that_is_less_preferred_must_beat_the_one_before_it_by_as_much() -> None:
    assert large(1, 0.6, 0.6 * SHORT).chosen.choice == B128
    assert large(1, 0.6, 0.6 * BEYOND).chosen.choice == B32
    assert large(1, SHORT, BEYOND).chosen.choice == B32


def test_layers_are_decided_together_by_the_sum_of_their_times() -> None:
    times = times_of(
        *((LARGE, choice, 1.0) for choice in (B64, B128, B32)),
        *((SMALL, choice, ms) for choice, ms in ((B64, 0.1), (B128, 0.01), (B32, 0.1))),
    )
    assert decide([SMALL], times).chosen.choice == B128
    assert decide([LARGE, SMALL, SMALL], times).chosen.choice is None
    assert decide([LARGE, *[SMALL] * 20], times).chosen.choice == B128


def test_a_layer_that_cannot_hold_the_chosen_form_keeps_its_default() -> None:
    whole_only = Candidates(96, 64, 1, (B32,))
    times = times_of((LARGE, B64, 1.0), (LARGE, B128, 0.1), (LARGE, B32, 1.0), (whole_only, B32, 0.2))
    found = decide([LARGE, whole_only], times)
    assert [layer.taking(found.chosen.choice) for layer in found.layers] == [B128, B32]
    assert found.chosen.least_ms == pytest.approx(0.3)
    assert found.gain.endswith("of the time of matmul_nbits 4-bit b64 and matmul_nbits 4-bit b32")


def test_a_decision_tells_what_was_weighed_and_the_times_of_every_size() -> None:
    times = times_of(
        *((LARGE, choice, ms) for choice, ms in ((B64, 1.0), (B128, 0.5), (B32, 1.5))),
        *((SMALL, choice, 0.1) for choice in (B64, B128, B32)),
        usual=[(LARGE, B128, 0.6)],
    )
    told = decide([LARGE, SMALL, SMALL], times).told("linear")
    assert (told.kind, told.num_layers, told.chosen) == ("linear", 3, B128.label)
    assert [(form.form, form.least_ms, form.usual_ms) for form in told.forms] == [
        (B64.label, 1.2, 1.2),
        (B128.label, 0.7, 0.8),
        (B32.label, 1.7, 1.7),
    ]
    assert [(shape.num_outputs, shape.num_layers) for shape in told.shapes] == [(256, 1), (16, 2)]
    assert [form.usual_ms for form in told.shapes[0].forms] == [1.0, 0.6, 1.5]


# Noise: what else the machine does, laid on fixed times.

SITES: Sites = {
    "decoder": (
        *(Site(f"{part}{at}", "linear", 576, width) for at in range(6) for part, width in (("q", 576), ("k", 192))),
        *(Site(f"up{at}", "linear", 576, 1536) for at in range(6)),
        *(Site(f"down{at}", "linear", 1536, 576) for at in range(6)),
        Site("lm_head", "head", 576, 49_280),
    )
}
CLOSE = {"w8a8": 1.0, "8-bit b64": 1.04, "8-bit b128": 0.93, "8-bit b32": 1.1, "4-bit b64": 0.8, "4-bit b128": 0.72}
"""Times per weight by form that are within what is worth changing: nobody should see them in a plan."""
FAR = CLOSE | {"8-bit b64": 0.55, "8-bit b128": 0.5, "8-bit b32": 0.6, "4-bit b64": 1.6, "4-bit b32": 1.7}
"""Times of a machine whose MatMulNBits is much the quicker for prompts, and slow in blocks of 64 for steps."""


def true_ms(timed: Timed, per_weight: dict[str, float]) -> float:
    """Return the time of a form on a machine that does nothing else."""
    form = next((ms for name, ms in per_weight.items() if name in timed.choice.label), 0.9)
    bend = 1.0 if timed.choice == W8A8 else {192: 0.9, 576: 1.1}.get(timed.num_outputs, 1.0)
    return form * bend * timed.num_inputs * timed.num_outputs * (1 + 0.2 * timed.rows) * 1e-7


def noisy(
    per_weight: dict[str, float], stall_ms: float, rng: np.random.Generator
) -> Callable[..., dict[str, Openings]]:
    """Return what stands for a stopwatch: 5 openings of 9 runs.

    Weights lie anywhere: an opening takes up to 5 % more. In four of five runs something comes between, as long as it
    likes (Lomax, so heavy in the tail that its variance is infinite), however short the run is that it disturbs.
    """

    def time_layers(wanted: Sequence[Timed]) -> dict[str, Openings]:
        found: dict[str, Openings] = {}
        for timed in wanted:
            own_ms = (
                true_ms(timed, per_weight) * rng.uniform(1, 1.05, (5, 1)) if stall_ms else true_ms(timed, per_weight)
            )
            found[timed.key] = (own_ms + stall_ms * rng.pareto(1.2, (5, 9)) * (rng.random((5, 9)) < 0.8)).tolist()
        return found

    return time_layers


@pytest.fixture
def manifest(smolvlm_bundle: Path) -> Manifest:
    return read_manifest(smolvlm_bundle)


def tuned(manifest: Manifest, weights: str, profile: ProfileName, folder: Path, time_layers) -> Plans:
    """Return the plan by times that were all measured anew."""
    planner = Planner(manifest, Asked(weights), "cpu", None, 96)
    wanted = planner.wanted("decoder", SITES["decoder"], ["int8", "int4-rtn"])
    times = tuned_times(wanted, folder, lambda line: None, time_layers)
    return plan_bundle(planner.with_times(times), SITES, profile)


@pytest.mark.parametrize("per_weight", [CLOSE, FAR], ids=["close", "far"])
@pytest.mark.parametrize(("weights", "profile"), [("int8", "latency"), ("int8", "memory"), ("int4-rtn", "dual")])
def test_noise_of_any_strength_leaves_the_plan_as_it_is(manifest, tmp_path, weights, profile, per_weight) -> None:
    expected = tuned(manifest, weights, profile, tmp_path / "quiet", noisy(per_weight, 0, np.random.default_rng(0)))
    for number, stall_ms in enumerate([0.01, 0.1, 1.0] * 5):
        time_layers = noisy(per_weight, stall_ms, np.random.default_rng(number))
        assert tuned(manifest, weights, profile, tmp_path / str(number), time_layers) == expected


def test_the_two_machines_of_these_tests_have_plans_of_their_own(manifest, tmp_path) -> None:
    still = np.random.default_rng(0)
    close, far = (
        tuned(manifest, "int4-rtn", "dual", tmp_path / name, noisy(per_weight, 0, still))
        for name, per_weight in (("close", CLOSE), ("far", FAR))
    )
    kinds = [
        {(name, layer.choice.label) for name, plan in plans.items() for layer in plan.layers if layer.name != "lm_head"}
        for plans in (close, far)
    ]
    assert kinds == [
        {("decoder_prefill", "w8a8 8-bit"), ("decoder", "matmul_nbits 4-bit b64")},
        {("decoder_prefill", "matmul_nbits 8-bit b64"), ("decoder", "matmul_nbits 4-bit b128")},
    ]
