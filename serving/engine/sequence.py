"""One request on the engine thread."""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from quant.kv.compressing import Compressing, Compression, LastQueries, Stayed
from runtime.chunks import GRID_TOKENS
from runtime.feeds import HeadValues, TokenBatch, TokenRun
from runtime.filled_prompt import FilledPrompt, positions_from
from runtime.fused_prefix import StoredRows
from runtime.segmented_prompt import SegmentedPrompt
from serving.engine.sampling.constraint import Constraint
from serving.engine.sampling.state import SamplingState
from serving.protocol import SamplingParams

RowKey = int | tuple[bytes | int, ...]
"""What a row of the cache is of: a token's id, or an image's digest, the row of its features and its position on each
axis, which times of a video decide as well. Where the token sees others behind it: the digest of all of these, and its
place. The first of all tells as well which adapter the rows were made through, where it is one."""
_OF_ADAPTER = b"adapter"
"""No image's digest is as short."""


@dataclass(eq=False)
class Sequence:
    """A prompt, the tokens sampled after it, and how far the cache has them.

    Three numbers that are often equal and never one another: `num_run` counts tokens, `rows` what the cache holds of
    them (a policy may drop rows), `next_position` is where the next token stands in the text.

    Attributes:
        request_id: The caller's name for it.
        prompt: Tokens, positions, image features.
        sampling: How its tokens are chosen.
        eos_token_ids: Any of them ends it.
        image_keys: Of each image, the digest of what its features depend on.
        num_length_groups: G.
        constraint: The structure that its answer has to have.
        priority: Lower runs earlier.
        deadline_s: Monotonic time after which it is not begun.
        compression: What becomes of its prompt's rows once they are all there; None: all stay.
        segmented: Its prompt on its way through the segments of the decoder, where image tokens are dropped between
            them; None: it runs whole. Such a sequence begins at its first token, and what it leaves is no prefix.
        behind: Rows that its slot begins with, before any of its prompt's; what it leaves is then no prefix.
        heads: What replaces attention heads, at the last token of its prompt and at each one behind it; the rows of
            these tokens are then no prefix of anything.
        shadow: The same answer behind another prompt, whose scores its own are held against. It runs beside this one,
            says what this one says, and ends with it; the caller submits this one alone.
        wanted_rows: Of its prompt, rows that its caller wants once it was read.
        handed_out: Those rows; whoever runs it sets them.
        casts: Whose shadow it is, if it is one.
        sampling_state: Made from `sampling`, prompt and constraint; the sampler changes it.
        num_prompt_tokens: Tokens of the prompt.
        ids: Prompt and output in one list, an end token included; the scheduler appends.
        keys: What each token of `ids` is, by content; the scheduler appends.
        next_position: Logical position of the token that is sampled next; the scheduler advances it.
        num_run: Tokens of `ids` that the decoder has read; the scheduler advances it.
        rows: [G] rows that its slot holds of each length group; the scheduler advances them.
        slot: Set by `Slots` while the sequence runs.
        snapshots: Where states of fixed size are kept: how many tokens had been read when each snapshot of its slot was
            taken, 0 of those that are none of its own. None: the model has no such states. The scheduler sets it.
        cached_tokens: Of the prompt, those whose rows were there when it was begun first; `Slots` sets it.
        is_cut: Rows were dropped, so that what is left is no prefix of anything.
        is_compressed: What `compression` wants was done.
        num_kept_rows: Rows of its prompt that stayed when it was compressed, the mean over layers.
        last_queries: Of its prompt, where the policy needs them; whoever runs it adds them.
        compressing: The choice of rows under way; `Runner` sets it.
        submitted_s: Monotonic time; set by `Engine.submit`.
        started_s: Monotonic time at which its first prompt chunk ran; set by the engine thread.
        first_token_s: Monotonic time of its first token, 0 before; set by the engine thread.
        last_token_s: The same of its newest.
    """

    request_id: str
    prompt: FilledPrompt
    sampling: SamplingParams
    eos_token_ids: SequenceOf[int]
    image_keys: SequenceOf[bytes] = ()
    num_length_groups: int = 1
    constraint: Constraint | None = None
    priority: int = 0
    deadline_s: float = math.inf
    compression: Compression | None = None
    segmented: SegmentedPrompt | None = None
    behind: StoredRows | None = None
    heads: HeadValues | None = None
    shadow: Sequence | None = None
    wanted_rows: npt.NDArray[np.int64] | None = None
    handed_out: StoredRows | None = None
    casts: Sequence | None = field(default=None, init=False)
    sampling_state: SamplingState = field(init=False)
    num_prompt_tokens: int = field(init=False)
    ids: list[int] = field(init=False)
    keys: list[RowKey] = field(init=False)
    next_position: int = field(init=False)
    num_run: int = 0
    rows: list[int] = field(init=False)
    slot: int | None = None
    snapshots: list[int] | None = None
    cached_tokens: int | None = None
    is_cut: bool = False
    is_compressed: bool = False
    num_kept_rows: int | None = None
    last_queries: LastQueries = field(default_factory=LastQueries)
    compressing: Compressing | None = None
    submitted_s: float = 0.0
    started_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0

    def __post_init__(self) -> None:
        self.num_prompt_tokens = self.prompt.num_tokens
        self.ids = self.prompt.prompt.token_ids.tolist()
        self.sampling_state = SamplingState(self.sampling, self.ids, self.eos_token_ids, self.constraint)
        self.keys = _row_keys(self.ids, self.prompt, self.image_keys)
        self.next_position = self.prompt.prompt.next_position
        self.rows = [0] * self.num_length_groups
        if self.shadow is not None:
            self.shadow.casts = self

    @property
    def owner(self) -> Sequence:
        """The sequence that was submitted: itself, or whose shadow it is."""
        return self if self.casts is None else self.casts

    @property
    def together(self) -> tuple[Sequence, ...]:
        """Those that run and end with one another: its shadow, if it has one, and itself."""
        return (self,) if self.shadow is None else (self.shadow, self)

    @property
    def is_parked(self) -> bool:
        """True of a shadow that waits in its seat while the prompt of whose shadow it is runs."""
        return self.casts is not None and not self.casts.is_decoding

    @property
    def num_output_tokens(self) -> int:
        """Tokens sampled so far."""
        return len(self.ids) - self.num_prompt_tokens

    @property
    def num_rows(self) -> int:
        """Rows of its longest length group; tokens that were read, where a model keeps no rows."""
        return max(self.rows, default=self.num_run)

    @property
    def prompt_rows(self) -> SequenceOf[RowKey]:
        """By content, the rows that its slot holds of its prompt; none where they are no prefix of it."""
        is_whole = not self.is_cut and self.compressing is None and not self.begins_alone and bool(self.rows)
        num_rows = min(self.num_run, self.first_replaced) if self.snapshots is None else max(self.snapshots)
        return self.keys[:num_rows] if is_whole else ()

    @cached_property
    def snapshot_places(self) -> tuple[int, ...]:
        """Behind how many tokens of the prompt each snapshot is taken, 0 where none is: behind images, and at its end.

        A chat goes on behind the end; another question about the same images begins behind the last of them.
        """
        if self.prompt.prompt.seen is not None:
            return 0, 0  # no place parts tokens that see one another
        last = max((span.end for span in self.prompt.prompt.spans), default=0)
        most = max(self.num_prompt_tokens - self.num_fresh_tokens, 0)
        behind_images, end = (each - each % GRID_TOKENS for each in (min(last, most), most))
        return (behind_images if behind_images < end else 0, end)

    @property
    def first_replaced(self) -> int:
        """The first of its tokens whose rows depend on more than the tokens before."""
        return self.num_prompt_tokens - (self.heads is not None)

    @property
    def begins_alone(self) -> bool:
        """True where rows depend on more than its prompt's tokens: it takes nothing of others and leaves nothing."""
        return self.segmented is not None or self.behind is not None

    @property
    def num_rows_behind(self) -> int:
        """Rows that its slot holds before any of its prompt's."""
        return 0 if self.behind is None else self.behind.num_rows

    @property
    def reading(self) -> SegmentedPrompt | None:
        """Its prompt while that runs segment by segment; None where it runs whole, or has run."""
        return self.segmented if self.segmented and not self.segmented.is_read else None

    @property
    def num_left_tokens(self) -> int:
        """Tokens that are yet to be read, of prompt and answer; those of a prompt in segments at most."""
        if self.reading is None:
            return len(self.ids) - self.num_run
        return self.reading.num_left_tokens + self.num_output_tokens

    @property
    def num_kept_image_tokens(self) -> int:
        """Image tokens of the prompt that the last layers read."""
        num_image_tokens = self.prompt.prompt.num_image_tokens
        return num_image_tokens if self.segmented is None else self.segmented.num_kept_image_tokens

    @property
    def num_prompt_rows(self) -> int:
        """Rows that the cache holds of a prompt that was read, the mean over layers."""
        if self.num_kept_rows is not None:
            return self.num_kept_rows
        read = self.num_prompt_tokens if self.segmented is None else self.segmented.mean_rows
        return self.num_rows_behind + read

    @property
    def is_decoding(self) -> bool:
        """True when nothing is left to be done but to read the token sampled last."""
        is_read = self.num_output_tokens > 0 and self.num_run == len(self.ids) - 1
        return is_read and not self.is_to_be_compressed

    @property
    def is_read(self) -> bool:
        """True when it has done its own part: it decodes, or is a shadow of which no token is left to be read."""
        return self.is_decoding or (self.casts is not None and self.num_run == len(self.ids))

    @property
    def is_to_be_compressed(self) -> bool:
        """True from when its prompt was read and its first token sampled until the rows are chosen that stay."""
        is_due = self.compression is not None and not self.is_compressed
        return is_due and self.num_output_tokens > 0 and self.num_run == self.num_prompt_tokens

    @property
    def num_fresh_tokens(self) -> int:
        """Tokens at the end of its prompt that have to be run whatever rows are here; never a single one."""
        return max(2, 0 if self.compression is None else self.compression.num_fresh_tokens)

    @property
    def num_rows_again(self) -> int:
        """Rows that it takes to read all of it again."""
        if self.compression is None:
            return self.num_rows_behind + len(self.ids)
        return max(self.num_prompt_tokens, self.compression.num_kept + self.num_output_tokens)

    @property
    def is_image(self) -> npt.NDArray[np.bool_]:
        """[L] True where a token of the prompt is an image's."""
        marked = np.zeros(self.num_prompt_tokens, np.bool_)
        for span in self.prompt.prompt.spans:
            marked[span.start : span.end] = True
        return marked

    @property
    def content_seed(self) -> int:
        """A number that is the same for the same prompt, whoever asks it when."""
        content = repr(self.keys[: self.num_prompt_tokens]).encode()
        return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")

    def try_observe(self, end: int) -> LastQueries | None:
        """Return where queries of a run that ends before token `end` go; None where nobody will look at them."""
        if self.compression is None or self.num_run >= self.num_prompt_tokens:
            return None
        return self.last_queries if end > self.num_prompt_tokens - self.compression.num_fresh_tokens else None

    def run(self, start: int, end: int) -> TokenRun:
        """Return tokens `start ... end - 1` as they are run, which lie in the prompt or behind it.

        Raises:
            ValueError: Some lie in it and some behind.
        """
        wanted, num_prompt = [end - start - 1], self.num_prompt_tokens
        if end <= num_prompt:
            run = self.prompt.run(start, end, self.rows, wanted)
            return run if self.heads is None else self._replaced(run, start)
        if start < num_prompt:
            raise ValueError(f"tokens {start} to {end} are of two phases: the prompt has {num_prompt}")
        first = self.next_position - (len(self.ids) - start)
        places = positions_from(first, end - start, self.prompt.prompt.positions)
        seen = self.prompt.seen_by(end - start)
        ids, adapter = np.array(self.ids[start:end], np.int64), self.prompt.adapter
        run = TokenRun(ids, places, self.rows, wanted, seen=seen, adapter=adapter)
        return run if self.heads is None else self._replaced(run, start)

    def _replaced(self, run: TokenRun, start: int) -> TokenRun:
        """Return a run that begins at a token, with what replaces heads in it."""
        return replace(run, heads=self.heads, first_replaced=max(self.first_replaced - start, 0))

    def advance(self, num_tokens: int) -> None:
        """Record that so many tokens more were read and their rows written.

        A prompt in segments counts its own, and is read when the last segment is.
        """
        if self.segmented and self.num_run < self.num_prompt_tokens:
            self.rows = list(self.segmented.rows)
            self.num_run = self.num_prompt_tokens if self.segmented.is_read else 0
            return
        self.num_run += num_tokens
        self.rows = [rows + num_tokens for rows in self.rows]

    def append(self, token_id: int) -> None:
        """Record a sampled token, which is yet to be read; its shadow says the same."""
        if self.shadow is not None:
            self.shadow.append(token_id)
        self.ids.append(token_id)
        self.keys.append(token_id)
        self.next_position += 1

    def take_over(self, num_rows: int) -> None:
        """Record that its slot holds the rows of its first tokens; it holds no others."""
        self.num_run = num_rows
        self.rows = [self.num_rows_behind + num_rows] * len(self.rows)
        if self.cached_tokens is None:
            self.cached_tokens = self.num_rows_behind + num_rows

    def cut(self, group: int, num_rows: int) -> None:
        """Record that its slot holds so many rows of a length group, the others being dropped."""
        self.rows[group] = num_rows
        self.is_cut = True

    def compress(self, stayed: Stayed) -> None:
        """Record what its slot holds of its prompt once the rows were chosen that stay."""
        self.rows = list(stayed.rows)
        self.is_cut = self.is_compressed = True
        self.num_kept_rows = stayed.mean_rows
        self.last_queries, self.compressing = LastQueries(), None

    def forget(self) -> None:
        """Record that the cache holds nothing of it any more; what was sampled stays."""
        self.num_run = 0
        self.rows = [0] * len(self.rows)
        self.snapshots = None if self.snapshots is None else [0] * len(self.snapshots)
        self.is_cut = self.is_compressed = False
        self.last_queries, self.compressing = LastQueries(), None
        if self.segmented:
            self.segmented.restart()


