"""Bundles in, a page out: what `pocketvlm report` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bundle.errors import BundleError
from quant.comparison.decode_speed import measure_speeds
from quant.comparison.page import write_comparison
from quant.comparison.variants import Family, read_families


def compare_bundles(
    directories: Sequence[Path], output: Path, *, with_speed: bool, progress: Callable[[str], None]
) -> tuple[list[Family], list[Path]]:
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
    families = read_families(directories)
    if not output.parent.is_dir():
        raise BundleError(f"{output} cannot be written: {output.parent} is no folder. Choose another -o.")
    if with_speed:
        families = [_timed(family, progress) for family in families]
    return families, write_comparison(output, families)


def _timed(family: Family, progress: Callable[[str], None]) -> Family:
    members = [*([family.parent] if family.parent else []), *family.variants]
    speeds, ratios = measure_speeds(members, progress)
    return replace(family, speeds=speeds, speed_ratios=ratios if family.parent else {})
