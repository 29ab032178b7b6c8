"""What is told of a model and of whoever serves it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bundle.gates import Gate, Unmeasured
from bundle.manifest import Task
from serving.protocol.generation import KVCompression, VisionReduction

ONLY_ENGINE = "0"
"""The id of a model's engine where it has just one, in this process."""


@dataclass(frozen=True)
class ModelCard:
    """What `/v1/models` tells of one served model.

    Attributes:
        is_gated: Whether quality was measured on samples and every gate that could be measured passed; None for fp32,
            its own reference.
        unmeasured: Gates that the samples could not tell of.
        kv_cache: What rows of the cache are stored as; None without a decoder.
        vision_methods: That a request may name in `vision`.
        vision_default: What is done to images where a request does not say; None: nothing.
        kv_policies: That a request may name in `kv`.
        kv_default: What is done to a prompt's rows where a request does not say; None: nothing.
        takes_images: Whether a request may hold images.
        takes_one_message: A chat is one message about one image; texts that go on, functions and videos are refused.
        embedding_tasks: Adapters from which a request to embed chooses; none: there is no choice.
        adapters: Of a model that answers, by name: each is served as a model of its own, `with_adapters` says how.
        parent: Of an adapter that is served as a model: the model that holds it; None of others.
        adapter: Its name there; empty of others.
    """

    name: str
    task: Task
    model_type: str
    schemes: dict[str, str]
    weight_bytes: int
    context_tokens: int | None
    gates: tuple[Gate, ...] = ()
    is_gated: bool | None = None
    unmeasured: tuple[Unmeasured, ...] = ()
    kv_cache: str | None = None
    vision_methods: tuple[str, ...] = ()
    vision_default: VisionReduction | None = None
    kv_policies: tuple[str, ...] = ()
    kv_default: KVCompression | None = None
    takes_images: bool = True
    takes_one_message: bool = False
    embedding_tasks: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    parent: str | None = None
    adapter: str = ""

    @property
    def engine_model(self) -> str:
        """The name of the model that answers: its own, or its parent's."""
        return self.name if self.parent is None else self.parent

    def is_called(self, name: str) -> bool:
        """Return whether a request may mean it by a name: of an adapter, with its model's before it as well."""
        return name == self.name or (self.parent is not None and name == f"{self.parent}:{self.adapter}")


def with_adapters(cards: Sequence[ModelCard]) -> list[ModelCard]:
    """Return models, and behind each its adapters as models.

    An adapter's name is its own where nothing else that is served has it, else MODEL:ADAPTER, as of two variants of one
    model that hold the same ones.
    """
    names = Counter(name for card in cards for name in (card.name, *card.adapters))
    return [each for card in cards for each in (card, *_adapters_of(card, names))]


def _adapters_of(card: ModelCard, names: Mapping[str, int]) -> Iterator[ModelCard]:
    for adapter in card.adapters:
        name = adapter if names[adapter] == 1 else f"{card.name}:{adapter}"
        yield replace(card, name=name, parent=card.name, adapter=adapter, adapters=())


def found_card(cards: Sequence[ModelCard], name: str) -> ModelCard | None:
    """Return the model, or the adapter, that a request means by a name; None where there is none.

    Args:
        cards: Of all that is served, adapters among them.
        name: That a request gives.
    """
    return next((card for card in cards if card.is_called(name)), None)


@dataclass(frozen=True)
class Health:
    """Whether requests can be served now; `reason` says why not.

    Attributes:
        is_ready: Requests are answered.
        reason: Why not, where not.
        model_gauges: Momentary values by model and metric name; of several replicas, of all together.
        replica_gauges: The same of each replica, by model, replica and metric name; empty where there are none.
        is_alive: False when a worker died, or hangs for too long, and only a restart of the process helps; liveness
            probes turn red.
        is_starting: Not ready because models are still being loaded.
    """

    is_ready: bool
    reason: str = ""
    model_gauges: dict[str, dict[str, float]] = field(default_factory=dict)
    is_alive: bool = True
    replica_gauges: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    is_starting: bool = False
