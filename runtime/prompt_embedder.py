"""Prompts to vectors: a decoder that embeds, run once over prompts side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from bundle import tensors
from bundle.dims import EmbedderDims, Pooling
from bundle.directory import Bundle
from bundle.errors import BundleFormatError, SignatureError
from bundle.manifest import ComponentName
from runtime.encoders import Vectors, unit
from runtime.feeds import Step, TokenBatch, TokenRun, check_inputs, feeds_of
from runtime.filled_prompt import FilledPrompt
from runtime.graph import Array
from runtime.memory import filled_memory
from runtime.session import Session
from runtime.settings import RuntimeSettings
from runtime.states import empty_states

_NONE: Mapping[ComponentName, Session] = MappingProxyType({})
_MOST_RUN_TOKENS = 1024
"""Of prompts side by side, padding among them; a longer one runs alone, and each alone whose images fill a memory, for
that takes as much as thousands of tokens (420 MB in Llama 3.2 Vision 11B)."""
_MOST_PADDING = 0.25
"""Of the longest prompt of a run, that a shorter one beside it may lack: what is padded is computed for nothing."""


class PromptEmbedder:
    """The graphs that turn prompts into vectors.

    Args:
        bundle: Of a model that embeds by a decoder.
        settings: Provider and threads.
        opened: Sessions of the bundle that serve something else as well, by the graph's name; others are opened.

    Attributes:
        sessions: By the graph's name in the manifest.

    Raises:
        BundleError: A graph is missing, unusable, or not what the manifest says.
        MachineError: This machine cannot run one.
    """

    def __init__(
        self, bundle: Bundle, settings: RuntimeSettings, opened: Mapping[ComponentName, Session] = _NONE
    ) -> None:
        manifest = bundle.manifest
        if manifest.embedder is None:
            raise BundleFormatError(f"{bundle.directory} has a decoder that answers, or none; it cannot embed prompts")
        self._dims: EmbedderDims = manifest.embedder
        self._states, self._num_groups = manifest.states, manifest.num_length_groups
        decoder, table = manifest.graph("decoder", "prompt"), manifest.graph("embed_tokens")
        on_host = settings.model_copy(update={"provider": "cpu"})
        self._table = opened.get(table) or Session(bundle, table, on_host)
        self._decoder = opened.get(decoder) or Session(bundle, decoder, settings)
        self.sessions: dict[ComponentName, Session] = {table: self._table, decoder: self._decoder}
        check_inputs(self._decoder.component.inputs, str(self._decoder.path))
        self._check_gives_vectors()

    def embed(self, prompts: Sequence[FilledPrompt]) -> list[Vectors]:
        """Return each prompt's vectors of unit length: [1, E], or [T, E] where every token keeps its own.

        Args:
            prompts: At least one, each of at least one token. Those of about one length run together.
        """
        return [unit(own) for own in self.raw(prompts, self._dims.pooling)]

    def raw(self, prompts: Sequence[FilledPrompt], pooling: Pooling) -> list[Vectors]:
        """Return each prompt's vectors as the decoder gives them, by whichever pooling: [1, E], or [T, E] or [T, M]."""
        order = sorted(range(len(prompts)), key=lambda place: -prompts[place].num_tokens)
        found: dict[int, Vectors] = {}
        most = 0 if any(state.memory is not None for state in self._states) else _MOST_RUN_TOKENS
        for places in _alike([(place, prompts[place].num_tokens) for place in order], most):
            vectors = self._run([prompts[place] for place in places], pooling)
            found.update(zip(places, vectors, strict=True))
        return [found[place] for place in range(len(prompts))]

    def feeds(self, prompts: Sequence[FilledPrompt], pooling: Pooling | None = None) -> dict[str, Array]:
        """Return the decoder's inputs for prompts side by side, states among them.

        Args:
            prompts: As of `embed`.
            pooling: The model's own by default.
        """
        longest = max(prompt.num_tokens for prompt in prompts)
        is_last = (pooling or self._dims.pooling) == "last"
        wanted = [[prompt.num_tokens - 1] if is_last else range(longest) for prompt in prompts]
        runs = [self._padded(prompt, longest, each) for prompt, each in zip(prompts, wanted, strict=True)]
        batch = TokenBatch.of(runs)
        found = self._table.run({self._table.component.inputs[0].name: batch.ids})
        feeds = feeds_of(self._decoder.component.inputs, Step.of_tables(batch, found))
        return {**feeds, **empty_states(self._states, len(prompts), longest), **self._filled(prompts)}

    def _filled(self, prompts: Sequence[FilledPrompt]) -> dict[str, Array]:
        """Return states of kind "memory" of prompts side by side, empty of those without images; none without any."""
        if all(prompt.memory is None for prompt in prompts):
            return {}
        whole = {state.input: state for state in self._states if state.memory is not None}
        own = [filled_memory(self._states, prompt.memory) for prompt in prompts]
        return {
            name: np.concatenate([each.get(name, empty_states([state], 1, 0)[name]) for each in own])
            for name, state in whole.items()
        }

    def _run(self, prompts: Sequence[FilledPrompt], pooling: Pooling) -> list[Vectors]:
        feeds = self.feeds(prompts, pooling)
        is_projected = pooling == "tokens" and self._dims.late_size is not None
        name = tensors.LATE_EMBEDS if is_projected else tensors.TOKEN_EMBEDS
        given = self._decoder.graph.run(feeds, [name])[name]
        is_last = pooling == "last"
        rows = [own if is_last else own[: prompt.num_tokens] for own, prompt in zip(given, prompts, strict=True)]
        if pooling != "mean":
            return rows
        kept = [own[self._pooled(prompt)] for own, prompt in zip(rows, prompts, strict=True)]
        return [own.mean(axis=0, keepdims=True) for own in kept]

    def _pooled(self, prompt: FilledPrompt) -> npt.NDArray[np.bool_]:
        """Return [T] whether a token counts for the mean."""
        counts = np.ones(prompt.num_tokens, np.bool_)
        if not (self._dims.pools_images and prompt.placed):
            return counts
        counts[:] = False
        for placed in prompt.placed:
            counts[max(placed.start - 1, 0) : placed.start + len(placed.rows) + 1] = True
        return counts

    def _padded(self, prompt: FilledPrompt, num_tokens: int, wanted: Sequence[int]) -> TokenRun:
        """Return a prompt with tokens behind it that none before them sees."""
        run = prompt.run(0, prompt.num_tokens, [0] * self._num_groups, wanted)
        missing = num_tokens - prompt.num_tokens
        last = run.positions[..., -1:]
        positions = np.concatenate([run.positions, np.repeat(last, missing, axis=-1)], axis=-1)
        around = None if run.around is None else np.pad(run.around, ((0, 0), (0, missing)))
        ids = np.pad(run.ids, (0, missing))
        seen = None if run.seen is None else np.pad(run.seen, ((0, missing), (0, 0)), mode="edge")
        return replace(run, ids=ids, positions=positions, wanted=wanted, around=around, seen=seen)

    def _check_gives_vectors(self) -> None:
        component = self._decoder.component
        given = {spec.name: spec.shape for spec in (*component.optional_outputs, *component.outputs)}
        name, size = tensors.TOKEN_EMBEDS, self._dims.embedding_size
        if name not in given or given[name][-1] != size:
            raise SignatureError(
                f"{self._decoder.path} gives {', '.join(f'{each} {list(shape)}' for each, shape in given.items())}; a "
                f"decoder that embeds gives {name} [B, N, {size}]. Export the checkpoint again."
            )


def _alike(lengths: Sequence[tuple[int, int]], most_tokens: int) -> list[list[int]]:
    """Return (place, length), the longest first, as places of runs that hold little padding and so many tokens."""
    runs: list[list[int]] = []
    longest = 0
    for place, length in lengths:
        is_full = bool(runs) and (len(runs[-1]) + 1) * longest > most_tokens
        if not runs or is_full or length < (1 - _MOST_PADDING) * longest:
            runs.append([])
            longest = length
        runs[-1].append(place)
    return runs
