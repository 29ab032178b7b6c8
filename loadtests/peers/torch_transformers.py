"""transformers on torch at the measures of a comparison: `python -m loadtests.peers.torch_transformers CHECKPOINT`.

It runs in an environment of its own, and imports nothing of ours but this folder.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtests.peers.measures import LONGEST_TOKENS, STEPS, Measure
from loadtests.peers.worker import Prepare, Work, serve

_TILE_PX, _ENCODER_PX = 512, 224
_QUESTION = "What is in the image"
_VOCABULARY = 49_000
"""Token ids below are drawn; the last ones are special."""
_PACKAGES = ("torch", "transformers")


class Generative:
    """A SmolVLM checkpoint.

    Args:
        checkpoint: Its folder.
        dtype: Of weights and arithmetic: torch's name.
    """

    def __init__(self, checkpoint: Path, dtype: str) -> None:
        import torch
        from transformers import SmolVLMForConditionalGeneration

        self._torch: Any = torch
        self._checkpoint = checkpoint
        self._dtype = getattr(torch, dtype)
        self._model = SmolVLMForConditionalGeneration.from_pretrained(checkpoint, dtype=self._dtype).eval()
        self._decoder = self._model.model.text_model
        seed = torch.Generator().manual_seed(0)
        self._ids = torch.randint(0, _VOCABULARY, (1, LONGEST_TOKENS), generator=seed)
        self._tile = torch.randn(1, 1, 3, _TILE_PX, _TILE_PX, generator=seed).to(self._dtype)
        self._processor: Any = None
        self._seeds = itertools.count(1)

    @property
    def prepared(self) -> Mapping[str, Prepare]:
        """What it does."""
        return {
            "vision": self._vision,
            "prefill": self._prefill,
            "decode": self._decode,
            "first_token": self._first_token,
        }

    def _vision(self, measure: Measure) -> Work:
        tiles = self._tile.repeat(1, measure.size, 1, 1, 1)
        return (lambda: _silent(self._model.model.get_image_features(pixel_values=tiles))), 1

    def _filled(self, num_tokens: int, batch: int = 1) -> tuple[Any, Any]:
        """Return a cache with a prompt in it, and the next token of each sequence: [B, 1]."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self._decoder.config)
        ids = self._ids[:, :num_tokens].repeat(batch, 1)
        hidden = self._decoder(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        return cache, self._model.lm_head(hidden[:, -1:]).argmax(-1)

    def _prefill(self, measure: Measure) -> Work:
        return (lambda: _silent(self._filled(measure.size))), 1

    def _decode(self, measure: Measure) -> Work:
        cache, first = self._filled(measure.cached_tokens, measure.size)

        def step() -> None:
            tokens = first
            for _ in range(STEPS):
                hidden = self._decoder(input_ids=tokens, past_key_values=cache, use_cache=True).last_hidden_state
                tokens = self._model.lm_head(hidden).argmax(-1)

        return step, STEPS

    def _first_token(self, measure: Measure) -> Work:
        from transformers import AutoProcessor

        self._processor = self._processor or AutoProcessor.from_pretrained(self._checkpoint, use_fast=False)
        image = _picture(0 if measure.is_repeated else next(self._seeds))
        parts = [{"type": "image"}, {"type": "text", "text": _QUESTION}]
        prompt = self._processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)

        def answer() -> None:
            inputs = self._processor(text=prompt, images=[image], return_tensors="pt")
            inputs["pixel_values"] = inputs["pixel_values"].to(self._dtype)
            self._model.generate(**inputs, max_new_tokens=1, do_sample=False)

        return answer, 1


def _picture(seed: int) -> Any:
    """Return an RGB image of the tile's size."""
    import numpy as np
    from PIL import Image

    coarse = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    return Image.fromarray(coarse).resize((_TILE_PX, _TILE_PX), Image.Resampling.BICUBIC)


def open_encoder(checkpoint: Path, dtype: str) -> Mapping[str, Prepare]:
    """Return what prepares the images of a SigLIP checkpoint."""
    import torch
    from transformers import SiglipModel

    model = SiglipModel.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()

    def encode(measure: Measure) -> Work:
        shape = measure.size, 3, _ENCODER_PX, _ENCODER_PX
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.dtype)
        return (lambda: _silent(model.get_image_features(pixel_values=images))), 1

    return {"encode": encode}


def _silent(found: object) -> None:
    """Drop what was computed, for a run that returns a number counts items."""


def open_system(checkpoint: Path, dtype: str, threads: int) -> Mapping[str, Prepare]:
    """Return what prepares the measures that a checkpoint does."""
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    is_encoder = '"siglip"' in (checkpoint / "config.json").read_text(encoding="utf-8")
    return open_encoder(checkpoint, dtype) if is_encoder else Generative(checkpoint, dtype).prepared


def main() -> None:
    """Answer the comparison's questions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    serve(lambda: open_system(options.checkpoint, options.dtype, options.threads), _PACKAGES)


if __name__ == "__main__":
    main()
