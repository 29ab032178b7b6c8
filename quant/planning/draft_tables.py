"""A draft as a person reads it in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table

from bundle.report import DecoderProfile
from bundle.summary import megabytes
from quant.planning.draft import Draft, experimental
from quant.planning.plan import LayerPlan
from quant.planning.recipes import RECIPES


def tables(draft: Draft) -> Iterator[RenderableType]:
    """Yield what to print: the choices with their reasons, the decoder's profiles, and warnings."""
    yield _choices(draft)
    if any(plan.decisions for plan in draft.plans.values()):
        yield _decisions(draft)
    if draft.profiles:
        yield _profiles(draft.profiles)
        yield _cache(draft)
    for name in experimental(draft):
        yield (
            f"[yellow]{name} is experimental[/yellow] ({RECIPES[name].summary}): a checkpoint that was not trained for "
            "two bits loses most of what it knows. What it costs here is measured below."
        )


def _choices(draft: Draft) -> Table:
    source = draft.times_source or "defaults: nothing is timed for another machine"
    table = Table("component", "layers", "choice", "why", title="Plan", caption=f"times: {source}")
    for name, plan in draft.plans.items():
        groups = plan.groups()
        is_split = sum(any(layer.kind == "linear" for layer in layers) for _, _, layers in groups) > 1
        for at, (label, reason, layers) in enumerate(groups):
            table.add_row(name if at == 0 else "", _kinds(layers, is_split), label, reason)
    return table


def _kinds(layers: Sequence[LayerPlan], is_split: bool) -> str:
    """Return how many layers of which kind there are; linear ones by name where not all of a graph are alike."""
    kinds = Counter(layer.part if is_split else layer.kind for layer in layers)
    return "\n".join(f"{number} x {kind}" for kind, number in kinds.items())


def _decisions(draft: Draft) -> Table:
    table = Table(
        *("component", "layers", "form", "at best", "usually"),
        title="What was weighed: all layers of a row in the form, or in their default where they cannot hold it",
        caption="per pass; sizes one by one are in report.json",
    )
    for name, plan in draft.plans.items():
        for decision in plan.decisions:
            for at, form in enumerate(decision.forms):
                table.add_row(
                    name if at == 0 else "",
                    f"{decision.num_layers} x {decision.kind}" if at == 0 else "",
                    f"[bold]{form.form}, chosen[/bold]" if form.form == decision.chosen else form.form,
                    f"{form.least_ms:.2f} ms",
                    f"{form.usual_ms:.2f} ms",
                )
    return table


def _profiles(profiles: tuple[DecoderProfile, ...]) -> Table:
    table = Table(
        *("profile", "first token", "next token", "weights", "cache per token"),
        title="Decoder profiles, predicted from linear layers alone",
        caption=profiles[0].note,
    )
    for profile in profiles:
        table.add_row(
            f"[bold]{profile.name}, chosen[/bold]" if profile.is_chosen else profile.name,
            f"{profile.first_token_ms:.1f} ms",
            f"{profile.inter_token_ms:.2f} ms",
            megabytes(profile.weight_bytes),
            f"{profile.kv_bytes_per_token / 1024:.1f} KiB",
        )
    return table


def _cache(draft: Draft) -> str:
    """Return what the cache of one request takes beside the weights, in words."""
    chosen = next(profile for profile in draft.profiles if profile.is_chosen)
    request_bytes = draft.cached_tokens * chosen.kv_bytes_per_token
    return (
        f"cache: a request of {draft.cached_tokens} tokens, its answer among them, takes {megabytes(request_bytes)}, "
        f"{request_bytes / chosen.weight_bytes:.1%} of the weights"
    )
