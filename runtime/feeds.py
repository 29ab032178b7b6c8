"""What a decoder is fed, made from what is to be run: the one place that knows what each of its inputs means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

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
        num_skipped: Layers whose feed-forwards these tokens skip, the last of those that may be skipped.
    """

    start: int
    rows: Embeds
    num_skipped: int = 0


@dataclass(frozen=True)
class HeadValues:
    """What takes the place of some attention heads' outputs.

    Attributes:
        values: [L, H*C] float32.
        mask: [L*H] bool: the heads that it replaces.
    """

    values: npt.NDArray[np.float32] = field(repr=False)
    mask: npt.NDArray[np.bool_] = field(repr=False)


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
        around: [2, T] as of `tensors.SEEN_AROUND`; None: each token sees itself and what stands before it.
        seen: [T, 3] what each token sees of states of kind "memory", as `bundle.tensors.MEMORY_SEEN`; None: nothing.
        heads: What replaces heads, from the token `first_replaced` on; None: nothing does.
        first_replaced: Counted from the run's first token.
        adapter: Number of the one that it runs through, of those that the decoder holds.
    """

    ids: Int64
    positions: Int64
    lengths: Sequence[int]
    wanted: Sequence[int]
    features: Sequence[Placed] = ()
    embeds: Embeds | None = None
    around: Int64 | None = None
    seen: Int64 | None = None
    heads: HeadValues | None = None
    first_replaced: int = 0
    adapter: int = 0


@dataclass(frozen=True)
class TokenBatch:
    """Runs of one length, B of them, side by side.

    Attributes:
        ids: [B, T], placeholders included.
        positions: [B, T] logical positions; [3, B, T] where a model turns by three axes.
        lengths: [G, B] rows that each sequence holds of each length group before the run.
        wanted: [B, N] the tokens of each run whose logits are wanted.
        features: Of each run, image features in the places of placeholders; empty where no run has any.
        around: [2, B, T] as of `TokenRun`; None where that is so of all runs.
        seen: [B, T, 3] what each token sees of states of kind "memory"; None: none sees any.
        heads: Of each run, what replaces heads and from which token on; empty where no run has any.
        adapters: [B] numbers of the adapters that they run through; empty: all through the first.
    """

    ids: Int64
    positions: Int64
    lengths: Int64
    wanted: Int64
    features: Sequence[Sequence[Placed]] = ()
    around: Int64 | None = None
    seen: Int64 | None = None
    heads: Sequence[tuple[HeadValues | None, int]] = ()
    adapters: Sequence[int] = ()

    @classmethod
    def of(cls, runs: Sequence[TokenRun]) -> TokenBatch:
        """Return runs of one length, with as many wanted logits each, side by side."""
        return cls(
            np.stack([run.ids for run in runs]),
            np.stack([run.positions for run in runs], axis=-2),
            _by_group([run.lengths for run in runs]),
            np.array([run.wanted for run in runs], np.int64),
            [run.features for run in runs],
            _around(runs),
            _side_by_side([run.seen for run in runs], len(runs[0].ids)),
            [(run.heads, run.first_replaced) for run in runs],
            [run.adapter for run in runs],
        )

    @classmethod
    def of_sampled(
        cls,
        ids: Sequence[int],
        positions: Sequence[int],
        lengths: Sequence[Sequence[int]],
        position_axes: tuple[int, ...] = (),
        seen: Sequence[Int64 | None] = (),
        heads: Sequence[HeadValues | None] = (),
        adapters: Sequence[int] = (),
    ) -> TokenBatch:
        """Return one sampled token of each sequence, side by side, the logits of all wanted.

        Args:
            ids: [B].
            positions: [B], the same on every axis.
            lengths: [B, G] as of `TokenRun`.
            position_axes: Sizes before [B, T] of positions.
            seen: [B] of each sequence [3], what its token sees of states of kind "memory", or None.
            heads: [B] what replaces heads; empty: nothing does.
            adapters: [B] numbers of the adapters that they run through; empty: all through the first.
        """
        column, places = np.array(ids, np.int64)[:, None], np.empty((*position_axes, len(ids), 1), np.int64)
        places[..., 0] = positions
        sees = _side_by_side([None if each is None else each[None] for each in seen], 1)
        replaced = [(each, 0) for each in heads]
        indices = np.zeros_like(column)
        return cls(column, places, _by_group(lengths), indices, seen=sees, heads=replaced, adapters=adapters)

    def padded(self, num_tokens: int) -> TokenBatch:
        """Return the batch with tokens behind those of each run, `num_tokens` in all, whose logits nobody wants.

        They stand where the last one does, since positions may have a limit, and write rows behind those of the run.
        """
        ids = np.zeros((self.size, num_tokens), np.int64)
        ids[:, : self.num_tokens] = self.ids
        positions = np.repeat(self.positions[..., -1:], num_tokens, axis=-1)
        positions[..., : self.num_tokens] = self.positions
        more = num_tokens - self.num_tokens
        around = None if self.around is None else np.pad(self.around, ((0, 0), (0, 0), (0, more)))
        seen = None if self.seen is None else np.pad(self.seen, ((0, 0), (0, more), (0, 0)), mode="edge")
        return replace(self, ids=ids, positions=positions, around=around, seen=seen)

    @property
    def size(self) -> int:
        """B."""
        return len(self.ids)

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.ids.shape[1])


@dataclass(frozen=True)
class Step:
    """A batch with the embeddings of its tokens.

    Attributes:
        batch: What is run.
        embeds: [B, T, D], features in their places.
        looked_up: What else `embed_tokens` gave for the tokens, by name.
        bound_rows: Rows that no sequence exceeds, told to a graph that wants to know it on the host; None: as many as
            the longest one holds after the run. What stays the same from step to step can be captured.
    """

    batch: TokenBatch
    embeds: Embeds = field(repr=False)
    looked_up: Mapping[str, Array] = field(default_factory=dict, repr=False)
    bound_rows: int | None = None

    @classmethod
    def of(cls, runs: Sequence[TokenRun], embeds: Embeds, looked_up: Mapping[str, Array] | None = None) -> Step:
        """Return runs of one length with their embeddings [B, T, D], and what else was looked up."""
        return cls(TokenBatch.of(runs), embeds, looked_up or {})

    @classmethod
    def of_tables(cls, batch: TokenBatch, found: Mapping[str, Array], bound_rows: int | None = None) -> Step:
        """Return a batch with what `embed_tokens` gave for it, features of images in their places.

        Args:
            batch: What is run.
            found: By name; embeddings are written into, the rest stays as it is.
            bound_rows: As of the step.
        """
        looked_up = dict(found)
        return cls(batch, place_features(looked_up.pop(tensors.INPUTS_EMBEDS), batch), looked_up, bound_rows)


def place_features(embeds: Embeds, batch: TokenBatch) -> Embeds:
    """Write image features into the embeddings [B, T, D] of a batch, and return them; of wider ones the first D."""
    _place(embeds, batch, slice(embeds.shape[-1]))
    return embeds


def _place(target: Embeds, batch: TokenBatch, columns: slice) -> None:
    """Write some columns of image features into the places of their tokens [B, T, ...], in place."""
    for row, features in zip(target, batch.features, strict=False):
        for placed in features:
            row[placed.start : placed.start + len(placed.rows)] = placed.rows[:, columns]


def _around(runs: Sequence[TokenRun]) -> Int64 | None:
    """Return [2, B, T] of runs; None where none says anything."""
    if all(run.around is None for run in runs):
        return None
    nothing = np.zeros((2, len(runs[0].ids)), np.int64)
    return np.stack([nothing if run.around is None else run.around for run in runs], axis=1)


def _side_by_side(seen: Sequence[Int64 | None], num_tokens: int) -> Int64 | None:
    """Return [B, T, 3] of [T, 3] each, 0 of runs that see nothing; None where none does."""
    if all(each is None for each in seen):
        return None
    return np.stack([np.zeros((num_tokens, 3), np.int64) if each is None else each for each in seen])


def _by_group(lengths: Sequence[Sequence[int]]) -> Int64:
    """Return [G, B] of [B, G]."""
    return np.ascontiguousarray(np.array(lengths, np.int64).T)


def _positions(step: Step, spec: TensorSpec) -> Int64:
    """Return positions on as many axes as a decoder turns by: those of text are the same on all."""
    positions = step.batch.positions
    axes = tuple(size for size in spec.shape[:-2] if isinstance(size, int))
    return positions if positions.ndim > 2 or not axes else np.broadcast_to(positions, axes + positions.shape).copy()


def _lengths(step: Step, spec: TensorSpec) -> Int64:
    return step.batch.lengths if len(spec.shape) > 1 else step.batch.lengths[0]


def _wanted(step: Step, spec: TensorSpec) -> Int64:
    return step.batch.wanted


def _last_rows(step: Step, spec: TensorSpec) -> npt.NDArray[np.int32]:
    last: npt.NDArray[np.int32] = (_lengths(step, spec) + (step.batch.num_tokens - 1)).astype(np.int32)
    return last


def _total(step: Step, spec: TensorSpec) -> npt.NDArray[np.int32]:
    if step.bound_rows is not None:
        return np.array(step.bound_rows, np.int32)
    return np.array(step.batch.lengths.max() + step.batch.num_tokens, np.int32)


def _wanted_rows(step: Step, spec: TensorSpec) -> Int64:
    batch = step.batch
    rows: Int64 = batch.wanted + np.arange(batch.size, dtype=np.int64)[:, None] * batch.num_tokens
    return rows


def _is_image(step: Step, spec: TensorSpec) -> npt.NDArray[np.bool_]:
    marked = np.zeros(step.batch.ids.shape, np.bool_)
    for row, features in zip(marked, step.batch.features, strict=False):
        for placed in features:
            row[placed.start : placed.start + len(placed.rows)] = True
    return marked


def _deep_features(step: Step, spec: TensorSpec) -> Embeds:
    """Return what of the image features is no embedding [B, T, n*D], zero where no image is."""
    (width,) = (size for size in spec.shape[-1:] if isinstance(size, int))
    deep: Embeds = np.zeros((*step.batch.ids.shape, width), spec.dtype)
    _place(deep, step.batch, slice(step.embeds.shape[-1], None))
    return deep


def _looked_up(step: Step, spec: TensorSpec) -> Array:
    """Return what `embed_tokens` gave under an input's name.

    Raises:
        SignatureError: It gave nothing of that name.
    """
    if spec.name not in step.looked_up:
        raise SignatureError(
            f"a decoder wants {spec.name}, which embed_tokens does not give beside {tensors.INPUTS_EMBEDS}. Export the "
            "checkpoint again."
        )
    return step.looked_up[spec.name].astype(spec.dtype, copy=False)


def _seen_around(step: Step, spec: TensorSpec) -> Int64:
    batch = step.batch
    return np.zeros((2, *batch.ids.shape), np.int64) if batch.around is None else batch.around


def _memory_seen(step: Step, spec: TensorSpec) -> Int64:
    seen = step.batch.seen
    return np.zeros((*step.batch.ids.shape, 3), np.int64) if seen is None else seen


def _head_values(step: Step, spec: TensorSpec) -> npt.NDArray[np.float32]:
    """Return what replaces heads [B, L, H*C], zero where nothing does."""
    values = np.zeros((step.batch.size, *_sizes(spec)), np.float32)
    for row, (heads, _) in zip(values, step.batch.heads, strict=False):
        if heads is not None:
            row[:] = heads.values
    return values


def _head_mask(step: Step, spec: TensorSpec) -> npt.NDArray[np.bool_]:
    """Return the heads that are replaced [B, T, L*H]."""
    mask = np.zeros((*step.batch.ids.shape, *_sizes(spec)), np.bool_)
    for row, (heads, first) in zip(mask, step.batch.heads, strict=False):
        if heads is not None:
            row[first:] = heads.mask
    return mask


def _full_layers(step: Step, spec: TensorSpec) -> npt.NDArray[np.bool_]:
    """Return which layers tokens run through in full [B, T, n]: all, but for image tokens that skip some."""
    (num_layers,) = _sizes(spec)
    full = np.ones((*step.batch.ids.shape, num_layers), np.bool_)
    for row, features in zip(full, step.batch.features, strict=False):
        for placed in features:
            row[placed.start : placed.start + len(placed.rows), num_layers - placed.num_skipped :] = False
    return full


def _adapters(step: Step, spec: TensorSpec) -> Int64:
    return np.array(step.batch.adapters or [0] * step.batch.size, np.int64)


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size for size in spec.shape if isinstance(size, int))


_FILLED: Mapping[str, Callable[[Step, TensorSpec], Array]] = {
    tensors.INPUTS_EMBEDS: lambda step, spec: step.embeds,
    tensors.POSITION_IDS: _positions,
    tensors.PAST_LENGTHS: _lengths,
    tensors.LOGITS_INDICES: _wanted,
    tensors.IS_IMAGE: _is_image,
    tensors.DEEP_FEATURES: _deep_features,
    tensors.PER_LAYER_INPUTS: _looked_up,
    tensors.SEEN_AROUND: _seen_around,
    tensors.MEMORY_SEEN: _memory_seen,
    tensors.HEAD_VALUES: _head_values,
    tensors.HEAD_MASK: _head_mask,
    tensors.FULL_LAYERS: _full_layers,
    tensors.ADAPTERS: _adapters,
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
