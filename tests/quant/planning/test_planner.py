from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bundle.directory import read_manifest
from bundle.errors import QuantizationError
from bundle.manifest import ComponentName, Manifest
from quant.planning.layer_times import LayerTimes, builtin_times
from quant.planning.plan import ComponentPlan
from quant.planning.planner import Planner, require_float
from quant.planning.recipes import RECIPES, Asked
from quant.planning.survey import Site
from quant.weights.table import PASSES, load_pass
from quant.weights.weight_pass import WeightPass

HEAD = Site("lm_head", "head", 64, 96)
UP, DOWN = Site("up", "linear", 64, 192), Site("down", "linear", 192, 64)
DECODER = (UP, DOWN, HEAD)
TOWER = (Site("fc1", "linear", 64, 128, rows=77),)
TABLE = (Site("tokens", "table", 64, 96),)


@pytest.fixture
def manifest(smolvlm_bundle: Path) -> Manifest:
    return read_manifest(smolvlm_bundle)


def planner_of(manifest: Manifest, weights: str, **changes) -> Planner:
    settings = {"target": "cpu", "times": None, "prompt_rows": 96, **changes}
    return Planner(manifest, Asked(weights), **settings)


def plan(
    manifest: Manifest, component: ComponentName, sites, weights: str, for_steps=False, **changes
) -> ComponentPlan:
    planner = planner_of(manifest, weights, **changes)
    return planner.plan_component(component, sites, recipe=planner.recipe_of(component), for_steps=for_steps)


def labels(plan: ComponentPlan) -> dict[str, str]:
    return {layer.name: layer.choice.label for layer in plan.layers}


def table_of(times_ms: dict[str, float]) -> LayerTimes:
    """Return times of `UP` at one row by form; the other layers have those of the built-in table."""
    return LayerTimes({f"64x192 {label} M=1": ms for label, ms in times_ms.items()}, "fixed")


@pytest.mark.parametrize("weights", ["int8", "int4", "ternary"])
@pytest.mark.parametrize("component", ["vision_encoder", "text_encoder"])
@pytest.mark.parametrize("times", [None, builtin_times()])
def test_encoders_are_w8a8_whatever_few_bits_are_asked_and_say_why(manifest, weights, component, times) -> None:
    found = plan(manifest, component, TOWER, weights, times=times)
    assert set(labels(found).values()) == {"w8a8 8-bit"}
    assert found.scheme == "int8"
    assert "many rows" in found.detail
    assert (f"8 bits, not {RECIPES[weights].bits}" in found.detail) == (weights != "int8")


def test_an_encoder_that_is_named_gets_what_was_asked(manifest) -> None:
    planner = Planner(manifest, Asked("int8", {"vision_encoder": "int4-rtn"}), "cpu", None, 96)
    found = planner.plan_component("vision_encoder", TOWER, recipe=planner.recipe_of("vision_encoder"))
    assert labels(found) == {"fc1": "matmul_nbits 4-bit b64"}
    assert found.scheme == "int4"


@pytest.mark.parametrize("times", [None, builtin_times()])
def test_an_int8_decoder_is_w8a8_for_prompts_and_weight_only_for_steps(manifest, times) -> None:
    prompts = plan(manifest, "decoder", DECODER, "int8", times=times)
    assert labels(prompts) == {"up": "w8a8 8-bit", "down": "w8a8 8-bit", "lm_head": "matmul_nbits 8-bit b64"} or times
    assert labels(prompts)["up"] == labels(prompts)["down"] == "w8a8 8-bit"
    assert prompts.scheme == "int8"
    steps = plan(manifest, "decoder", DECODER, "int8", for_steps=True, times=times)
    assert all(label.startswith("matmul_nbits 8-bit") for label in labels(steps).values())
    assert steps.scheme == "int8-weight-only"


def test_blocks_that_divide_come_first(manifest) -> None:
    found = plan(manifest, "decoder", (Site("a", "linear", 192, 64), Site("b", "linear", 256, 64)), "ternary")
    assert labels(found) == {"a": "matmul_nbits 2-bit b64 ternary", "b": "matmul_nbits 2-bit b128 ternary"}


def test_a_block_size_that_is_given_is_taken_everywhere(manifest) -> None:
    found = plan(manifest, "decoder", DECODER, "int4", block_size=32, times=builtin_times())
    assert set(labels(found).values()) == {"matmul_nbits 4-bit b32"}


