"""What stands for a whole video in the prompts of a model that has tokens of its own for those."""

from __future__ import annotations

from pydantic import Field

from bundle.fields import MOST_NAME_CHARACTERS, Frozen, TokenId


class VideoTokens(Frozen):
    """A model's tokens of videos.

    Attributes:
        token: The placeholder's text in the chat template and in the vocabulary.
        token_id: Its id; every such id in a prompt is replaced by one row of `image_features`.
        num_frames: Of a group, which the encoder takes as one tile.
        tokens_per_second: How far a second is on the axis of time (Qwen2.5-VL); None: a group is one position.
        start_token: Before the tokens of each group, behind the words that say when it was (Qwen3-VL); empty: the
            groups follow one another without a word.
        end_token: Behind the tokens of each group, where there is one before them.
        is_said_as_images: What stands for a video becomes image tokens, which its rows replace (Molmo 2).
    """

    token: str = Field(min_length=1, max_length=MOST_NAME_CHARACTERS)
    token_id: TokenId
    num_frames: int = Field(gt=0, le=16)
    tokens_per_second: float | None = Field(default=None, gt=0, le=1e4)
    start_token: str = Field(default="", max_length=MOST_NAME_CHARACTERS)
    end_token: str = Field(default="", max_length=MOST_NAME_CHARACTERS)
    is_said_as_images: bool = False
