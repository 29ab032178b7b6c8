"""KV policies by name, and what each of them needs. To add one: a file here with a `Policy`, and an entry below."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from bundle.errors import ParameterError

if TYPE_CHECKING:
    from quant.kv.policy import Policy


@dataclass(frozen=True)
class PolicyEntry:
    """What is known of a policy before its module is imported.

    Attributes:
        target: "module:Class".
        needs_queries: It reads the queries of a prompt's last tokens, which a bundle's graph has to give.
        has_layer_budgets: Layers keep different numbers of rows, so a bundle's layers have to be in length groups of
            their own.
    """

    target: str
    needs_queries: bool = False
    has_layer_budgets: bool = False


POLICIES: dict[str, PolicyEntry] = {
    "random": PolicyEntry("quant.kv.random_rows:RandomRows"),
    "uniform": PolicyEntry("quant.kv.uniform:Uniform"),
    "streaming-llm": PolicyEntry("quant.kv.streaming_llm:StreamingLLM"),
    "knorm": PolicyEntry("quant.kv.knorm:Knorm"),
    "keydiff": PolicyEntry("quant.kv.keydiff:KeyDiff"),
    "lagkv": PolicyEntry("quant.kv.lagkv:LagKV"),
    "snapkv": PolicyEntry("quant.kv.snapkv:SnapKV", needs_queries=True),
    "tova": PolicyEntry("quant.kv.tova:Tova", needs_queries=True),
    "h2o": PolicyEntry("quant.kv.h2o:H2O", needs_queries=True),
    "look-m": PolicyEntry("quant.kv.look_m:LookMPivotal", needs_queries=True),
    "look-m-averaged": PolicyEntry("quant.kv.look_m:LookMAveraged", needs_queries=True),
    "look-m-weighted": PolicyEntry("quant.kv.look_m:LookMWeighted", needs_queries=True),
    "pyramidkv": PolicyEntry("quant.kv.pyramidkv:PyramidKV", needs_queries=True, has_layer_budgets=True),
    "vl-cache": PolicyEntry("quant.kv.vl_cache:VLCache", needs_queries=True, has_layer_budgets=True),
}


def entry_of(name: str) -> PolicyEntry:
    """Return what is known of a policy.

    Raises:
        ParameterError: None has that name.
    """
    if name not in POLICIES:
        raise ParameterError(f"kv.policy {name!r} is unknown; it must be one of {', '.join(POLICIES)}", "kv.policy")
    return POLICIES[name]


def load_policy(name: str) -> type[Policy]:
    """Return a policy's class.

    Raises:
        ParameterError: None has that name.
    """
    module, attribute = entry_of(name).target.split(":")
    found: type[Policy] = getattr(import_module(module), attribute)
    return found
