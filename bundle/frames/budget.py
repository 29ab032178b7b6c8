"""What a layout is given to plan with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Tokens, before anything is decoded.

    Attributes:
        tokens_per_image: P, that the encoder gives for one picture.
        visual_tokens: That the request gives to the video; None: the layout's own choice.
        window_tokens: The visual context window: what the model's context leaves to one video where nothing is said.
    """

    tokens_per_image: int
    visual_tokens: int | None
    window_tokens: int

    @property
    def most_tokens(self) -> int:
        """That the video may take."""
        return self.window_tokens if self.visual_tokens is None else self.visual_tokens
