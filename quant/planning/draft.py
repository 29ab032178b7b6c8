"""What will be done to a bundle, decided before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from bundle.directory import Bundle
from bundle.errors import QuantizationError
from bundle.machine import cache_folder
from bundle.manifest import ComponentName, Manifest, Target
from bundle.report import DecoderProfile
from bundle.states import CacheScheme
from graphs.store import open_graph
from quant.calibration.feeds import FeedSource
from quant.kv_cache.refusals import coded_states, require_own_rows
from quant.planning.bit_search import Found, search_bits
from quant.planning.cliffs import refuse_graphs, refuse_target
from quant.planning.layer_runs import Timed, TimeLayers, time_layers
from quant.planning.layer_times import LayerTimes, builtin_times, tuned_times
from quant.planning.planner import Planner, Sites
from quant.planning.profiles import (
    Mix,
    Plans,
    ProfileName,
    compare_profiles,
    decoder_plan,
    plan_bundle,
    read_profile,
    weight_bytes,
)
from quant.planning.recipes import RECIPES, Asked, read_weights
from quant.planning.survey import survey_bundle
from quant.planning.tied_table import with_head
from runtime.settings import EncoderRuntime

Say = Callable[[str], None]
BLOCK_SIZES = (32, 64, 128)
"""That every operator with blocks has a fast kernel for."""


@dataclass(frozen=True)
class Options:
    """How a plan is made, beside the weights asked for.

    Attributes:
        block_size: Weights per scale, for every layer that has blocks; None: chosen.
        profile: "latency", "memory" or "dual"; None: the one of the weights.
        target: The execution provider that the variant is for.
        tune: Measure the layers' times on this machine; else the built-in table is used.
        max_bytes: Of all weights: layers of the decoder get more bits than asked while they fit.
        max_kl: Predicted mean KL in nats: layers of the decoder get more bits than asked until it is kept.
        mix: The request that times are predicted for.
        encoder_runtime: What runs encoders where the variant is measured.
        kv_cache: What the cache holds, "int8" or "int4"; None: floats.
    """

    block_size: int | None = None
    profile: str | None = None
    target: Target = "cpu"
    tune: bool = False
    max_bytes: int | None = None
    max_kl: float | None = None
    mix: Mix = field(default_factory=Mix)
    encoder_runtime: EncoderRuntime = "onnxruntime"
    kv_cache: str | None = None


@dataclass(frozen=True)
class Draft:
    """A whole bundle's plan.

    Attributes:
        asked: The weights asked for.
        profile: Of the decoder; None where there is none or its recipe is of no profile.
        plans: By component; under the profile "dual" two of them are of the decoder.
        profiles: The decoder's profiles beside each other; empty where they are not predicted.
        times_source: Where the times come from that decided; "" where none did.
        cached_tokens: Prompt and answer of the request that the profiles are predicted for.
        search: What the search for bits found, where a limit was given.
        cache: How the cache is stored.
    """

    asked: Asked
    profile: ProfileName | None
    plans: Plans
    profiles: tuple[DecoderProfile, ...]
    times_source: str = ""
    cached_tokens: int = 0
    search: Found | None = None
    cache: CacheScheme = "float"

    @property
    def label(self) -> str:
        """Return what a variant's name gets: weights, profile where it is not the weights' own, codes of a cache."""
        own = read_profile(None, self.asked.recipe_of("decoder")) if self.profile else None
        name = self.asked.label if self.search is None else f"{self.asked.label}-mixed"
        name = name if self.profile == own else f"{name}-{self.profile}"
        return name if self.cache == "float" else f"{name}-kv-{self.cache}"


def make_draft(
    bundle: Bundle, weights: str, options: Options, say: Say, time_layers: TimeLayers = time_layers
) -> Draft:
    """Return the plan for an fp32 bundle.

    Args:
        bundle: The parent.
        weights: The `--weights` option.
        options: Beside it.
        say: Told of each step.
        time_layers: What measures layers, where `options` ask for it.

    Raises:
        QuantizationError: Weights, profile, block or target that are unknown, do not fit, or are a known cliff.
    """
    manifest = planned_manifest(bundle.manifest, options)
    asked = read_weights(weights, manifest, may_keep_all=options.kv_cache is not None)
    if options.block_size not in (None, *BLOCK_SIZES):
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise QuantizationError(f"--block-size {options.block_size}: weights share a scale in blocks of {sizes}")
    refuse_target(manifest, options.target)
    graphs = {name: open_graph(bundle.graph_path(name)).graph for name in manifest.components}
    refuse_graphs(graphs.values(), manifest.dialect, options.target)
    if options.kv_cache is not None:
        require_own_rows(graphs["decoder"], options.kv_cache)
    sites = survey_bundle(graphs)
    profile = _profile_of(asked, manifest, options)
    planner = Planner(manifest, asked, options.target, None, options.mix.prompt_tokens(manifest), options.block_size)
    plan_bundle(planner, sites, profile)  # refuses what cannot be done before time is spent on measuring
    if options.target != "cpu":
        return Draft(asked, profile, plan_bundle(planner, sites, profile), ())
    times = _times(planner, sites, options, say, time_layers)
    planner = planner.with_times(times)
    profiles = compare_profiles(planner, sites, profile, options.mix, times) if profile else ()
    tokens = options.mix.prompt_tokens(manifest) + options.mix.answer_tokens
    plans, cache = plan_bundle(planner, sites, profile), manifest.cache_scheme
    draft = Draft(asked, profile, plans, profiles, times.source, tokens, cache=cache)
    _tell_doubts(draft, say)
    return draft


def planned_manifest(parent: Manifest, options: Options) -> Manifest:
    """Return a parent's manifest with the states that its variant will have: plans count their bytes.

    Raises:
        QuantizationError: A cache that cannot hold what is asked.
    """
    if options.kv_cache is None:
        return parent
    return parent.model_copy(update={"states": coded_states(parent, options.kv_cache, options.target)})


def _tell_doubts(draft: Draft, say: Say) -> None:
    """Say where noise kept the planner from telling forms apart."""
    for name, plan in draft.plans.items():
        for decision in plan.decisions:
            if decision.doubt:
                say(f"{name}, {decision.num_layers} x {decision.kind}: {decision.doubt}")


def fit_bits(draft: Draft, source: FeedSource, options: Options, say: Say) -> Draft:
    """Return the draft with a decoder of more bits where a limit of bytes or loss asks for them.

    Raises:
        QuantizationError: Both limits, a model without a decoder, or a limit that cannot be kept.
    """
    if options.max_bytes is None and options.max_kl is None:
        return draft
    if options.max_bytes is not None and options.max_kl is not None:
        raise QuantizationError("--max-bytes and --max-kl are two ways to choose bits; give one of them")
    if "decoder" not in draft.plans:
        raise QuantizationError("--max-bytes and --max-kl choose the bits of a decoder's layers, and there is none")
    plan, max_bytes = draft.plans["decoder"], options.max_bytes
    if max_bytes is not None:
        max_bytes = _bytes_left(draft, planned_manifest(source.bundle.manifest, options), max_bytes) + plan.stored_bytes
    found = search_bits(plan, source, max_bytes=max_bytes, max_kl=options.max_kl, say=say)
    return replace(draft, plans=with_head({**draft.plans, "decoder": found.plan}), search=found)


def _bytes_left(draft: Draft, manifest: Manifest, max_bytes: int) -> int:
    """Return what a limit leaves above the plan of fewest bits.

    Raises:
        QuantizationError: Nothing, or there are two decoders, whose common weights part when one of them is raised.
    """
    if decoder_plan(draft.plans, "prompt") is not decoder_plan(draft.plans, "step"):
        raise QuantizationError("--max-bytes fits one decoder; with --profile dual use --max-kl, or another profile")
    fewest = weight_bytes(draft.plans, manifest)
    if max_bytes < fewest:
        raise QuantizationError(
            f"--max-bytes {max_bytes}: with {draft.asked.label} the weights take at least {fewest} bytes. "
            "Allow more, or ask for a name of fewer bits"
        )
    return max_bytes - fewest


def _profile_of(asked: Asked, manifest: Manifest, options: Options) -> ProfileName | None:
    if "decoder" in manifest.components:
        return read_profile(options.profile, asked.recipe_of("decoder"))
    if options.profile is not None:
        raise QuantizationError(f"{manifest.name} has no decoder, so no profile {options.profile!r}")
    return None


def _times(planner: Planner, sites: Sites, options: Options, say: Say, time_layers: TimeLayers) -> LayerTimes:
    if not options.tune or planner.asked.keeps_all:
        return builtin_times()
    wanted: list[Timed] = []
    for component, of_graph in sites.items():
        wanted += planner.wanted(component, of_graph, _recipes_to_time(planner, component))
    return tuned_times(wanted, cache_folder(), say, time_layers)


def _recipes_to_time(planner: Planner, component: ComponentName) -> list[str]:
    """Return the recipe of a component, and those of the decoder's other profiles."""
    own = planner.recipe_of(component)
    return [own, "int8", "int4"] if component == "decoder" else [own]


def experimental(draft: Draft) -> list[str]:
    """Return the names of recipes in use that are known to lose quality unless the checkpoint was trained for them."""
    return [
        name for name in dict.fromkeys(plan.recipe for plan in draft.plans.values()) if RECIPES[name].is_experimental
    ]
