"""What a prompt layout is: how a model writes images into its prompts, and where their tokens stand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from bundle.fields import MOST_NAME_CHARACTERS, Frozen, TokenId
from bundle.frames.groups import FrameGroups
from bundle.image.layout import TileLayout
from bundle.layouts.video_tokens import VideoTokens

Int64 = npt.NDArray[np.int64]
LooksAhead: TypeAlias = Literal["nowhere", "images", "all images", "text", "prompt"]
"""Where attention looks forward: tokens of an image see those that follow without a break, and windows bound what they
see before them; tokens of images see those of all images and no text between; tokens of images see the text behind the
last one; or all tokens of a prompt see all of it, whatever windows there are."""
Features = npt.NDArray[Any]


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of a prompt that stand for consecutive rows of one image's features.

    Attributes:
        start: First token.
        end: Behind the last one.
        image: Which image, in the order of the conversation.
        row: The image's feature row that the first token stands for.
    """

    start: int
    end: int
    image: int
    row: int


@dataclass(frozen=True)
class Places:
    """Where the tokens of a prompt stand.

    Attributes:
        positions: [T] int64; [3, T] where a model turns by three axes.
        next_position: Of the first token after the prompt.
    """

    positions: Int64
    next_position: int


@dataclass(frozen=True)
class Memory:
    """What cross-attention reads of a conversation's images, and which token sees which of it.

    Attributes:
        pieces: Image, and start and end of some rows of its features, in the order in which they stand in memory.
        seen: [T, 3] int64, as `bundle.tensors.MEMORY_SEEN`.
        holds_all: All rows of all images stand there in order, however many the encoder gives, and every token sees
            them: `pieces` and `seen` are told once they are there (`filled`).
        leaves_spans: Rows of features that no piece holds take the places of image tokens, as spans say.
        is_prompt: It is no memory of images but the prompt itself, all of whose rows stay in sight.
    """

    pieces: tuple[tuple[int, int, int], ...]
    seen: Int64
    holds_all: bool = False
    leaves_spans: bool = False
    is_prompt: bool = False

    @classmethod
    def of_prompt(cls, num_tokens: int) -> Memory:
        """Return what tokens see of a prompt whatever windows they have: all of it."""
        return cls(
            (), np.tile(np.array([0, num_tokens, 1], np.int64), (num_tokens, 1)), leaves_spans=True, is_prompt=True
        )

    def filled(self, num_rows: Sequence[int]) -> Memory:
        """Return the memory of images that have so many rows each."""
        if not self.holds_all:
            return self
        pieces = tuple((image, 0, rows) for image, rows in enumerate(num_rows))
        return Memory(pieces, np.tile(np.array([0, sum(num_rows), 1], np.int64), (len(self.seen), 1)))

    @property
    def num_rows(self) -> int:
        """Of all images."""
        return sum(end - start for _, start, end in self.pieces)


