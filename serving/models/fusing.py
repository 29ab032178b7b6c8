"""Fused prefixes of one model: made of messages that were read, and put before the messages of later requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bundle.errors import ParameterError
from bundle.image import TileLayout
from bundle.manifest import Manifest
from bundle.prompt import Prompt, Turn
from runtime.feeds import Int64
from runtime.fused_prefix import FusedPrefix, StoredRows, identity_of
from runtime.settings import Provider
from runtime.task_vector import TaskVector, is_task_vector
from serving.protocol import GenerateRequest, KVCompression, VisionReduction

_PROBE = Turn("user", ("x",))
"""What may follow: where the template then writes the messages before it otherwise, they are cut there."""


Build = Callable[..., Prompt]
"""`PromptBuilder.build` with a request's limits."""


@dataclass(frozen=True)
class Messages:
    """Messages that are read for a fused prefix.

    Attributes:
        turns: As they are.
        layouts: Of their images.
        token_ids: [N], with one for every row of an image.
    """

    turns: tuple[Turn, ...]
    layouts: tuple[TileLayout, ...]
    token_ids: Int64


class Fusing:
    """What one model does of fused prefixes.

    Args:
        manifest: Of its bundle.
        provider: Where it runs.
    """

    def __init__(self, manifest: Manifest, provider: Provider) -> None:
        self._manifest = manifest
        self._provider = provider

    def check(self, request: GenerateRequest, kv: KVCompression | None, vision: VisionReduction | None) -> None:
        """Check that a request may make a fused prefix, or stand behind one.

        Args:
            request: Of either kind, or of neither.
            kv: What would become of its rows.
            vision: What leaves inside the decoder; None: nothing does.

        Raises:
            ParameterError: It may not.
        """
        if not request.fuses and (request.behind is None or is_task_vector(request.behind)):
            return
        name = self._manifest.name
        if self._provider != "cpu":
            raise ParameterError(
                f"{name} keeps its rows on {self._provider}, and fused prefixes are rows in a host's memory. Make the "
                'prefix with method "plain"',
                "prefix",
            )
        if kinds := {state.kind for state in self._manifest.states} - {"rows"}:
            raise ParameterError(
                f"{name} has states of kind {', '.join(sorted(kinds))}, and fused prefixes are rows of single tokens. "
                'Make the prefix with method "plain"',
                "prefix",
            )
        self._check_sight()
        if self._manifest.question is not None:
            raise ParameterError(
                f"what {name} sees of an image depends on the question, and rows of a fused prefix were made before it "
                'was asked. Make the prefix with method "plain"',
                "prefix",
            )
        if kv is not None:
            raise ParameterError(
                f"kv.policy {kv.policy!r} chooses among a prompt's rows, and those of a fused prefix were chosen when "
                "it was made; send kv with budget 1",
                "kv",
            )
        if vision is not None:
            raise ParameterError(
                f"vision.method {vision.method!r} drops rows inside the decoder, and all of its layers hold those of "
                "a fused prefix; choose a method that reduces images before the decoder",
                "vision.method",
            )

    def _check_sight(self) -> None:
        """Check that rows of a beginning do not depend on what follows, nor on how many rows there are.

        Raises:
            ParameterError: They do.
        """
        manifest = self._manifest
        if manifest.image_prompt is not None and manifest.image_prompt.looks_ahead in ("all images", "text", "prompt"):
            raise ParameterError(
                f"tokens of a prompt of {manifest.name} see what follows them to its end, so that no rows of a "
                "beginning can be kept for others; send the messages themselves",
                "prefix",
            )
        if manifest.decoder is not None and (window := manifest.decoder.window_tokens) is not None:
            raise ParameterError(
                f"layers of {manifest.name} see windows of {window} rows, and a fused prefix has lost those of its "
                'images. Make the prefix with method "plain"',
                "prefix",
            )

    def read(self, content: bytes, adapter: str = "") -> FusedPrefix | TaskVector:
        """Return the prefix that a request stands behind, or is answered with; takes milliseconds.

        Args:
            content: As it was made.
            adapter: Through which the request runs; empty: none.

        Raises:
            ParameterError: It is damaged, or of another bundle or adapter.
        """
        read = TaskVector.from_bytes if is_task_vector(content) else FusedPrefix.from_bytes
        return read(content, self._manifest, adapter)

    def prompt(
        self, build: Build, turns: Sequence[Turn], layouts: Sequence[TileLayout], prefix: FusedPrefix | None
    ) -> Prompt:
        """Return the prompt of a conversation, or what of it stands behind a prefix.

        Raises:
            PromptError: It forms no prompt.
            ParameterError: It cannot stand behind that prefix.
        """
        if prefix is None:
            return build(turns, layouts)
        return prefix.rest_of(build([*prefix.turns, *turns], [*prefix.layouts, *layouts]))

    def beginning(self, build: Build, turns: Sequence[Turn], layouts: Sequence[TileLayout]) -> Prompt:
        """Return messages as far as they are the beginning of any conversation that begins with them.

        Raises:
            PromptError: They form no prompt.
            ParameterError: They hold calls or results of functions, no text, or an image is not part of the beginning.
        """
        if any(turn.calls or turn.role == "tool" for turn in turns):
            raise ParameterError("a fused prefix holds no calls of functions; make it with method plain", "messages")
        alone = build(turns, layouts, add_generation_prompt=False)
        longer = build([*turns, _PROBE], layouts)
        size = _num_shared(alone, longer)
        if any(span.end > size for span in alone.spans):
            raise ParameterError(
                "the model's template writes the last of these messages otherwise once another follows; end with the "
                "assistant's answer, or make the prefix with method plain",
                "messages",
            )
        return replace(
            alone,
            token_ids=alone.token_ids[:size],
            positions=alone.positions[..., :size],
            next_position=size,
            seen=None if alone.seen is None else alone.seen[:, :size],
        )

    def fused(self, read: Messages, rows: StoredRows, adapter: str = "") -> bytes:
        """Return the prefix made of messages, once their text's rows are there, made through an adapter or none."""
        identity = identity_of(self._manifest, adapter)
        return FusedPrefix(identity, read.turns, read.layouts, read.token_ids, rows).to_bytes()


def _num_shared(one: Prompt, other: Prompt) -> int:
    size = min(one.num_tokens, other.num_tokens)
    differ = np.flatnonzero(one.token_ids[:size] != other.token_ids[:size])
    return int(differ[0]) if differ.size else size