def _row_keys(ids: SequenceOf[int], prompt: FilledPrompt, image_keys: SequenceOf[bytes]) -> list[RowKey]:
    keys: list[RowKey] = list(ids)
    positions = np.atleast_2d(prompt.prompt.positions)
    for span in prompt.prompt.spans:
        places = positions[:, span.start : span.end].T.tolist()
        keys[span.start : span.end] = [(image_keys[span.image], row, *at) for row, at in enumerate(places, span.row)]
    if prompt.prompt.seen is not None:
        keys = _with_what_they_see(keys, prompt.prompt.seen[1])
    return _through_adapter(keys, prompt.adapter)


def _through_adapter(keys: list[RowKey], adapter: int) -> list[RowKey]:
    """Return keys of rows that an adapter made: the first one tells, behind which all others are looked for."""
    if not adapter or not keys:
        return keys
    first = keys[0] if isinstance(keys[0], tuple) else (keys[0],)
    return [(_OF_ADAPTER, adapter, *first), *keys[1:]]


def _with_what_they_see(keys: SequenceOf[RowKey], ends: npt.NDArray[np.int64]) -> list[RowKey]:
    """Return keys of rows that tell, beside the token, all tokens behind it that it sees.

    Args:
        keys: Of the tokens.
        ends: [T] the token behind the last one that each sees.
    """
    found, seen = list(keys), dict[int, bytes]()
    for at in np.flatnonzero(ends > np.arange(1, len(keys) + 1)).tolist():
        end = int(ends[at])
        if end not in seen:
            seen[end] = blake2b(repr(keys[at:end]).encode(), digest_size=16).digest()
        found[at] = seen[end], at
    return found


def newest_tokens(sequences: SequenceOf[Sequence]) -> TokenBatch:
    """Return the token that each sequence sampled last, as they are run together."""
    return TokenBatch.of_sampled(
        [sequence.ids[-1] for sequence in sequences],
        [sequence.next_position - 1 for sequence in sequences],
        [sequence.rows for sequence in sequences],
        sequences[0].prompt.prompt.positions.shape[:-1],
        [sequence.prompt.seen_behind for sequence in sequences],
        [sequence.heads for sequence in sequences],
        [sequence.prompt.adapter for sequence in sequences],
    )
