from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bundle.directory import open_bundle, read_manifest, seal
from bundle.errors import GateError, QuantizationError
from bundle.manifest import Manifest
from bundle.report import ImageSensitivity, Likenesses, TeacherForced
from quant.planning.recipes import RECIPES
from quant.quality.evaluation import Evaluation, Measured, PairedFlags
from quant.quality.gate import (
    LIMITS,
    foreign_samples,
    judge,
    judge_all,
    parse_limits,
    require_measurable,
    unmeasured_gates,
)
from quant.quality.parity import Parity

GRAPHS = ("vision_encoder", "text_encoder", "embed_tokens", "decoder", "decoder_prefill")
ALIKE = Likenesses(n=200, cosine_mean=0.999, cosine_p1=0.99, correlation=0.999, spread=1.0)
PARITY = {"decoder": Parity(cosine=0.99, max_abs=0.1)}


def accuracy(num: int, num_lost: int = 0) -> PairedFlags:
    return PairedFlags(np.ones(num, bool), np.arange(num) >= num_lost)


def answered(num: int, num_lost: int = 0, kl_mean: float = 0.001, correlation: float = 0.999) -> Measured:
    """Return the results of a vision-language variant that is well but for what is asked."""
    forced = TeacherForced(
        num_samples=num,
        num_tokens=3 * num,
        kl_mean=kl_mean,
        kl_p99=0.01,
        top1_agreement=0.9,
        delta_nll=0.0,
        num_clear_tokens=2 * num,
        clear_agreement=0.999,
    )
    return Measured(
        {"all": accuracy(num, num_lost).summary()},
        forced,
        image_sensitivity=ImageSensitivity(n=num, fp32=2.0, quantized=2.0, ratio=1.0),
        likenesses={"image_features": ALIKE.model_copy(update={"correlation": correlation})},
    )


def failed(measured: Measured | None, weights: str = "int8", **overrides: float) -> set[str]:
    gates = judge_all(PARITY, measured, weights, overrides)
    return {gate.name for gate in gates if not gate.passed}


@pytest.mark.parametrize(
    ("measure", "value", "passed"),
    [
        ("kl_mean", 0.02, True),
        ("kl_mean", 0.021, False),
        ("clear_agreement", 0.98, True),
        ("clear_agreement", 0.97, False),
        ("kl_mean", float("nan"), False),
        ("cosine_mean", float("nan"), False),
    ],
)
def test_a_value_at_its_limit_passes_and_nothing_beyond_or_undefined(measure: str, value: float, passed: bool) -> None:
    assert judge(measure, value, 5, "int8").passed is passed


def test_a_gate_names_what_was_measured() -> None:
    gate = judge("cosine_mean", 0.5, 7, "int4", of="image")
    assert (gate.name, gate.n, gate.direction, gate.passed) == ("cosine_mean/image", 7, "min", False)


def test_a_part_with_a_limit_of_its_own_is_held_to_that() -> None:
    assert judge("canary_cosine", 0.9, 1, "int4", of="decoder").passed
    assert not judge("canary_cosine", 0.9, 1, "int4", of="vision_encoder").passed


def test_a_decoder_for_prompts_is_held_to_8_bits_whatever_runs_the_steps() -> None:
    assert judge("canary_cosine", 0.5, 1, "int4", of="decoder").passed
    assert not judge("canary_cosine", 0.5, 1, "int4", of="decoder_prefill").passed
    assert judge("canary_cosine", 0.9, 1, "int4", of="decoder_prefill").passed


def test_a_measure_without_a_limit_is_refused() -> None:
    with pytest.raises(QuantizationError, match="no limit is set for charm of int8"):
        judge("charm", 1.0, 1, "int8")


def test_every_scheme_has_every_limit() -> None:
    assert len({frozenset(limits) for limits in LIMITS.values()}) == 1


def test_whatever_can_be_asked_for_has_limits() -> None:
    assert RECIPES.keys() - {"fp32"} <= LIMITS.keys()


def test_a_variant_that_is_well_passes_every_gate() -> None:
    assert failed(answered(300)) == set()


@pytest.mark.parametrize(
    ("weights", "num", "passes"), [("int8", 99, False), ("int8", 100, True), ("int4", 75, True), ("ternary", 49, False)]
)
def test_few_samples_never_pass_however_well_they_went(weights: str, num: int, passes: bool) -> None:
    # n samples without a loss exclude losses above 3 / n; the limits are 3, 4 and 6 points.
    assert (failed(answered(num), weights) == set()) is passes
    if not passes:
        assert failed(answered(num), weights) == {"accuracy_loss_points/high"}


def test_a_loss_that_is_proved_fails_and_one_that_may_be_chance_does_not() -> None:
    # 1 of 300 lost: 0.33 points, the interval reaches 0. 12 of 300: 4 points, the low end is about 1.9.
    assert failed(answered(300, num_lost=1)) == set()
    assert failed(answered(300, num_lost=12)) == {"accuracy_loss_points/low", "accuracy_loss_points/high"}


