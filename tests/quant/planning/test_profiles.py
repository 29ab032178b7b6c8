from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundle.directory import read_manifest
from bundle.errors import QuantizationError
from bundle.manifest import Manifest
from bundle.report import DecoderProfile
from graphs.lowering.component import added_bytes
from graphs.store import open_graph
from quant.planning.layer_times import LayerTimes, builtin_times
from quant.planning.planner import Planner
from quant.planning.profiles import Mix, compare_profiles, decoder_plan, plan_bundle, read_profile, weight_bytes
from quant.planning.recipes import Asked
from quant.planning.survey import Site, survey_bundle


@pytest.fixture
def manifest(smolvlm_bundle: Path) -> Manifest:
    return read_manifest(smolvlm_bundle)


@pytest.fixture
def sites(smolvlm_bundle: Path, manifest: Manifest):
    graphs = {name: open_graph(smolvlm_bundle / part.file).graph for name, part in manifest.components.items()}
    return survey_bundle(graphs)


def planner_of(manifest: Manifest, weights: str) -> Planner:
    return Planner(manifest, Asked(weights), "cpu", builtin_times(), Mix().prompt_tokens(manifest))


def compared(manifest: Manifest, sites, weights: str, chosen) -> dict[str, DecoderProfile]:
    found = compare_profiles(planner_of(manifest, weights), sites, chosen, Mix(), builtin_times())
    return {profile.name: profile for profile in found}


@pytest.mark.parametrize(
    ("asked", "recipe", "profile"),
    [
        (None, "int8", "latency"),
        (None, "int4", "memory"),
        (None, "ternary", "memory"),
        (None, "int8-static", None),
        (None, "fp32", None),
        ("memory", "int8", "memory"),
        ("dual", "nf4", "dual"),
    ],
)
def test_weights_have_a_profile_of_their_own(asked: str | None, recipe: str, profile: str | None) -> None:
    assert read_profile(asked, recipe) == profile


@pytest.mark.parametrize(("asked", "recipe"), [("latency", "int4"), ("dual", "fp32"), ("fast", "int8")])
def test_a_profile_that_the_weights_lack_is_answered_with_those_they_have(asked: str, recipe: str) -> None:
    with pytest.raises(QuantizationError, match=rf"profile '{asked}' is not for a decoder of {recipe}, which has"):
        read_profile(asked, recipe)


def test_dual_plans_a_second_decoder_for_prompts_with_the_head_of_the_first(manifest, sites) -> None:
    plans = plan_bundle(planner_of(manifest, "int4"), sites, "dual")
    prompts, steps = plans["decoder_prefill"], plans["decoder"]
    assert (prompts.scheme, steps.scheme) == ("int8", "int4")
    assert (prompts.phase, steps.phase) == ("prompt", "step")
    assert decoder_plan(plans, "prompt") is prompts
    assert decoder_plan(plans, "step") is steps
    head = next(site.name for site in sites["decoder"] if site.kind == "head")
    choices = [{layer.name: layer.choice for layer in plan.layers} for plan in (prompts, steps)]
    assert choices[0].keys() == choices[1].keys()
    assert choices[0][head] == choices[1][head]
    assert all(choice.method == "w8a8" for name, choice in choices[0].items() if name != head)


@pytest.mark.parametrize(("weights", "profile"), [("int8", "latency"), ("int4", "memory"), ("fp32", None)])
def test_other_profiles_run_prompts_and_steps_in_one_decoder(manifest, sites, weights: str, profile) -> None:
    plans = plan_bundle(planner_of(manifest, weights), sites, profile)
    assert plans.keys() == manifest.components.keys()
    assert plans["decoder"].phase == "any"
    assert decoder_plan(plans, "prompt") is decoder_plan(plans, "step") is plans["decoder"]


def test_each_profile_is_best_at_what_it_is_for(manifest, sites) -> None:
    found = compared(manifest, sites, "int4", "memory")
    assert [name for name, profile in found.items() if profile.is_chosen] == ["memory"]
    assert found["latency"].first_token_ms < found["memory"].first_token_ms
    assert found["memory"].inter_token_ms < found["latency"].inter_token_ms
    assert found["memory"].weight_bytes < found["latency"].weight_bytes < found["dual"].weight_bytes
    assert found["dual"].first_token_ms == pytest.approx(found["latency"].first_token_ms, rel=0.01)
    assert found["dual"].inter_token_ms == found["memory"].inter_token_ms


def test_int8_is_compared_with_int4_as_its_few_bits(manifest, sites) -> None:
    assert (
        compared(manifest, sites, "int8", "latency")["memory"] == compared(manifest, sites, "int4", "latency")["memory"]
    )


def test_predicted_times_are_sums_over_layers(manifest, sites) -> None:
    times = LayerTimes({}, "")
    found = compared(manifest, sites, "int8", "latency")["latency"]
    decoder = plan_bundle(planner_of(manifest, "int8"), sites, "latency")["decoder"]
    by_hand = sum(times.ms(layer.num_inputs, layer.num_outputs, layer.choice, 1) for layer in decoder.layers)
    assert found.inter_token_ms == pytest.approx(by_hand, abs=1e-3)
    assert found.note.endswith(f"{32 + manifest.image_prompt.tokens_per_tile} rows, one thread")


def test_a_token_in_the_cache_is_its_keys_and_values_in_every_layer(manifest, sites, smolvlm_checkpoint: Path) -> None:
    text = json.loads((smolvlm_checkpoint / "config.json").read_text(encoding="utf-8"))["text_config"]
    head_size = text["hidden_size"] // text["num_attention_heads"]
    num_bytes = 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * head_size * 4  # float32
    found = compared(manifest, sites, "int4", "memory")
    assert {profile.kv_bytes_per_token for profile in found.values()} == {num_bytes}


def test_a_tied_table_takes_the_form_of_the_head_and_is_counted_once(manifest) -> None:
    sites = {
        "decoder": (Site("up", "linear", 128, 64), Site("head", "head", 128, 512)),
        "embed_tokens": (Site("tokens", "tied table", 128, 512),),
    }
    plans = plan_bundle(planner_of(manifest, "int4"), sites, "memory")
    head, table = plans["decoder"].layers[1], plans["embed_tokens"].layers[0]
    assert table.choice.form == head.choice.form
    assert (table.stored_bytes, table.reason) == (0, "the codes of the tied head, stored once")
    untied = plan_bundle(
        planner_of(manifest, "int4"), {**sites, "embed_tokens": (Site("tokens", "table", 128, 512),)}, "memory"
    )
    assert untied["embed_tokens"].layers[0].stored_bytes > 0


def test_predicted_bytes_of_an_unchanged_bundle_are_its_own(manifest, sites) -> None:
    predicted = weight_bytes(plan_bundle(planner_of(manifest, "fp32"), sites, None), manifest)
    assert predicted == manifest.weight_bytes + added_bytes(manifest, has_step_graph=False)
