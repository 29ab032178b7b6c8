"""Headless load test: `python -m loadtests.run URL --objective "ttft_p95_ms<500" --output DIR`.

Locust runs in a process of its own, since it replaces the standard library's blocking calls on import. This process
waits for it, sums up what it measured, writes one HTML page and one JSON file, and holds the objectives against it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from rich.console import Console

from bundle.errors import MachineError, PocketVLMError
from bundle.extras import install_line
from bundle.scratch import made_folder
from loadtests.energy import ServerEnergy, joules_between
from loadtests.objectives import Objective, judge, parse_objectives
from loadtests.page import write_page
from loadtests.plan import MAX_USERS, LoadPlan, check_target, require_listener
from loadtests.report import LoadReport, print_report
from loadtests.samples import read_record, read_samples
from loadtests.summary import summarize
from pages.file import write_whole

EXIT_MET = 0
EXIT_FAILED = 1
EXIT_MISSED = 3
"""As the `pocketvlm` command: 0 objectives met, 1 it could not be measured, 3 an objective was missed."""

_STOP_TIMEOUT_S = 30
"""Locust lets requests in flight end for so long, so that slow ones are not left out of the figures."""
_LEAST_FREE_BYTES = 1 << 16
"""Below it Locust ended for lack of space: its log, whose last line is quoted else, was cut as well."""
_GRACE_S = 60.0
"""Beyond the run's own length, for starting Locust, drawing the images and writing the files."""


def run_load_test(
    url: str,
    plan: LoadPlan | None = None,
    *,
    objectives: Sequence[str] = (),
    output: Path | None = None,
    allow_remote: bool = False,
    as_json: bool = False,
) -> int:
    """Load a server, write the report, print it, and return the exit code.

    Args:
        url: Base URL of the server, without path.
        plan: What to send; the defaults where None.
        objectives: Such as `ttft_p95_ms<500`; `failure_rate<=0` is added unless one states it.
        output: Folder for `report.html`, `report.json`, `requests.jsonl`, `locust*.csv`; None writes no files.
        allow_remote: Load a machine other than this one.
        as_json: Print `report.json` instead of tables.

    Returns:
        `EXIT_MET` or `EXIT_MISSED`.

    Raises:
        SettingsError: The URL, an objective or a bound of the plan is not acceptable.
        MachineError: Locust is not installed, the server does not answer, or nothing was measured.
    """
    if output is None:
        with tempfile.TemporaryDirectory(prefix="pocketvlm-loadtest-") as folder:
            report = measure(url, plan or LoadPlan(), parse_objectives(objectives), Path(folder), allow_remote)
    else:
        report = measure(url, plan or LoadPlan(), parse_objectives(objectives), output, allow_remote)
    if as_json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        print_report(report, Console(highlight=False))
        if output is not None:
            print(f"report: {output / 'report.html'}")
    return EXIT_MET if report.is_met else EXIT_MISSED


def measure(
    url: str, plan: LoadPlan, objectives: Sequence[Objective], output: Path, allow_remote: bool = False
) -> LoadReport:
    """Run Locust against a server and write its files and the report into `output`.

    Raises:
        SettingsError: The URL is not one to load.
        MachineError: As `run_load_test`.
    """
    _require_locust()
    check_target(url, allow_remote)
    require_listener(url)
    made_folder(output, "-o")
    with ServerEnergy(url) as energy:
        run_locust(url, plan, output)
    samples, record = tuple(read_samples(output / "requests.jsonl")), read_record(output / "run.json")
    window = plan.window(record.stopped_s)
    began_s = datetime.fromisoformat(record.started_at).timestamp()
    joules = joules_between(energy.points, began_s + window.start_s, began_s + window.end_s)
    summary = summarize(samples, window, joules)
    if not sum(summary.num_requests.values()):
        raise MachineError(
            f"nothing was measured: no request was sent in the {plan.duration_s:g} s after the {plan.warmup_s:g} s "
            f"of warm-up ({len(samples)} in it). Lower warmup_s, or raise max_requests ({plan.max_requests})."
        )
    report = LoadReport(url, plan, record, summary, judge(objectives, summary), samples)
    write_whole(output / "report.json", (json.dumps(report.to_json(), indent=2) + "\n").encode())
    write_page(output / "report.html", report)
    return report


