"""A short load test of both ways to serve: `make load-smoke`, or `python -m loadtests.smoke BUNDLE...`.

Starts the edge server, then Ray Serve, loads each for a few seconds, and fails where an objective is missed. The
objectives are loose on purpose: they find what is broken, not what is slow.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bundle.errors import PocketVLMError
from loadtests.plan import LoadPlan
from loadtests.run import EXIT_FAILED, EXIT_MET, run_load_test
from serving.process import running_server

OBJECTIVES = ("failure_rate<=0", "ttft_p95_ms<2000", "itl_p95_ms<500")
_COMMANDS: dict[str, Literal["serve", "deploy"]] = {"edge": "serve", "ray": "deploy"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the module's own command line; return the worst exit code."""
    options = _parser().parse_args(arguments)
    plan = LoadPlan(users=options.users, duration_s=options.duration_s)
    try:
        return max(_load(target, options.bundles, plan, options.output) for target in options.target or _COMMANDS)
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED


def _load(target: str, bundles: Sequence[Path], plan: LoadPlan, output: Path) -> int:
    folder = output / target
    folder.mkdir(parents=True, exist_ok=True)
    print(f"== {target}: pocketvlm {_COMMANDS[target]}", flush=True)
    with running_server(_COMMANDS[target], [*map(str, bundles)], folder / "server.log") as server:
        code = run_load_test(server.url, plan, objectives=OBJECTIVES, output=folder)
    print(f"== {target}: {'every objective met' if code == EXIT_MET else 'an objective was missed'}", flush=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.smoke", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("bundles", nargs="*", type=Path, help="bundle directories; none: the shipped models")
    parser.add_argument("--target", action="append", choices=sorted(_COMMANDS), help="default: both, in turn")
    parser.add_argument("--users", type=int, default=4, help="requests in flight")
    parser.add_argument("--duration-s", type=float, default=10.0, help="seconds measured, per target")
    parser.add_argument("--output", type=Path, default=Path(".demo/load"), help="folder for the reports")
    return parser


if __name__ == "__main__":
    sys.exit(main())
