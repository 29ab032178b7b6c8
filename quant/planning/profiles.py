"""Three ways to run a decoder, each with its predicted times and memory; one is chosen.

latency  W8A8 for prompts and steps: the first token soonest.
memory   few bits for both: the fewest bytes, and steps that read the least.
dual     W8A8 for prompts beside few bits for steps, over one cache: both, for the bytes of both.

Times are sums over linear layers in `LayerTimes`, on one thread. Attention, norms and sampling come on top; they are
the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from bundle.errors import QuantizationError
from bundle.manifest import ComponentName, Manifest, RunPhase, graph_name
from bundle.report import DecoderProfile
from graphs.lowering.component import added_bytes
from quant.planning.layer_times import LayerTimes
from quant.planning.plan import ComponentPlan
from quant.planning.planner import Planner, Sites
from quant.planning.recipes import RECIPES, Asked

ProfileName = Literal["latency", "memory", "dual"]
Plans = dict[ComponentName, ComponentPlan]

_FEW_BITS = "int4"
"""What a profile of few bits is where the user named none."""


@dataclass(frozen=True)
class Mix:
    """The request that times are predicted for.

    Attributes:
        images: Encoded, each as one tile.
        text_tokens: Of the prompt beside the images' rows.
        answer_tokens: Generated; they count in the cache.
    """

    images: int = 1
    text_tokens: int = 32
    answer_tokens: int = 32

    def prompt_tokens(self, manifest: Manifest) -> int:
        """Return the rows of the prompt."""
        return self.text_tokens + self.images * (manifest.image_prompt.tokens_per_tile if manifest.image_prompt else 0)

    def note(self, manifest: Manifest) -> str:
        """Return it in words."""
        rows = self.prompt_tokens(manifest)
        return f"{self.images} x image of one tile, {self.text_tokens} text tokens: {rows} rows, one thread"


def read_profile(profile: str | None, decoder_recipe: str) -> ProfileName | None:
    """Return the profile to be built: the one asked for, or the recipe's own; None for recipes that are neither.

    Raises:
        QuantizationError: No such profile, or not of these weights.
    """
    fits: dict[str, tuple[ProfileName, ...]] = dict.fromkeys(("int8", "int8-rtn"), ("latency", "memory", "dual"))
    few_bits = RECIPES[decoder_recipe].bits <= 4
    known = fits.get(decoder_recipe, ("memory", "dual") if few_bits else ())
    if profile is None:
        return known[0] if known else None
    found = next((name for name in known if name == profile), None)
    if found is None:
        raise QuantizationError(
            f"profile {profile!r} is not for a decoder of {decoder_recipe}, which has {', '.join(known) or 'none'}; "
            f"all: {', '.join(get_args(ProfileName))}"
        )
    return found


def plan_bundle(planner: Planner, sites: Sites, profile: ProfileName | None) -> Plans:
    """Return the plan of every graph; under `dual` a graph for prompts stands beside the decoder."""
    plans: Plans = {}
    for component, of_graph in sites.items():
        recipe = planner.recipe_of(component)
        if component == "decoder":
            plans |= _plan_decoder(planner, sites, profile, recipe)
        else:
            plans[component] = planner.plan_component(component, of_graph, recipe=recipe)
    return _share_head(planner, sites, plans)


def _share_head(planner: Planner, sites: Sites, plans: Plans) -> Plans:
    """Return the plans with a tied table in the form of the head."""
    tied = {site.name for site in sites.get("embed_tokens", ()) if site.kind == "tied table"}
    heads = [layer for layer in plans["decoder"].layers if layer.name in _heads(sites)] if "decoder" in plans else []
    if not tied or not heads:
        return plans
    tables = plans["embed_tokens"]
    layers = tuple(planner.with_head(layer, heads[0]) if layer.name in tied else layer for layer in tables.layers)
    return {**plans, "embed_tokens": replace(tables, layers=layers)}


def _heads(sites: Sites) -> set[str]:
    return {site.name for site in sites["decoder"] if site.kind == "head"}


def compare_profiles(
    planner: Planner, sites: Sites, chosen: ProfileName, mix: Mix, times: LayerTimes
) -> tuple[DecoderProfile, ...]:
    """Return what each profile is predicted to take, with few bits as asked, or int4 where none were."""
    asked = planner.recipe_of("decoder")
    rows: list[DecoderProfile] = []
    for name in get_args(ProfileName):
        recipe = "int8" if name == "latency" else asked if name == chosen or asked != "int8" else _FEW_BITS
        plans = plan_bundle(_asked_for(planner, recipe), sites, name)
        rows.append(_predicted(name, chosen, plans, planner.manifest, sites, mix, times))
    return tuple(rows)


def _asked_for(planner: Planner, recipe: str) -> Planner:
    """Return the planner of a user who had asked for this decoder; other components stay as they were named."""
    if planner.recipe_of("decoder") == recipe:
        return planner
    named: dict[ComponentName, str] = {
        part: name for part, name in planner.asked.by_component.items() if part != "decoder"
    }
    return replace(planner, asked=Asked(recipe, named))


def _plan_decoder(planner: Planner, sites: Sites, profile: ProfileName | None, recipe: str) -> Plans:
    of_graph = sites["decoder"]
    if (
        profile in (None, "latency") or planner.manifest.embeds or planner.manifest.reads_pairs
    ):  # which runs prompts alone
        return {"decoder": planner.plan_component("decoder", of_graph, recipe=recipe)}
    steps = planner.plan_component("decoder", of_graph, recipe=recipe, for_steps=True)
    if profile == "memory":
        return {"decoder": steps}
    prompts = planner.plan_component("decoder", of_graph, recipe="int8").with_layers_of(steps, _heads(sites))
    name = graph_name("decoder", "prompt")
    return {
        "decoder": replace(steps, phase="step"),
        name: replace(prompts, component=name, source="decoder", phase="prompt"),
    }


def decoder_plan(plans: Mapping[ComponentName, ComponentPlan], phase: RunPhase) -> ComponentPlan:
    """Return the plan of the graph that runs a decoder's tokens of a phase."""
    return next(plan for plan in plans.values() if plan.parent == "decoder" and plan.phase in ("any", phase))


