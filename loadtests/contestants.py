"""What is to be compared, bundles mostly, each open in a process of its own that runs a station when it is told to.

One at a time works and the others sleep (their threads do not spin), so the machine is as quiet for each as it is for
the others, and what each process needs in memory is its own model's alone.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np

from bundle.directory import Bundle, open_bundle
from bundle.errors import MachineError, PocketVLMError, SettingsError
from bundle.image import PREPROCESSOR, ImageSpec, Pixels
from bundle.machine import peak_memory_bytes
from loadtests.stations import TokenBench, open_vision
from loadtests.wording import counted
from serving.engine.sequence import Sequence
from serving.settings import EngineSettings

_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Station:
    """One piece of work that every contestant does in turn.

    Attributes:
        kind: Encode tiles, run a prompt into an empty cache, or decode one token of each sequence.
        size: Tiles, prompt tokens, or sequences.
        cached_tokens: Before a decode step; 0 elsewhere.
    """

    kind: Literal["vision", "prefill", "decode"]
    size: int
    cached_tokens: int = 0

    @property
    def name(self) -> str:
        """Return what is printed."""
        if self.kind == "vision":
            return f"vision, {counted(self.size, 'tile')}"
        return f"prefill, {self.size} tokens" if self.kind == "prefill" else f"decode, batch {self.size}"

    @property
    def unit(self) -> str:
        """Return what a rate counts."""
        return "tiles" if self.kind == "vision" else "tokens"


@dataclass(frozen=True)
class Reading:
    """The milliseconds of one run: on the wall clock, and of all cores' time that the process used.

    On a shared machine the second is the steadier one: neighbours stretch the wall clock, and hardly the work.
    """

    wall_ms: float
    processor_ms: float


class Stations(Protocol):
    """The child's side: something that is open and runs stations."""

    @property
    def variant(self) -> Variant:
        """Return what it says of itself."""

    def run(self, station: Station) -> Reading:
        """Return the time of one run, of one step where it is a decode."""


class Opening(Protocol):
    """What a child is told to open; it crosses the process boundary."""

    @property
    def source(self) -> Path:
        """Return the file or directory, for errors."""

    def open(self) -> Stations:
        """Return it, open."""


@dataclass(frozen=True)
class Bench:
    """How a contestant opens its bundle.

    Attributes:
        bundle: The directory.
        stations: All that it will be asked for.
        threads: Inside one operator; 0 means one per physical core.
        steps: Decode steps in one run, of which the mean counts.
        engine: Settings of its engine beside those that follow from the rest.
    """

    bundle: Path
    stations: tuple[Station, ...]
    threads: int
    steps: int
    engine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        """The directory."""
        return self.bundle

    def open(self) -> StationBench:
        """Return its graphs, loaded."""
        return StationBench(self)

    def settings(self) -> EngineSettings:
        """Return an engine with a slot for each sequence and room for the longest station."""
        longest = max(
            station.size if station.kind == "prefill" else station.cached_tokens + 1 for station in self.stations
        )
        slots = max((station.size for station in self.stations if station.kind == "decode"), default=1)
        return EngineSettings(
            max_sequences=slots, context_tokens=max(longest, 2), intra_threads=self.threads, **self.engine
        )


@dataclass(frozen=True)
class Variant:
    """What a contestant says of its bundle.

    Attributes:
        name: The bundle's folder.
        schemes: Weight scheme by component, and what the cache holds where it holds codes.
        prompt_scheme: Of the decoder that runs prompts.
        step_scheme: Of the decoder that runs single tokens.
        language_model_bytes: Of token embeddings and decoders, as stored.
        step_bytes: Of the decoder that runs single tokens: read once for each of them.
    """

    name: str
    schemes: dict[str, str]
    prompt_scheme: str
    step_scheme: str
    language_model_bytes: int
    step_bytes: int

    def scheme_of(self, kind: str) -> str:
        """Return the decoder's scheme for prompts ("prefill") or single tokens."""
        return self.prompt_scheme if kind == "prefill" else self.step_scheme