def test_a_loss_of_the_limit_itself_mostly_passes_and_three_times_it_mostly_fails() -> None:
    rng = np.random.default_rng(0)
    low, high = (
        np.mean([not failed(answered(600, num_lost=rng.binomial(600, rate))) for _ in range(40)])
        for rate in (0.005, 0.03)
    )
    # Operating points at 600 questions (the default), limit 0.5 points: power at 3 points, false alarms at 0.5.
    assert low > 0.9
    assert high < 0.1


@pytest.mark.parametrize(
    ("measured", "names"),
    [
        (answered(300, kl_mean=0.03), {"kl_mean"}),
        (answered(300, correlation=0.3), {"correlation/image_features"}),
    ],
)
def test_each_measure_fails_by_itself(measured: Measured, names: set[str]) -> None:
    assert failed(measured) == names


def test_features_are_not_held_to_an_angle_but_embeddings_are() -> None:
    askew = ALIKE.model_copy(update={"cosine_mean": 0.5, "cosine_p1": 0.5})
    tasks = {"all": accuracy(400).summary()}
    assert failed(Measured(tasks, likenesses={"image": askew})) == {"cosine_mean/image", "cosine_p1/image"}


def unmeasured(measured: Measured, no_accuracy: str = "") -> dict[str, str]:
    return {each.name: each.reason for each in unmeasured_gates(measured, no_accuracy)}


def test_what_wants_an_image_is_not_measured_where_no_sample_has_one() -> None:
    seen = answered(300)
    blind = replace(seen, likenesses={}, image_sensitivity=None)
    names = {"correlation/image_features", "spread/image_features", "image_sensitivity"}
    assert unmeasured(seen) == {}
    assert unmeasured(blind) == dict.fromkeys(names, "no sample has an image")
    judged = {gate.name for gate in judge_all(PARITY, blind, "int8")}
    assert judged | names == {gate.name for gate in judge_all(PARITY, seen, "int8")}
    assert not judged & names


def test_images_that_are_all_the_same_set_nothing_apart() -> None:
    alone = {"image_features": ALIKE.model_copy(update={"n": 1, "correlation": None, "spread": None})}
    found = unmeasured(replace(answered(300), likenesses=alone, image_sensitivity=None))
    assert found == {
        "correlation/image_features": "the samples have no two images that the parent tells apart",
        "spread/image_features": "the samples have no two images that the parent tells apart",
        "image_sensitivity": "no two questions show different images, equally many",
    }


def test_a_parent_that_does_not_look_says_nothing_of_a_variants_sight() -> None:
    blind = ImageSensitivity(n=9, fp32=0.0, quantized=1.0, ratio=None)
    found = unmeasured(replace(answered(300), image_sensitivity=blind))
    assert found == {"image_sensitivity": "the parent's answers do not depend on the images of these samples"}


def test_accuracy_is_not_measured_where_nothing_is_right_and_the_reason_is_kept() -> None:
    found = unmeasured(replace(answered(300), tasks={}), "nobody knows the answers")
    assert found == dict.fromkeys(("accuracy_loss_points/low", "accuracy_loss_points/high"), "nobody knows the answers")
    pair = dict.fromkeys(("image", "text"), ALIKE)
    assert unmeasured(Measured({}, likenesses=pair)).keys() == found.keys()


def test_without_samples_nothing_is_told_to_be_unmeasured() -> None:
    assert unmeasured_gates(None) == ()


def questions(num: int, no_accuracy: str = "") -> Evaluation:
    return Evaluation(questions=[object()] * num, source="mine.jsonl", no_accuracy=no_accuracy)  # type: ignore[list-item]


@pytest.mark.parametrize(("weights", "fewest"), [("int8", 100), ("int4", 75), ("ternary", 50)])
def test_samples_too_few_to_pass_are_refused_with_the_number_that_can(weights: str, fewest: int) -> None:
    require_measurable(questions(fewest), weights, is_dual=False)
    told = f"mine.jsonl gives {fewest - 1} answers to judge, and no fewer than {fewest} can pass"
    with pytest.raises(QuantizationError, match=told):
        require_measurable(questions(fewest - 1), weights, is_dual=False)
    # ... and what passes the check can pass the gate.
    assert failed(answered(fewest), weights) == set()
    assert failed(answered(fewest - 1), weights) == {"accuracy_loss_points/high"}


def test_the_limit_that_is_offered_for_few_samples_lets_them_through() -> None:
    for num in (1, 2, 7, 41):
        with pytest.raises(QuantizationError, match="--limit accuracy_loss_points/high=") as refused:
            require_measurable(questions(num), "int8", is_dual=False)
        offered = parse_limits([re.search(r"--limit (\S+=[\d.]+)\)", str(refused.value))[1]])  # type: ignore[index]
        require_measurable(questions(num), "int8", is_dual=False, overrides=offered)
        assert failed(answered(num), **offered) == set()


