"""What a decoder is fed, made from what is to be run: the one place that knows what each of its inputs means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bundle import tensors
from bundle.errors import SignatureError
from bundle.manifest import TensorSpec
from runtime.graph import Array

Int64 = npt.NDArray[np.int64]
Embeds = npt.NDArray[np.float32] | npt.NDArray[np.float16]


@dataclass(frozen=True)
class Placed:
    """Rows of image features and where they go.

    Attributes:
        start: The token of the run whose place the first row takes.
        rows: [m, D].
    """

    start: int
    rows: Embeds


@dataclass(frozen=True)
class TokenRun:
    """Consecutive tokens of one sequence, run as one row of a batch.

    Attributes:
        ids: [T], placeholders included.
        positions: [T] logical positions; [3, T] where a model turns by three axes.
        lengths: [G] rows that the sequence holds of each length group before the run; the new ones follow them.
        wanted: [N] the tokens of the run whose logits are wanted.
        features: Image features in the places of placeholders.
        embeds: [T, D] hidden states of an earlier layer, run in the place of embeddings; None: the embeddings of the
            ids, with the features in their places.
    """

    ids: Int64
    positions: Int64
    lengths: Sequence[int]
    wanted: Sequence[int]
    features: Sequence[Placed] = ()
    embeds: Embeds | None = None


@dataclass(frozen=True)
class Step:
    """A batch of runs of one length.

    Attributes:
        runs: B of them.
        embeds: [B, T, D], features in their places.
        bound_rows: Rows that no sequence exceeds, told to a graph that wants to know it on the host; None: as many as
            the longest one holds after the run. What stays the same from step to step can be captured.
    """

    runs: Sequence[TokenRun]
    embeds: Embeds = field(repr=False)
    bound_rows: int | None = None


def place_features(embeds: Embeds, runs: Sequence[TokenRun]) -> Embeds:
    """Write image features into the embeddings [B, T, D] of a batch, and return them."""
    for row, run in zip(embeds, runs, strict=True):
        for placed in run.features:
            row[placed.start : placed.start + len(placed.rows)] = placed.rows
    return embeds


def _positions(step: Step, spec: TensorSpec) -> Int64:
    return np.stack([run.positions for run in step.runs], axis=-2)


def _lengths(step: Step, spec: TensorSpec) -> Int64:
    lengths = np.array([run.lengths for run in step.runs], np.int64).T
    return np.ascontiguousarray(lengths) if len(spec.shape) > 1 else lengths[0]


def _wanted(step: Step, spec: TensorSpec) -> Int64:
    return np.array([run.wanted for run in step.runs], np.int64)


def _last_rows(step: Step, spec: TensorSpec) -> npt.NDArray[np.int32]:
    last: npt.NDArray[np.int32] = (_lengths(step, spec) + (step.embeds.shape[1] - 1)).astype(np.int32)
    return last


def _total(step: Step, spec: TensorSpec) -> npt.NDArray[np.int32]:
    if step.bound_rows is not None:
        return np.array(step.bound_rows, np.int32)
    return np.array(max(max(run.lengths) for run in step.runs) + step.embeds.shape[1], np.int32)


def _wanted_rows(step: Step, spec: TensorSpec) -> Int64:
    rows: Int64 = _wanted(step, spec) + np.arange(len(step.runs), dtype=np.int64)[:, None] * step.embeds.shape[1]
    return rows


def _is_image(step: Step, spec: TensorSpec) -> npt.NDArray[np.bool_]:
    marked = np.zeros(step.embeds.shape[:2], np.bool_)
    for row, run in zip(marked, step.runs, strict=True):
        for placed in run.features:
            row[placed.start : placed.start + len(placed.rows)] = True
    return marked


_FILLED: Mapping[str, Callable[[Step, TensorSpec], Array]] = {
    tensors.INPUTS_EMBEDS: lambda step, spec: step.embeds,
    tensors.POSITION_IDS: _positions,
    tensors.PAST_LENGTHS: _lengths,
    tensors.LOGITS_INDICES: _wanted,
    tensors.IS_IMAGE: _is_image,
    tensors.SEQLENS_K: _last_rows,
    tensors.TOTAL_SEQUENCE_LENGTH: _total,
    tensors.LOGITS_ROWS: _wanted_rows,
}


def check_inputs(specs: Sequence[TensorSpec], what: str) -> None:
    """Check that every input that a decoder needs is known here, and that positions are among them.

    Raises:
        SignatureError: One is not, or they are not.
    """
    if unknown := [spec.name for spec in specs if spec.name not in _FILLED]:
        raise SignatureError(
            f"{what} wants {', '.join(unknown)}; a decoder is fed {', '.join(_FILLED)} and its states. "
            "It was made by a newer version."
        )
    if tensors.POSITION_IDS not in {spec.name for spec in specs}:
        raise SignatureError(f"{what} takes no {tensors.POSITION_IDS}; a decoder is told where its tokens stand")


def feeds_of(specs: Sequence[TensorSpec], step: Step) -> dict[str, Array]:
    """Return a decoder's inputs, states aside, by name; those unknown here are left to the graph, which has a value."""
    return {spec.name: _FILLED[spec.name](step, spec) for spec in specs if spec.name in _FILLED}
