"""Bundles in, a page out: what `pocketvlm report` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

from bundle.errors import BundleError, BundleFormatError
from bundle.scratch import reason_of
from quant.comparison.decode_speed import measure_speeds
from quant.comparison.page import write_comparison
from quant.comparison.rivals import read_rivals
from quant.comparison.variants import Siblings, read_siblings


def compare_bundles(
    directories: Sequence[Path],
    output: Path,
    *,
    with_speed: bool,
    progress: Callable[[str], None],
    rivals: Sequence[Path] = (),
) -> tuple[list[Siblings], list[Path]]:
    """Write the page that compares bundles and its charts; return what was compared and what was written.

    Args:
        directories: Quantized variants, of one checkpoint or several, and perhaps their fp32 parents.
        output: The page.
        with_speed: Time the variants of each checkpoint in turns, with as many threads as other systems had.
        progress: Called with a line at each step.
        rivals: Files of other systems' figures, each put beside the variants of the parent that it was held against.

    Raises:
        BundleError: A bundle, its report or a file of figures cannot be used, or `output` cannot be written.
        MachineError: A graph cannot run here.
    """
    groups = _beside(read_siblings(directories), rivals)
    _require_writable(output)
    if with_speed:
        groups = [_timed(siblings, progress) for siblings in groups]
    return groups, write_comparison(output, groups)


def _require_writable(output: Path) -> None:
    """Make the folder of a page, so that one that cannot be written is told before minutes of work.

    Raises:
        BundleError: The page cannot be written.
    """
    if output.is_dir():
        raise BundleError(f"{output} is a folder; -o names the page, such as {output / 'report.html'}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise BundleError(f"{output} cannot be written: {reason_of(error)}. Choose another -o.") from error


def _beside(groups: Sequence[Siblings], files: Sequence[Path]) -> list[Siblings]:
    """Return groups with the rivals of their parents.

    Raises:
        BundleFormatError: A file cannot be read, was held against a parent of which no variant was given, or was timed
            with other threads than the next.
    """
    found = [(file, read_rivals(file)) for file in files]
    parents = {siblings.parent_sha256 for siblings in groups}
    for file, each in found:
        if each.parent_sha256 not in parents:
            raise BundleFormatError(
                f"{file} was measured beside {each.parent}, of which no variant is given; it was made from "
                f"{each.parent_sha256[:12]}, those given from {', '.join(sorted(key[:12] for key in parents))}"
            )
    threads = {each.speed.threads for _, each in found if each.speed}
    if len(threads) > 1:
        raise BundleFormatError(
            f"{', '.join(map(str, files))} were timed with {sorted(threads)} threads; time all with the same --threads"
        )
    return [
        replace(siblings, rivals=tuple(each for _, each in found if each.parent_sha256 == siblings.parent_sha256))
        for siblings in groups
    ]


def _timed(siblings: Siblings, progress: Callable[[str], None]) -> Siblings:
    members = [*([siblings.parent] if siblings.parent else []), *siblings.variants]
    threads = siblings.rival_threads
    found = measure_speeds(members, progress, threads)
    return replace(
        siblings,
        speeds=found.rates,
        speed_ratios=found.ratios if siblings.parent else {},
        speed_threads=threads,
        per_joule=found.per_joule,
    )