def test_samples_without_right_answers_need_no_number() -> None:
    require_measurable(questions(1, "nobody knows"), "int8", is_dual=False)


def test_a_caption_counts_twice_for_it_is_searched_both_ways() -> None:
    captions = [object()] * 50
    require_measurable(Evaluation(captions=captions), "int8", is_dual=True)  # type: ignore[arg-type]
    with pytest.raises(QuantizationError, match="gives 98 answers"):
        require_measurable(Evaluation(captions=captions[1:]), "int8", is_dual=True)  # type: ignore[arg-type]
    with pytest.raises(QuantizationError, match="gives 0 answers"):
        require_measurable(Evaluation(captions=captions[:1]), "int8", is_dual=True)  # type: ignore[arg-type]


def test_samples_that_the_parent_foretells_no_better_than_a_guess_are_told(smolvlm_bundle: Path, clip_bundle) -> None:
    manifest, clip = read_manifest(smolvlm_bundle), read_manifest(clip_bundle)
    assert manifest.decoder is not None

    def told(nll: float | None, of: Manifest = manifest) -> str:
        seen = answered(9)
        assert seen.teacher_forced is not None
        return foreign_samples(
            replace(seen, teacher_forced=seen.teacher_forced.model_copy(update={"parent_nll": nll})), of
        )

    guessed = np.log(manifest.decoder.vocab_size)
    assert told(guessed - 0.01) == told(None) == told(99.0, clip) == foreign_samples(None, manifest) == ""
    assert f"{guessed + 2:.1f} nats a token where guessing costs {guessed:.1f}" in told(guessed + 2)
    assert "--eval" in told(guessed + 2)


def test_samples_of_the_other_kind_are_refused() -> None:
    with pytest.raises(QuantizationError, match="no captions or labels"):
        require_measurable(questions(300), "int8", is_dual=True)
    with pytest.raises(QuantizationError, match="no questions"):
        require_measurable(Evaluation(), "int8", is_dual=False)


def test_without_samples_only_the_canary_is_judged() -> None:
    gates = judge_all(PARITY, None, "int4")
    assert [(gate.name, gate.basis, gate.passed) for gate in gates] == [("canary_cosine/decoder", "canary", True)]


def test_a_limit_of_the_users_own_replaces_the_table_and_says_so() -> None:
    gate = next(
        g for g in judge_all(PARITY, answered(300, kl_mean=0.09), "int8", {"kl_mean": 0.1}) if g.name == "kl_mean"
    )
    assert (gate.limit, gate.passed, gate.is_overridden) == (0.1, True, True)
    assert not any(g.is_overridden for g in judge_all(PARITY, answered(300), "int8"))


def test_a_part_is_overridden_alone_or_with_its_measure() -> None:
    assert failed(answered(20), **{"accuracy_loss_points/high": 20.0}) == set()
    assert failed(answered(300), canary_cosine=0.999) == {"canary_cosine/decoder"}


def test_limits_are_read_from_options() -> None:
    assert parse_limits(["kl_mean=0.1", "accuracy_loss_points/high=6"]) == {
        "kl_mean": 0.1,
        "accuracy_loss_points/high": 6.0,
    }


@pytest.mark.parametrize("option", ["kl_mean", "kl_mean=", "kl_mean=low", "kl_mean=nan", "=1"])
def test_an_option_that_is_no_limit_is_refused(option: str) -> None:
    with pytest.raises(QuantizationError, match="--limit"):
        parse_limits([option])


@pytest.mark.parametrize(
    ("option", "known"),
    [
        ("kl_mean/decoder=1", "known: kl_mean alone"),
        ("accuracy_loss_points/hihg=9", "known: accuracy_loss_points/low, accuracy_loss_points/high"),
    ],
)
def test_a_limit_on_a_part_that_no_gate_has_is_refused(option: str, known: str) -> None:
    with pytest.raises(QuantizationError, match=known):
        parse_limits([option])


def test_every_gate_can_be_given_a_limit_by_its_name() -> None:
    gates = judge_all(dict.fromkeys(GRAPHS, Parity(cosine=1.0, max_abs=0.0)), answered(300), "int4")
    assert {f"canary_cosine/{graph}" for graph in GRAPHS} < {gate.name for gate in gates}
    assert parse_limits(f"{gate.name}=1" for gate in gates) == {gate.name: 1.0 for gate in gates}


def test_a_limit_on_what_no_gate_measures_lists_the_measures() -> None:
    with pytest.raises(QuantizationError, match=r"no gate measures charm; known: .*kl_mean"):
        parse_limits(["charm=1"])


def test_a_bundle_whose_measure_is_undefined_is_refused_by_that_gate(clip_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_bundle, tmp_path / "variant")
    gate = judge("kl_mean", float("nan"), 5, "int8")
    seal(folder, read_manifest(folder).model_copy(update={"gates": (gate,)}))
    with pytest.raises(GateError, match="kl_mean nan"):
        open_bundle(folder)