def test_a_block_size_that_the_recipe_lacks_is_refused(manifest) -> None:
    with pytest.raises(QuantizationError, match="--block-size 32: 4-bit codes of bitsandbytes, have blocks of 64 only"):
        plan(manifest, "decoder", DECODER, "nf4", block_size=32)


def test_a_form_that_saves_enough_is_taken_by_all_layers_of_the_kind_and_the_reason_has_no_figures_of_the_day(
    manifest,
) -> None:
    times = table_of({"matmul_nbits 4-bit b64": 1.0, "matmul_nbits 4-bit b128": 0.6, "matmul_nbits 4-bit b32": 2.0})
    found = plan(manifest, "decoder", DECODER, "int4-rtn", for_steps=True, times=times)
    assert labels(found) == {
        "up": "matmul_nbits 4-bit b128",
        "down": "matmul_nbits 4-bit b128",
        "lm_head": "matmul_nbits 4-bit b64",
    }
    assert "less than 70% of the time of matmul_nbits 4-bit b64" in found.detail
    assert [(each.kind, each.num_layers, each.chosen) for each in found.decisions] == [
        ("linear", 2, "matmul_nbits 4-bit b128"),
        ("head", 1, "matmul_nbits 4-bit b64"),
    ]


def test_a_form_that_saves_little_is_left_alone(manifest) -> None:
    times = table_of({"matmul_nbits 4-bit b64": 1.0, "matmul_nbits 4-bit b128": 0.75, "matmul_nbits 4-bit b32": 2.0})
    found = plan(manifest, "decoder", DECODER, "int4-rtn", for_steps=True, times=times)
    assert labels(found)["up"] == "matmul_nbits 4-bit b64"


def test_plans_of_the_same_layers_are_equal_whatever_the_times_were(manifest) -> None:
    plans = [
        plan(manifest, "decoder", DECODER, "int4-rtn", for_steps=True, times=table_of({"matmul_nbits 4-bit b128": ms}))
        for ms in (0.001, 0.002)
    ]
    assert plans[0] == plans[1]
    assert plans[0].decisions != plans[1].decisions


def test_where_there_is_one_form_nothing_is_decided(manifest) -> None:
    assert plan(manifest, "vision_encoder", TOWER, "int8", times=builtin_times()).decisions == ()
    assert plan(manifest, "decoder", DECODER, "int8").decisions == ()


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_is_never_slower_than_its_default_and_always_the_same(manifest, seed: int) -> None:
    drawn = np.random.default_rng(seed).uniform(0.1, 1.0, 3)
    times = table_of({f"matmul_nbits 4-bit b{size}": ms for size, ms in zip((32, 64, 128), drawn, strict=True)})
    default, found, again = (
        plan(manifest, "decoder", DECODER, "int4-rtn", for_steps=True, times=each) for each in (None, times, times)
    )
    assert found == again
    before, after = (
        sum(times.ms(layer.num_inputs, layer.num_outputs, layer.choice, 1) for layer in each.layers)
        for each in (default, found)
    )
    assert after <= before


def test_a_token_table_is_looked_up_in_8_bits(manifest) -> None:
    found = plan(manifest, "embed_tokens", TABLE, "int8")
    assert labels(found) == {"tokens": "gather_blocks 8-bit b64"}
    assert found.scheme == "int8-weight-only"


@pytest.mark.parametrize(("table_bytes", "recipe"), [(100, "int8"), (200, "int4-rtn")])
def test_a_token_table_of_a_tenth_of_the_language_model_keeps_8_bits_unless_asked(
    manifest, table_bytes: int, recipe: str
) -> None:
    sizes = {"embed_tokens": table_bytes, "decoder": 900}
    parts = {
        name: part.model_copy(update={"weight_bytes": sizes.get(name, 0)}) for name, part in manifest.components.items()
    }
    sized = manifest.model_copy(update={"components": parts})
    assert planner_of(sized, "int4-gptq").recipe_of("embed_tokens") == recipe
    asked = Planner(sized, Asked("int4-gptq", {"embed_tokens": "int4"}), "cpu", None, 96)
    assert asked.recipe_of("embed_tokens") == "int4"


def test_a_portable_table_keeps_8_bits_and_is_called_so(manifest) -> None:
    portable = manifest.model_copy(update={"dialect": "portable"})
    found = plan(portable, "embed_tokens", TABLE, "int4")
    assert labels(found) == {"tokens": "gather_rows 8-bit"}
    assert found.scheme == "int8-weight-only"


