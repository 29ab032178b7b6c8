"""Scenes as tensors, and which seeds a data worker may use."""

from __future__ import annotations

import numpy as np
import torch

from reference import layout

_WORKER_SEEDS = 1 << 28  # training seeds set aside for each data worker


def first_seed(start: int) -> int:
    """Return where the calling data worker's seeds begin."""
    worker = torch.utils.data.get_worker_info()
    return start + (worker.id * _WORKER_SEEDS if worker else 0)


def drawn(scenes: list[layout.Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels [I, 128, 128, 3] and dense labels [I, 4, 16, 16] of scenes, both uint8."""
    pixels = np.stack([np.asarray(layout.render(s)) for s in scenes])
    return torch.from_numpy(pixels), torch.from_numpy(np.stack([layout.dense_labels(s) for s in scenes]))
