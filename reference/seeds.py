"""Seeds: training and held-out data come from two ranges that never meet."""

from __future__ import annotations

import zlib

TRAINING_SEEDS = range(1 << 40)
CALIBRATION_SEEDS = range(1 << 39, 1 << 40)  # of the training seeds; no training has come this far
HELD_OUT_SEEDS = range(1 << 40, 1 << 41)
_SETS_PER_TASK = 1 << 8
_MAX_INDEX = 1 << 20


def held_out_seed(task: str, seed: int, index: int) -> int:
    """Return the seed of example `index` of held-out set `seed` of a task.

    Args:
        task: Any name; its checksum picks one of 4096 blocks.
        seed: 0 to 255.
        index: 0 to 2**20 - 1.

    Raises:
        ValueError: Seed or index lies outside its range.
    """
    if not (0 <= seed < _SETS_PER_TASK and 0 <= index < _MAX_INDEX):
        raise ValueError(f"seed {seed} must be below {_SETS_PER_TASK} and index {index} below {_MAX_INDEX}")
    return HELD_OUT_SEEDS.start + (_block(task) * _SETS_PER_TASK + seed) * _MAX_INDEX + index


def calibration_seed(task: str, index: int) -> int:
    """Return the seed of example `index` of a task among what quantizers are calibrated on: training data.

    Raises:
        ValueError: The index is not below 2**20.
    """
    if not 0 <= index < _MAX_INDEX:
        raise ValueError(f"index {index} must be below {_MAX_INDEX}")
    return CALIBRATION_SEEDS.start + _block(task) * _MAX_INDEX + index


def _block(task: str) -> int:
    return zlib.crc32(task.encode()) % (1 << 12)