def test_a_table_with_constant_ids_stays_float(manifest) -> None:
    found = plan(manifest, "vision_encoder", (Site("positions", "constant table", 64, 16),), "int8")
    assert labels(found) == {"positions": "fp32"}
    assert found.scheme == "fp32"
    assert found.methods == ()


def test_the_portable_dialect_refuses_what_it_has_no_operator_for(manifest) -> None:
    portable = manifest.model_copy(update={"dialect": "portable"})
    with pytest.raises(QuantizationError, match="--dialect contrib"):
        plan(portable, "decoder", DECODER, "ternary")
    assert set(labels(plan(portable, "decoder", DECODER, "int8")).values()) == {"w8a8 8-bit"}


EXPERTS = Site("experts", "experts", 128, 3 * 192, copies=4, num_hidden=192)
TERNARY_EXPERTS = Site("ternary", "ternary experts", 128, 3 * 256, copies=4, num_hidden=256)


@pytest.mark.parametrize(
    ("weights", "label"),
    [
        ("int8", "qmoe 8-bit b64"),
        ("int4", "qmoe 4-bit b64"),
        ("int4-hqq", "qmoe 4-bit b64 hqq"),
        ("ternary", "qmoe 2-bit b64 ternary"),
        ("fp32", "fp32"),
    ],
)
def test_experts_get_the_recipes_bits_in_a_block_that_divides_both_widths(manifest, weights, label) -> None:
    found = plan(manifest, "decoder", (EXPERTS,), weights)
    assert labels(found) == {"experts": label}
    bits = {"int8": 8, "int4": 4, "int4-hqq": 4, "ternary": 2, "fp32": 32}[weights]
    assert found.stored_bytes >= 4 * 3 * 128 * 192 * bits // 8


def test_experts_that_were_trained_ternary_keep_their_two_bits_under_every_recipe(manifest) -> None:
    for weights in ("int8", "int4", "ternary"):
        found = plan(manifest, "decoder", (TERNARY_EXPERTS,), weights)
        assert labels(found) == {"ternary": "qmoe 2-bit b128 ternary"}
        assert "hold these weights exactly" in found.detail


def test_experts_without_a_common_block_and_routers_stay_float(manifest) -> None:
    odd = Site("odd", "experts", 128, 3 * 80, copies=4, num_hidden=80)
    found = plan(manifest, "decoder", (odd, Site("r", "router", 128, 4)), "int4", times=builtin_times())
    assert labels(found) == {"odd": "fp32", "r": "fp32"}
    assert "no block divides both widths" in found.detail
    assert "sends tokens to other experts" in found.detail


def test_int4_in_standard_operators_takes_whole_blocks_only(manifest) -> None:
    portable = manifest.model_copy(update={"dialect": "portable"})
    found = plan(
        portable, "decoder", (UP, Site("odd", "linear", 80, 64)), "int4", for_steps=True, times=builtin_times()
    )
    assert labels(found)["up"].startswith("qdq_int4 4-bit")
    assert labels(found)["odd"] == "w8a8 8-bit"
    assert "no block divides its inputs" in found.detail


def test_a_gpu_gets_float16_encoders_and_weight_only_decoders(manifest) -> None:
    planner = planner_of(manifest, "int8", target="cuda")
    assert planner.recipe_of("vision_encoder") == "fp16"
    assert set(labels(plan(manifest, "decoder", DECODER, "int8", target="cuda")).values()) == {"matmul_nbits 8-bit b64"}
    named = Planner(manifest, Asked("int8", {"vision_encoder": "int8"}), "cuda", None, 96)
    assert named.recipe_of("vision_encoder") == "int8"


def test_an_fp32_bundle_is_accepted_and_a_quantized_one_named(manifest) -> None:
    require_float(manifest)
    decoder = manifest.components["decoder"].model_copy(update={"scheme": "int4"})
    done = manifest.model_copy(update={"components": {**manifest.components, "decoder": decoder}})
    with pytest.raises(QuantizationError, match=r"quantized already \(decoder is int4\)"):
        require_float(done)


@pytest.mark.parametrize("name", PASSES)
def test_every_scheme_of_the_table_loads(name: str) -> None:
    assert issubclass(load_pass(name), WeightPass)


def test_an_unknown_scheme_is_answered_with_the_known_ones() -> None:
    with pytest.raises(QuantizationError, match="known: w8a8, "):
        load_pass("w2a2")
