"""transformers on the same checkpoint: eager, and compiled over a static cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loadtests.gpu.found import Found, tell
from loadtests.gpu.making import make_checkpoint
from loadtests.gpu.ours import watch_of
from loadtests.gpu.sizes import Sizes
from loadtests.wording import counted
from runtime.settings import Provider
from runtime.turns import milliseconds_of

_ROOM_TOKENS = 128
"""Rows of a static cache behind the prompt."""


def measure_eager(folder: Path, sizes: Sizes, provider: Provider) -> None:
    """Tell vision, prefill and decode as transformers runs them by default, in bfloat16."""
    peer = _Peer(make_checkpoint(folder, sizes), sizes, provider)
    watch = watch_of(sizes)
    for tiles in sizes.vision_tiles:
        tell(folder, Found(_tiles(tiles, peer.side_px), "eager", watch.collect(peer.vision(tiles)).p50))
    tell(folder, Found(_prefill(sizes), "eager", watch.collect(peer.prefill()).p50))
    for size in sizes.batch_sizes:
        _tell_steps(folder, "eager", size, sizes, peer.steps(size))


def measure_compiled(folder: Path, sizes: Sizes, provider: Provider) -> None:
    """Tell decode steps over a static cache with torch.compile(mode="reduce-overhead"), in bfloat16."""
    peer = _Peer(make_checkpoint(folder, sizes), sizes, provider)
    peer.compile()
    for size in sizes.batch_sizes:
        _tell_steps(folder, "compiled", size, sizes, peer.static_steps(size))


def _tell_steps(folder: Path, name: str, size: int, sizes: Sizes, steps: Iterator[float]) -> None:
    tell(folder, Found(_step(size, sizes), name, watch_of(sizes).collect(lambda: next(steps)).p50))


def _tiles(tiles: int, side_px: int) -> str:
    return f"vision, {counted(tiles, 'tile')} of {side_px} x {side_px} px"


def _prefill(sizes: Sizes) -> str:
    return f"prefill, {sizes.prompt_tokens} tokens"


def _step(size: int, sizes: Sizes) -> str:
    return f"decode step, batch {size}, {sizes.prompt_tokens} tokens cached"


class _Peer:
    """The checkpoint in transformers, on a device.

    Args:
        checkpoint: A folder.
        sizes: What is run.
        provider: Where.
    """

    def __init__(self, checkpoint: Path, sizes: Sizes, provider: Provider) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        self._torch: Any = torch
        self._device = "cuda" if provider == "cuda" else "cpu"
        self._sizes = sizes
        torch.set_grad_enabled(False)
        model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.bfloat16).to(self._device).eval()
        self._model: Any = model
        self._text: Any = model.model.text_model
        self._compiled: Any = self._text
        self._head: Any = model.lm_head
        self.side_px = model.config.vision_config.image_size

    def compile(self) -> None:
        """Compile the language model, where there is a device that replays what is captured."""
        mode, backend = ("reduce-overhead", "inductor") if self._device == "cuda" else (None, "eager")
        self._compiled = self._torch.compile(self._text.forward, mode=mode, backend=backend)

    def vision(self, tiles: int) -> Callable[[], float]:
        """Return a run of the tower and connector, pixels on the host before."""
        pixels = self._torch.rand(1, tiles, 3, self.side_px, self.side_px)

        def run() -> None:
            on_device = pixels.to(self._device, self._torch.bfloat16)
            found = self._model.model.get_image_features(pixel_values=on_device)
            while not isinstance(found, self._torch.Tensor):
                found = found.pooler_output if hasattr(found, "pooler_output") else found[0]
            found.float().cpu()

        return lambda: milliseconds_of(run)

    def prefill(self) -> Callable[[], float]:
        """Return a run of a prompt that ends with its greedy token on the host."""
        return lambda: milliseconds_of(lambda: self._prompted(1, None)[0].tolist())

    def steps(self, size: int) -> Iterator[float]:
        """Yield the milliseconds of greedy decode steps over a growing cache, each token brought to the host."""
        while True:
            ids, cache = self._prompted(size, None)
            for _ in range(self._sizes.answer_tokens - 1):
                told: list[Any] = []
                yield milliseconds_of(lambda ids=ids, cache=cache, told=told: told.append(self._step(ids, cache)))  # type: ignore[misc]
                ids = told[0]

    def static_steps(self, size: int) -> Iterator[float]:
        """Yield the milliseconds of the same steps over a cache of fixed length."""
        from transformers import StaticCache

        torch, num_tokens = self._torch, self._sizes.prompt_tokens
        room = num_tokens + _ROOM_TOKENS
        cache = StaticCache(config=self._model.config.text_config, max_cache_len=room)
        ids, _ = self._prompted(size, cache)  # launched singly: what is captured finds the cache where it stays
        place = torch.full((size, 1), num_tokens, device=self._device)
        mask = torch.zeros(size, 1, 1, room, device=self._device, dtype=torch.bfloat16)
        mask[..., num_tokens + 1 :] = float("-inf")

        def step() -> None:
            if self._device == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            found = self._compiled(
                input_ids=ids, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True
            )
            ids.copy_(self._head(found.last_hidden_state[:, -1:]).argmax(-1))
            ids.tolist()

        while True:
            yield milliseconds_of(step)

    def _prompted(self, size: int, cache: Any) -> tuple[Any, Any]:
        ids = self._torch.randint(0, 256, (size, self._sizes.prompt_tokens), device=self._device)
        found = self._text(input_ids=ids, past_key_values=cache, use_cache=True)
        return self._head(found.last_hidden_state[:, -1:]).argmax(-1), found.past_key_values

    def _step(self, ids: Any, cache: Any) -> Any:
        found = self._text(input_ids=ids, past_key_values=cache, use_cache=True)
        chosen = self._head(found.last_hidden_state[:, -1:]).argmax(-1)
        chosen.tolist()
        return chosen