def _predicted(
    name: ProfileName,
    chosen: ProfileName,
    plans: Mapping[ComponentName, ComponentPlan],
    manifest: Manifest,
    sites: Sites,
    mix: Mix,
    times: LayerTimes,
) -> DecoderProfile:
    prompt, step = decoder_plan(plans, "prompt"), decoder_plan(plans, "step")
    one_row = {site.name: 1.0 for site in sites["decoder"] if site.kind == "head"}
    vision_rows = {site.name: float(site.rows or 1) for site in sites.get("vision_encoder", ())}
    first_ms = _ms(prompt, one_row, mix.prompt_tokens(manifest), times)
    if "vision_encoder" in plans:
        first_ms += mix.images * _ms(plans["vision_encoder"], vision_rows, 1, times)
    return DecoderProfile(
        name=name,
        is_chosen=name == chosen,
        first_token_ms=round(first_ms, 4),
        inter_token_ms=round(_ms(step, {}, 1, times), 4),
        weight_bytes=weight_bytes(plans, manifest),
        kv_bytes_per_token=manifest.state_bytes_per_token,
        note=mix.note(manifest),
    )


def _ms(plan: ComponentPlan, rows: Mapping[str, float], other_rows: float, times: LayerTimes) -> float:
    """Return the time of one pass through a graph's linear layers."""
    return sum(
        times.ms(layer.num_inputs, layer.num_outputs, layer.choice, rows.get(layer.name, other_rows))
        for layer in plan.layers
        if not layer.is_table
    )


def weight_bytes(plans: Mapping[ComponentName, ComponentPlan], manifest: Manifest) -> int:
    """Return the bytes of all graphs: planned layers in their forms, the rest (norms, convolutions) as exported.

    What lowering adds is counted, and what it saves (a few bytes for every two layers that become one) is not.
    """
    total = added_bytes(manifest, has_step_graph=any(plan.phase == "step" for plan in plans.values()))
    for plan in plans.values():
        total += manifest.components[plan.parent].weight_bytes - plan.fp32_bytes + plan.stored_bytes
    return total
