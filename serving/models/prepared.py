"""A request on its way to the engine thread, and what is told of it at its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bundle.prompt import Prompt
from quant.kv.compressing import Compression
from runtime.fused_prefix import FusedPrefix
from runtime.task_vector import TaskVector
from serving.engine.sequence import Sequence as EngineSequence
from serving.models.fusing import Messages
from serving.models.images import EncodedImage
from serving.models.structures import CompiledStructure
from serving.protocol import Timings, Usage


@dataclass(frozen=True)
class Against:
    """What an answer is held against: another prompt, and what fills its images."""

    prompt: Prompt
    images: Sequence[EncodedImage]


@dataclass(frozen=True)
class Prepared:
    """A request whose prompt is known.

    Attributes:
        prompt: Filled from messages and image sizes, with what is read of the images.
        images: Encoded, in prompt order; what is read of them.
        prefix: That the prompt stands behind.
        vector: That it is answered with.
        to_fuse: What a fused prefix is made of; None where none is.
        structure: That every choice is held to.
        compression: What becomes of the prompt's rows once it was read.
        against: What every choice is held against; None: nothing.
        asked: The text of the last user's message.
        num_image_tokens: Of the images, read or not.
        num_cached_image_tokens: Those whose features were not encoded for this request.
        preprocess_s: Decoding, templating, tokenizing, resizing.
        vision_s: Waiting for the vision encoder.
    """

    prompt: Prompt
    images: Sequence[EncodedImage]
    prefix: FusedPrefix | None
    vector: TaskVector | None
    to_fuse: Messages | None
    structure: CompiledStructure | None
    compression: Compression | None
    against: Against | None
    asked: str
    num_image_tokens: int
    num_cached_image_tokens: int
    preprocess_s: float
    vision_s: float

    def usage(self, sequences: Sequence[EngineSequence], num_tokens: int) -> Usage:
        """Return the counts of a request that has ended.

        Args:
            sequences: Of its choices.
            num_tokens: Of all answers together.
        """
        first = sequences[0]
        num_read = first.num_rows_behind + self.prompt.num_tokens
        return Usage(
            num_read,
            num_tokens,
            self.num_image_tokens,
            self.num_cached_image_tokens,
            first.cached_tokens or 0,
            cache_rows_before=num_read,
            cache_rows_after=first.num_prompt_rows,
            kept_image_tokens=first.num_kept_image_tokens,
        )

    def timings(self, sequences: Sequence[EngineSequence], arrived_s: float, first_token_s: float) -> Timings:
        """Return where the time of a request that has ended went.

        Args:
            sequences: Of its choices.
            arrived_s: By the monotonic clock.
            first_token_s: From then to the first token that was read here.
        """
        began_s = min(sequence.started_s for sequence in sequences)
        first_s = min(sequence.first_token_s for sequence in sequences)
        return Timings(
            began_s - sequences[0].submitted_s,
            self.preprocess_s,
            self.vision_s,
            first_token_s,
            time.monotonic() - arrived_s,
            prefill_s=first_s - began_s,
            decode_s=max(sequence.last_token_s for sequence in sequences) - first_s,
        )
