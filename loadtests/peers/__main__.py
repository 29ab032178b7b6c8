"""PocketVLM beside other systems on the same work, in turns within one run: `python -m loadtests.peers`.

Each peer's packages are installed into an environment of its own when they are first needed, and each model is made
when it is first run: both are kept under the cache folder. A first run takes half an hour and some gigabytes.

    python -m loadtests.peers --list
    python -m loadtests.peers --prepare
    python -m loadtests.peers --systems pocketvlm-int8 openvino-int8 --measures vision prefill-512 --quick
    python -m loadtests.peers --turns 5 --json peers.json --markdown peers.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from bundle.errors import PocketVLMError, SettingsError
from bundle.machine import cache_folder, num_usable_cores
from loadtests.peers.comparison import Plan, compare, prepare
from loadtests.peers.measures import MEASURES
from loadtests.peers.models import Models
from loadtests.peers.results import markdown, print_comparison
from loadtests.peers.systems import SYSTEMS, Workshop

_TURNS, _QUICK_TURNS = 5, 3
_QUICK_SYSTEMS = (
    "pocketvlm-int8",
    "pocketvlm-int4",
    "torch-bf16",
    "openvino-int8",
    "llama.cpp-Q4_0",
    "pocketvlm-siglip-int8",
    "openvino-siglip",
)

_FILE_WIDTH = 120
"""Columns of what is written to a file or a pipe."""

Entry = TypeVar("Entry")


def chosen(what: str, names: Sequence[str] | None, known: dict[str, Entry]) -> tuple[Entry, ...]:
    """Return the entries of some names, all where none are named.

    Raises:
        SettingsError: There is none of a name.
    """
    for name in names or ():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise SettingsError(f"there is no {what} {name!r}; {hint}")
    return tuple(entry for name, entry in known.items() if not names or name in names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the module's own command line; return the exit code."""
    options = _parser().parse_args(arguments)
    told = Console(stderr=True, highlight=False)
    measures = {measure.name: measure for measure in MEASURES}
    if options.list:
        print(f"systems: {' '.join(SYSTEMS)}\nmeasures: {' '.join(measures)}")
        return 0
    try:
        if options.turns is not None and options.turns < _QUICK_TURNS:
            raise SettingsError(f"--turns {options.turns} is out of range: at least {_QUICK_TURNS}, for quartiles")
        plan = Plan(
            chosen("system", options.systems or (_QUICK_SYSTEMS if options.quick else None), SYSTEMS),
            chosen("measure", options.measures, measures),
            options.turns or (_QUICK_TURNS if options.quick else _TURNS),
            options.threads,
        )
        workshop = Workshop(Models(options.folder / "models", told.print), options.folder)
        if options.prepare:
            return int(bool(prepare(plan, workshop, told.print)))
        found = compare(plan, workshop, options.folder / "logs", told.print)
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_comparison(found, Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH))
    if options.json:
        options.json.write_text(json.dumps(found.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(markdown(found), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.peers",
        description="PocketVLM beside other systems on the same work, in turns within one run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--systems", nargs="+", metavar="NAME", help="those alone; --list names them")
    add("--measures", nargs="+", metavar="NAME", help="those alone; --list names them")
    add("--turns", type=int, help="that count, of each system at each measure (5, quick: 3)")
    add("--quick", action="store_true", help="fewer turns, and of each peer its fastest variant")
    add("--prepare", action="store_true", help="install systems and make models, measure nothing, and end")
    add("--threads", type=int, default=num_usable_cores(), help="of each system")
    add("--folder", type=Path, default=cache_folder() / "peers", help="environments, models and logs are kept here")
    add("--json", type=Path, help="write the figures here")
    add("--markdown", type=Path, help="write the table here")
    add("--list", action="store_true", help="name systems and measures, and end")
    return parser


if __name__ == "__main__":
    sys.exit(main())
