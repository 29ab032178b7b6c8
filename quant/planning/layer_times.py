"""Milliseconds of the forms that a linear layer can take on this machine, by the rows that meet it.

`tuned_times` measures the real shapes of a graph once, on one thread, and keeps the figures under the cache folder, by
CPU, cores and ONNX Runtime version. `builtin_times` is the table of `BUILTIN`, scaled by the number of weights; it
serves where nothing was measured.

python -m quant.planning.layer_times [K N] [--rows 1 8 77 256] [--threads 1]
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

from bundle.errors import QuantizationError
from bundle.form import Form
from bundle.machine import cpu_name, num_usable_cores
from pages.file import write_whole
from quant.planning.layer_runs import BUDGET_S, Seen, Timed, TimeLayers, time_layers
from quant.planning.plan import KEPT, Choice
from runtime.onnx_runtime import runtime_version

FORMS = (
    KEPT,
    Choice("w8a8", Form(8)),
    Choice("w8a8_static", Form(8)),
    *(Choice("matmul_nbits", Form(bits, block)) for bits in (8, 4, 2) for block in (32, 64, 128)),
    *(Choice("matmul_nbits", Form(2, block, "ternary-mean")) for block in (32, 64, 128)),
    *(Choice("matmul_nbits", Form(2, block, "ternary-planes")) for block in (32, 64, 128)),
    Choice("bnb4", Form(4, 64, "nf4")),
)
"""What the command times."""

BUILTIN_SHAPE = (768, 3072)
BUILTIN: dict[str, dict[int, float]] = {
    "fp32": {1: 0.580, 8: 0.757, 77: 3.519, 256: 10.979},
    "w8a8 8-bit": {1: 0.191, 8: 0.237, 77: 1.104, 256: 3.345},
    "w8a8_static 8-bit": {1: 0.146, 8: 0.198, 77: 0.954, 256: 2.956},
    "matmul_nbits 8-bit b32": {1: 0.134, 8: 0.333, 77: 2.471, 256: 8.098},
    "matmul_nbits 8-bit b64": {1: 0.099, 8: 0.292, 77: 2.250, 256: 7.359},
    "matmul_nbits 8-bit b128": {1: 0.084, 8: 0.257, 77: 1.886, 256: 6.165},
    "matmul_nbits 4-bit b32": {1: 0.090, 8: 0.330, 77: 2.790, 256: 9.165},
    "matmul_nbits 4-bit b64": {1: 0.082, 8: 0.316, 77: 2.721, 256: 8.885},
    "matmul_nbits 4-bit b128": {1: 0.061, 8: 0.246, 77: 2.029, 256: 6.707},
    "matmul_nbits 2-bit b32": {1: 0.111, 8: 0.565, 77: 5.187, 256: 17.217},
    "matmul_nbits 2-bit b64": {1: 0.069, 8: 0.323, 77: 2.890, 256: 9.575},
    "matmul_nbits 2-bit b128": {1: 0.060, 8: 0.288, 77: 2.577, 256: 8.525},
    "matmul_nbits 2-bit b32 ternary-mean": {1: 0.144, 8: 0.607, 77: 5.444, 256: 17.986},
    "matmul_nbits 2-bit b64 ternary-mean": {1: 0.089, 8: 0.353, 77: 3.069, 256: 10.152},
    "matmul_nbits 2-bit b128 ternary-mean": {1: 0.071, 8: 0.312, 77: 2.726, 256: 9.024},
    "matmul_nbits 2-bit b32 ternary-planes": {1: 0.231, 8: 1.146, 77: 10.469, 256: 34.814},
    "matmul_nbits 2-bit b64 ternary-planes": {1: 0.139, 8: 0.645, 77: 5.857, 256: 19.482},
    "matmul_nbits 2-bit b128 ternary-planes": {1: 0.118, 8: 0.580, 77: 5.211, 256: 17.424},
    "bnb4 4-bit b64 nf4": {1: 1.338, 8: 1.792, 77: 4.900, 256: 12.500},
}
"""Milliseconds by form and rows for `BUILTIN_SHAPE`, on an AMD EPYC (avx512_vnni, no AMX), ONNX Runtime 1.31.1, one
thread of a shared machine, lower quartile of 30, the lesser of two runs: read ratios, not digits.
`python -m quant.planning.layer_times` prints such a table (of the least, not the lower quartile)."""

_FORMAT = 2
_ABOUT_S = 10  # for people: the runs, and the making of what is run
_SAME_ROUNDING = dict.fromkeys(("hqq", "gptq", "ternary", "ternary-gptq", "four-level"), "rtn")
_SAME_ROUNDING["fp4"] = "nf4"
"""Roundings that differ in the codes alone take the same time as the quickest one to compute."""
_SAME_METHOD = {"qmoe": "matmul_nbits", "qdq_int4": "matmul_nbits"}
"""QMoE multiplies one expert as MatMulNBits does; ONNX Runtime fuses int4 in standard operators to MatMulNBits."""


class LayerTimes:
    """Times by shape, form and rows, between and beyond the measured ones.

    Args:
        measured: Milliseconds by `Timed.key`, the least that were seen.
        source: Where they come from, for people.
        usual: What is usually the least, by the same keys; None: `measured` is exact.

    Attributes:
        source: As given.
        usual: The times of what is usual; itself where they are exact.
    """

    def __init__(self, measured: Mapping[str, float], source: str, usual: Mapping[str, float] | None = None) -> None:
        self.source = source
        self.usual = self if usual is None else LayerTimes(usual, source)
        self._points: dict[tuple[int, int, str], list[tuple[int, float]]] = {}
        for key, value in sorted(measured.items()):
            shape, label, rows = _parse(key)
            self._points.setdefault((*shape, label), []).append((rows, value))
        for points in self._points.values():
            points.sort()

    def ms(self, num_inputs: int, num_outputs: int, choice: Choice, rows: float) -> float:
        """Return the time of one product of [rows, K] by [K, N].

        Between two measured numbers of rows the time is a straight line, below the first it is the first's, beyond the
        last it grows with the rows. A shape that was not measured takes the built-in table's time per weight.

        Raises:
            QuantizationError: The form was never timed.
        """
        label = _timed_as(choice).label
        points = self._points.get((num_inputs, num_outputs, label))
        if points is not None:
            return _between(points, rows)
        if label not in BUILTIN:
            raise QuantizationError(f"{label} was never timed; known: {', '.join(BUILTIN)}")
        share = num_inputs * num_outputs / (BUILTIN_SHAPE[0] * BUILTIN_SHAPE[1])
        return share * _between(sorted(BUILTIN[label].items()), rows)


def builtin_times() -> LayerTimes:
    """Return the times that need no measuring: the table above, per weight."""
    return LayerTimes({}, f"the built-in table of {BUILTIN_SHAPE[0]} x {BUILTIN_SHAPE[1]}, not this machine's")


def tuned_times(
    wanted: Iterable[Timed],
    folder: Path,
    progress: Callable[[str], None],
    time_layers: TimeLayers = time_layers,
) -> LayerTimes:
    """Return the times of this machine, measuring where the folder does not hold them all yet.

    Everything is then measured, what is known among it: times that are compared were taken in turns with each other.

    Args:
        wanted: What a planner will ask for.
        folder: Holds one file per CPU, cores and runtime version; made where it is missing.
        progress: Told when something is measured.
        time_layers: What measures.
    """
    path = folder / f"layer-times-{_machine_digest()}.json"
    known = _read(path)
    by_key = {timed.key: timed for timed in map(_as_timed, wanted)}
    if by_key.keys() - known.keys():
        progress(f"timing {len(by_key)} layer forms on this machine, about {_ABOUT_S} s")
        told = time_layers(list(by_key.values()))
        known |= {key: Seen.of(openings) for key, openings in told.items()}
        progress(_kept(path, known))
    return _layer_times(known, f"measured on this machine ({cpu_name()}, {num_usable_cores()} cores), one thread")


def _layer_times(seen: Mapping[str, Seen], source: str) -> LayerTimes:
    least_ms = {key: each.least_ms for key, each in seen.items()}
    return LayerTimes(least_ms, source, {key: each.usual_ms for key, each in seen.items()})


def _as_timed(timed: Timed) -> Timed:
    return replace(timed, choice=_timed_as(timed.choice))


def _timed_as(choice: Choice) -> Choice:
    """Return a choice that takes the same time and is quick to make."""
    if choice.form is None:
        return choice
    rounding = _SAME_ROUNDING.get(choice.form.rounding, choice.form.rounding)
    return Choice(_SAME_METHOD.get(choice.method, choice.method), replace(choice.form, rounding=rounding))


def _parse(key: str) -> tuple[tuple[int, int], str, int]:
    shape, _, rest = key.partition(" ")
    label, _, rows = rest.rpartition(" M=")
    num_inputs, _, num_outputs = shape.partition("x")
    return (int(num_inputs), int(num_outputs)), label, int(rows)


def _between(points: Sequence[tuple[int, float]], rows: float) -> float:
    """Return the time at a number of rows from [(rows, ms)] in rising order."""
    for (low, low_ms), (high, high_ms) in pairwise(points):
        if low <= rows <= high:
            return low_ms + (high_ms - low_ms) * (rows - low) / (high - low)
    edge, edge_ms = points[0] if rows < points[0][0] else points[-1]
    return edge_ms * max(rows / edge, 1.0)


def _machine_digest() -> str:
    facts = f"{cpu_name()}|{num_usable_cores()}|{runtime_version()}|{_FORMAT}"
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def _read(path: Path) -> dict[str, Seen]:
    """Return what an earlier run kept; nothing where the file is absent or is not what we wrote."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        seen = {str(key): Seen(**{name: float(ms) for name, ms in each.items()}) for key, each in found.items()}
        _layer_times(seen, "")
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return seen if all(0 < each.least_ms <= each.usual_ms < float("inf") for each in seen.values()) else {}