def locust_command(
    url: str, plan: LoadPlan, output: Path, locustfile: Path | None = None, extra: Mapping[str, str] | None = None
) -> list[str]:
    """Return the command line that runs Locust for a plan, with a file and options of one's own where given."""
    options: dict[str, object] = {
        "--host": url,
        "--users": plan.users,
        "--spawn-rate": plan.spawn_rate,
        "--run-time": f"{math.ceil(plan.total_s)}s",
        "--stop-timeout": _STOP_TIMEOUT_S,
        "--exit-code-on-error": 0,
        "--csv": output / "locust",
        "--records": output,
        "--mix": plan.mix,
        "--max-requests": plan.max_requests,
        "--max-tokens": plan.max_tokens,
        "--image-px": plan.image_px,
        "--distinct-images": plan.distinct_images,
        "--seed": plan.seed,
        "--timeout-s": plan.timeout_s,
        **(extra or {}),
    }
    flags = [str(word) for pair in options.items() for word in pair]
    locustfile = locustfile or Path(__file__).with_name("locustfile.py")
    return [sys.executable, "-m", "locust", "-f", str(locustfile), "--headless", "--only-summary", *flags]


def run_locust(
    url: str, plan: LoadPlan, output: Path, locustfile: Path | None = None, extra: Mapping[str, str] | None = None
) -> None:
    """Run Locust to its end, its words going to `locust.log`; its whole process group ends with this call.

    Args:
        url: Of the server.
        plan: What to send, for how long.
        output: Folder for what it writes.
        locustfile: In place of the load test's own.
        extra: Options of that file.

    Raises:
        MachineError: It is not installed, did not end, or failed.
    """
    _require_locust()
    (output / "run.json").unlink(missing_ok=True)
    limit_s = plan.total_s + _STOP_TIMEOUT_S + _GRACE_S
    log = output / "locust.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            locust_command(url, plan, output, locustfile, extra),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            raise MachineError(f"Locust did not end within {limit_s:g} s and was stopped; see {log}") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code != 0 or not (output / "run.json").is_file():
        if shutil.disk_usage(output).free < _LEAST_FREE_BYTES:
            raise MachineError(f"{output} cannot be written: no space is left. Free some there, or choose another -o.")
        raise MachineError(f"Locust ended with exit code {code}: {_last_line(log)}")


def _require_locust() -> None:
    if importlib.util.find_spec("locust") is None:
        raise MachineError(f"this command needs locust. Install it with: {install_line('loadtests')}")


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the module's own command line; return the exit code."""
    options = vars(_parser().parse_args(arguments))
    extra = {name: options.pop(name) for name in ("url", "objectives", "output", "allow_remote", "as_json")}
    try:
        return run_load_test(extra.pop("url"), LoadPlan(**options), **extra)
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.run", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("url", help="base URL of the server, e.g. http://127.0.0.1:8000")
    parser.add_argument("--objective", dest="objectives", action="append", default=[], help="e.g. ttft_p95_ms<500")
    parser.add_argument("--output", type=Path, help="folder for the report and the raw figures")
    parser.add_argument("--allow-remote", action="store_true", help="load a machine other than this one")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print the report as JSON")
    plan = LoadPlan()
    for name, default in asdict(plan).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=_HELP[name])
    return parser


_HELP = {
    "users": f"requests in flight, 1 to {MAX_USERS}",
    "spawn_rate": "users started per second",
    "warmup_s": "seconds sent but not measured",
    "duration_s": "seconds measured",
    "mix": "users of each kind relative to the others",
    "max_requests": "the run ends early at so many",
    "max_tokens": "most tokens of a chat answer",
    "image_px": "width and height of the images, pixels",
    "distinct_images": "images before they repeat",
    "seed": "of images and texts",
    "timeout_s": "longest silence of the server within one request, seconds",
}


if __name__ == "__main__":
    sys.exit(main())