class StationBench:
    """The child's side: the graphs of one bundle."""

    def __init__(self, bench: Bench) -> None:
        bundle = open_bundle(bench.bundle, verify=False, allow_ungated=True)
        manifest = bundle.manifest
        if manifest.decoder is None:
            raise SettingsError(f"{bench.bundle} has no decoder; weight schemes are compared on vision-language models")
        settings = bench.settings()
        longest = settings.context_tokens or 1
        if longest > manifest.decoder.max_positions:
            raise SettingsError(
                f"{longest} tokens do not fit the context of {bench.bundle}, which holds "
                f"{manifest.decoder.max_positions}: ask for fewer"
            )
        self.variant = _variant(bundle)
        self._steps = bench.steps
        self._filled: dict[int, int] = {}
        self._tokens = TokenBench(bundle, settings.max_sequences, longest, settings)
        self._ids = np.random.default_rng(0).integers(0, manifest.decoder.vocab_size, longest, np.int64)
        self._vision = open_vision(bundle, settings)
        height_px, width_px = ImageSpec.read(bundle.path(PREPROCESSOR)).tile_size_px
        self._tile: Pixels = np.random.default_rng(0).standard_normal((1, 3, height_px, width_px)).astype(np.float32)

    def run(self, station: Station) -> Reading:
        """Return the time of one run, of one step where it is a decode."""
        work, times = self.work(station)
        return read_clocks(work, times)

    def work(self, station: Station) -> tuple[Callable[[], object], int]:
        """Return what a run does, and how many steps it makes."""
        if station.kind == "vision":
            batch = [self._tile] * station.size
            return (lambda: self._vision.run(batch)), 1
        if station.kind == "prefill":
            prompt = self._tokens.sequence(self._ids[: station.size], 0)
            return (lambda: self._tokens.prefill(prompt)), 1
        sequences = [self._decoding(slot, station.cached_tokens) for slot in range(station.size)]
        return (lambda: self._tokens.step(sequences)), self._steps

    def _decoding(self, slot: int, cached_tokens: int) -> Sequence:
        """Return a sequence that is read so far, with a token sampled.

        A slot's rows are written once, as an answer's are: untouched memory is one page of zeros to the system, which a
        processor's cache holds.
        """
        sequence = self._tokens.sequence(self._ids[:cached_tokens], slot)
        if self._filled.get(slot, 0) < cached_tokens:
            self._tokens.prefill(sequence)
            self._filled[slot] = cached_tokens
        else:
            sequence.advance(cached_tokens)
        sequence.append(int(self._ids[0]))
        return sequence


def read_clocks(work: Callable[[], object], times: int) -> Reading:
    """Return the time of one run, as the mean of so many."""
    wall_s, processor_s = time.perf_counter(), time.process_time()
    for _ in range(times):
        work()
    taken_s = time.perf_counter() - wall_s, time.process_time() - processor_s
    return Reading(*(seconds / times * 1e3 for seconds in taken_s))


def _variant(bundle: Bundle) -> Variant:
    manifest = bundle.manifest
    return Variant(
        name=bundle.directory.resolve().name,
        schemes={
            **{name: component.scheme for name, component in manifest.components.items()},
            **({"cache": manifest.cache_scheme} if manifest.cache_scheme != "float" else {}),
        },
        prompt_scheme=manifest.scheme_of("decoder", "prompt"),
        step_scheme=manifest.scheme_of("decoder", "step"),
        language_model_bytes=manifest.language_model_bytes,
        step_bytes=manifest.components[manifest.graph("decoder", "step")].weight_bytes,
    )


class Contestant:
    """One model in its process; use it in a `with` block.

    Raises:
        PocketVLMError: As the engine raises them; the class crosses the process boundary.
        MachineError: The process died, for lack of memory most likely.
    """

    def __init__(self, bench: Opening) -> None:
        context = multiprocessing.get_context("spawn")
        self._source = bench.source
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, bench), daemon=True)
        self._process.start()
        theirs.close()

    def variant(self) -> Variant:
        """Return what it is; the first question, answered when it is open."""
        found: Variant = self._answer(self._connection.recv)
        return found

    def run(self, station: Station) -> Reading:
        """Return the time of one run."""
        found: Reading = self._ask(station)
        return found

    def peak_memory_bytes(self) -> int:
        """Return the most resident memory that the process had; mapped weights count as far as they were read."""
        found: int = self._ask(None)
        return found

    def _ask(self, question: Station | None) -> Any:
        def exchange() -> Any:
            self._connection.send(question)
            return self._connection.recv()

        return self._answer(exchange)

    def _answer(self, exchange: Callable[[], Any]) -> Any:
        try:
            found = exchange()
        except (EOFError, OSError) as error:
            self._process.join(_STOP_TIMEOUT_S)
            raise MachineError(
                f"the process of {self._source} ended with code {self._process.exitcode}; compare fewer bundles at "
                "once if memory ran out"
            ) from error
        if isinstance(found, PocketVLMError):
            raise found
        return found

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join(_STOP_TIMEOUT_S)
        self._process.terminate()


def _serve(connection: Connection, bench: Opening) -> None:
    """Open it, then answer: a reading for a station, the peak of memory for None, until the pipe closes."""
    try:
        stations = bench.open()
        connection.send(stations.variant)
        while True:
            station = connection.recv()
            connection.send(peak_memory_bytes() if station is None else stations.run(station))
    except PocketVLMError as error:
        connection.send(error)
    except (EOFError, KeyboardInterrupt):
        return