def _kept(path: Path, seen: Mapping[str, Seen]) -> str:
    """Keep times for the next run, and say where; a place that cannot be written costs that run some seconds."""
    told = {key: asdict(each) for key, each in seen.items()}
    try:
        write_whole(path, json.dumps(told, indent=1, sort_keys=True).encode())
    except OSError as error:
        return f"the times cannot be kept in {path} ({error.strerror}): the next run measures them again"
    return f"the times are kept in {path}, which may be deleted to measure again"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of one shape."""
    parser = argparse.ArgumentParser(description="Time the forms of one linear layer, in milliseconds.")
    parser.add_argument("shape", type=int, nargs="*", default=list(BUILTIN_SHAPE), metavar="K N")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 77, 256])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if len(options.shape) != 2:
        parser.error(f"a shape is two numbers K N, not {options.shape}")
    num_inputs, num_outputs = options.shape
    wanted = [Timed(num_inputs, num_outputs, choice, rows) for choice in FORMS for rows in options.rows]
    told = time_layers(wanted, options.threads, budget_s=5 * BUDGET_S)
    width = max(len(choice.label) for choice in FORMS)
    print(f"{'x'.join(map(str, options.shape)):{width}}" + "".join(f"{f'M={rows}':>10}" for rows in options.rows))
    for choice in FORMS:
        cells = (told[Timed(num_inputs, num_outputs, choice, rows).key] for rows in options.rows)
        print(f"{choice.label:{width}}" + "".join(f"{Seen.of(openings).least_ms:10.3f}" for openings in cells))


if __name__ == "__main__":
    main()
