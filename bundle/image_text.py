"""What one image becomes in a prompt's text, before that is tokenized."""

from __future__ import annotations

from bundle.image import TileLayout
from bundle.manifest import ImagePrompt


def image_text(image: ImagePrompt, layout: TileLayout) -> str:
    """Return the tokens of an image that was cut so, with what stands around them and between its tiles."""
    per_tile = image.tokens_per_tile
    tokens = image.image_token * (per_tile if layout.rows else layout.num_tokens(per_tile))
    if image.kind == "llava":
        return tokens
    whole = f"{image.fake_token}{image.global_token}{tokens}{image.fake_token}"
    if layout.rows == 0:
        return whole
    lines = [
        "".join(f"{image.fake_token}<row_{row}_col_{col}>{tokens}" for col in range(1, layout.cols + 1)) + "\n"
        for row in range(1, layout.rows + 1)
    ]
    return "".join(lines) + "\n" + whole
