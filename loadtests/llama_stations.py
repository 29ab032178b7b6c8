"""llama.cpp at the stations of a comparison: prefill and decode of one sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bundle.errors import SettingsError
from loadtests.contestants import Reading, Station, Variant, read_clocks
from loadtests.gguf_files import weight_bytes
from loadtests.llama_binding import LlamaSession, NativeLlama


@dataclass(frozen=True)
class GgufBench:
    """How a contestant opens its file in llama.cpp.

    Attributes:
        file: A GGUF.
        stations: All that it will be asked for.
        threads: Of prompts and of single tokens.
        steps: Decode steps in one run, of which the mean counts.
    """

    file: Path
    stations: tuple[Station, ...]
    threads: int
    steps: int

    @property
    def source(self) -> Path:
        """The file."""
        return self.file

    def open(self) -> LlamaStations:
        """Return it, loaded."""
        longest = max(max(station.size, station.cached_tokens + 1) for station in self.stations)
        session = NativeLlama().open(self.file, longest, self.threads)
        kind, size = self.file.stem, weight_bytes(self.file)
        return LlamaStations(session, Variant(self.file.stem, {"decoder": kind}, kind, kind, size, size), self.steps)


class LlamaStations:
    """One file, open."""

    def __init__(self, session: LlamaSession, variant: Variant, steps: int) -> None:
        self.variant = variant
        self._session, self._steps = session, steps

    def run(self, station: Station) -> Reading:
        """Return the time of one run, of one step where it is a decode.

        Raises:
            SettingsError: It is a station that is not compared.
        """
        work, times = self._work(station)
        return read_clocks(work, times)

    def _work(self, station: Station) -> tuple[Callable[[], object], int]:
        if station.kind == "prefill":
            prompt = self._tokens(station.size)
            return (lambda: self._session.run(prompt, 0)), 1
        if station.kind != "decode" or station.size != 1:
            raise SettingsError(
                f"{station.name}: of llama.cpp prompts and one sequence's tokens are timed, nothing else"
            )
        cached = self._tokens(station.cached_tokens)
        self._session.run(cached, 0)
        # each step forgets the one before: all run behind as many rows, as those of a bundle do
        return (lambda: self._session.run(cached[:1], station.cached_tokens)), self._steps

    def _tokens(self, num_tokens: int) -> list[int]:
        found: list[int] = np.random.default_rng(0).integers(0, self._session.vocab_size, num_tokens).tolist()
        return found