class ImagePrompt(Frozen, ABC):
    """How images are written into the prompt of a vision-language model; a file each, and a line in the table.

    Attributes:
        kind: Its name in `manifest.json`.
        image_token: The placeholder's text in the chat template and in the vocabulary.
        image_token_id: Its id; every such id in a prompt is replaced by one row of `image_features`.
        tokens_per_tile: P, rows of `image_features` per tile; of a usual image where that varies.
        frames: What a prompt says around a video's frames; "smolvlm": how many they are and when each was.
        fake_token: Of idefics3; older versions wrote it for every kind, empty.
        global_token: Of idefics3; older versions wrote it for every kind, empty.
    """

    places_images_in_strings: ClassVar[bool] = False
    """Where a chat template reads a message as one string, its images are written where they stand in it."""
    looks_ahead: ClassVar[LooksAhead] = "nowhere"
    """Where the decoder's attention looks forward."""

    fills_memory: ClassVar[bool] = False
    """Features go into states of kind "memory" (`memory`), and not into the places of image tokens."""

    writes_whole_prompts: ClassVar[bool] = False
    """Chat templates write all of a prompt; the tokenizer puts nothing around it."""

    takes_one_message: ClassVar[bool] = False
    """A conversation is one user's message about one image: there is no history, no system, no function to call."""

    wants_image: ClassVar[bool] = False
    """There is no prompt without an image."""

    begins_answers: ClassVar[bool] = False
    """What a user's message says is how the answer begins: it may hold all of the vocabulary that is not special."""

    kind: str
    image_token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    image_token_id: TokenId
    tokens_per_tile: int = Field(gt=0, le=1 << 16)
    frames: Literal["plain", "smolvlm"] = "plain"
    fake_token: str = Field(default="", max_length=MOST_NAME_CHARACTERS)
    global_token: str = Field(default="", max_length=MOST_NAME_CHARACTERS)

    @property
    def rows_per_tile(self) -> int:
        """Rows that the encoder gives of a tile: its tokens, unless `arranged` makes tokens of them."""
        return self.tokens_per_tile

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a video's frame: those of a tile, unless `arranged` makes fewer of it."""
        return self.tokens_per_tile

    @property
    def own_video(self) -> VideoTokens | None:
        """Tokens of the model's own for a whole video; None: its frames are images."""
        return None

    @property
    def frame_groups(self) -> FrameGroups | None:
        """How frames become tiles where there are such tokens; None: each is an image."""
        return None

    @abstractmethod
    def text(self, layout: TileLayout) -> str:
        """Return what the placeholder of an image that was cut so becomes, `num_tokens` image tokens among it."""

    def num_tokens(self, layout: TileLayout) -> int:
        """Return how many image tokens, which are rows of features, an image takes in a prompt."""
        return layout.num_tiles * self.tokens_per_tile if layout.fewer_tokens is None else layout.fewer_tokens

    def tidied(self, text: str) -> str:
        """Return a prompt in which images stand, with what changes at their edges; mostly nothing."""
        return text

    def arranged(self, features: Features, layout: TileLayout) -> Features:
        """Return an image's features [..., D] in the order of its tokens.

        Args:
            features: [tiles, P, D] as the encoder gave them; [rows, D] where its tiles differ in size.
            layout: How it was cut.
        """
        return features

    def places(self, num_tokens: int, spans: Sequence[Span], layouts: Sequence[TileLayout]) -> Places:
        """Return where the tokens of a prompt stand: 0, 1, 2, ... unless a model counts otherwise.

        Args:
            num_tokens: T.
            spans: The tokens of images, in order.
            layouts: Of each image.
        """
        return Places(np.arange(num_tokens, dtype=np.int64), num_tokens)

    def seen(self, token_ids: Int64, spans: Sequence[Span]) -> Int64 | None:
        """Return [2, T] the half-open stretch that each token sees beside those before it; None: there is none.

        Args:
            token_ids: [T].
            spans: The tokens of images, in order.
        """
        if self.looks_ahead == "nowhere":
            return None
        num_tokens = len(token_ids)
        own = np.arange(num_tokens, dtype=np.int64)
        if self.looks_ahead == "prompt":
            return np.stack([np.zeros_like(own), np.full_like(own, num_tokens)])
        seen = np.stack([own, own + 1])
        behind = max((span.end for span in spans), default=num_tokens)
        for span in spans:
            if self.looks_ahead == "images":
                seen[1, span.start : span.end] = span.end
            elif behind < num_tokens:
                seen[:, span.start : span.end] = [[behind], [num_tokens]]
        return seen

    def check(self, layouts: Sequence[TileLayout]) -> None:
        """Check that the model takes so many images, before any of them is encoded; any number unless it says more.

        Raises:
            ContextLengthError: It does not.
        """

    def memory(self, num_tokens: int, spans: Sequence[Span], layouts: Sequence[TileLayout]) -> Memory | None:
        """Return what goes into states of kind "memory"; None: features take the places of image tokens.

        Args:
            num_tokens: T.
            spans: The tokens of images, in order.
            layouts: Of each image.
        """
        return None

    def writes(self, token: str) -> bool:
        """Return whether a token of the vocabulary belongs to the layout, so that no caller may write it."""
        video = self.own_video
        of_video = () if video is None else (video.token, video.start_token, video.end_token)
        return token in (self.image_token, self.fake_token, self.global_token, *of_video)
