"""Bundles in, a page out: what `pocketvlm report` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bundle.errors import BundleError
from quant.comparison.decode_speed import measure_speeds
from quant.comparison.page import write_comparison
from quant.comparison.variants import Siblings, read_siblings


def compare_bundles(
    directories: Sequence[Path], output: Path, *, with_speed: bool, progress: Callable[[str], None]
) -> tuple[list[Siblings], list[Path]]:
    """Write the page that compares bundles and its charts; return what was compared and what was written.

    Args:
        directories: Quantized variants, of one checkpoint or several, and perhaps their fp32 parents.
        output: The page.
        with_speed: Time the variants of each checkpoint in turns.
        progress: Called with a line at each step.

    Raises:
        BundleError: A bundle or its report cannot be used, or `output` cannot be written.
        MachineError: A graph cannot run here.
    """
    groups = read_siblings(directories)
    if not output.parent.is_dir():
        raise BundleError(f"{output} cannot be written: {output.parent} is no folder. Choose another -o.")
    if with_speed:
        groups = [_timed(siblings, progress) for siblings in groups]
    return groups, write_comparison(output, groups)


def _timed(siblings: Siblings, progress: Callable[[str], None]) -> Siblings:
    members = [*([siblings.parent] if siblings.parent else []), *siblings.variants]
    speeds, ratios = measure_speeds(members, progress)
    return replace(siblings, speeds=speeds, speed_ratios=ratios if siblings.parent else {})
