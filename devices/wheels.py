"""A folder of wheels for a device without a network: resolved here, for another processor and another Python.

    python -m devices.wheels FOLDER --python 3.12 --extra cpu,serve

pip is asked for wheels alone, with the pins of constraints.txt, for every tag that the device's C library takes. Where
one is missing, it is named.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from bundle.errors import MachineError, PocketVLMError, SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
_GLIBC = (17, 24, 26, 27, 28, 31, 34, 35, 39)
"""Minor versions of the GNU C library (2.x) that wheels for aarch64 are tagged with."""
_PYTHONS = ("3.10", "3.11", "3.12", "3.13")
Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def requirements(extras: Sequence[str], python: str, project: Path = ROOT / "pyproject.toml") -> list[str]:
    """Return what the package needs with some extras under a Python on Linux and aarch64.

    Raises:
        SettingsError: There is no such extra.
    """
    told = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    optional = told["optional-dependencies"]
    if unknown := sorted(set(extras) - set(optional)):
        raise SettingsError(f"--extra {', '.join(unknown)}: there is none of that name, only {', '.join(optional)}")
    there = {"python_version": python, "sys_platform": "linux", "platform_machine": "aarch64", "extra": ""}
    wanted = map(Requirement, [*told["dependencies"], *(each for extra in extras for each in optional[extra])])
    return [str(_without_marker(each)) for each in wanted if each.marker is None or each.marker.evaluate(there)]


def _without_marker(requirement: Requirement) -> Requirement:
    requirement.marker = None
    return requirement


def download_command(folder: Path, python: str, glibc: int, wanted: Sequence[str], *extra: str) -> list[str]:
    """Return the call of pip that fetches wheels for aarch64, all of it or nothing."""
    tags = [f"manylinux_2_{minor}_aarch64" for minor in _GLIBC if minor <= glibc] + ["manylinux2014_aarch64"]
    platforms = [word for tag in tags for word in ("--platform", tag)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    return [
        *pip, "--dest", str(folder), *platforms, "--python-version", python, "--implementation", "cp",
        "--only-binary=:all:", "--constraint", str(ROOT / "constraints.txt"), *extra, *wanted,
    ]  # fmt: skip


def fetch_wheels(folder: Path, python: str, glibc: int, extras: Sequence[str], run: Run) -> list[str]:
    """Fill a folder with wheels and our own, and return their names.

    Raises:
        SettingsError: There is no such extra.
        MachineError: Some package has no wheel for there; the message names each.
    """
    wanted = requirements(extras, python)
    folder.mkdir(parents=True, exist_ok=True)
    done = run(download_command(folder, python, glibc, wanted))
    if done.returncode:
        lacking = [
            each for each in wanted if run(download_command(folder, python, glibc, [each], "--no-deps")).returncode
        ]
        said = next(reversed(done.stderr.strip().splitlines()), "pip says nothing")
        raise MachineError(
            f"no wheel for aarch64, Python {python} and glibc 2.{glibc}: {', '.join(lacking) or said} (pinned as in "
            "constraints.txt). Take another --python (3.12 has all that serving needs), or build these on the device"
        )
    own = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    if (built := run(own)).returncode:
        raise MachineError(f"our own wheel cannot be built: {built.stderr.strip()[-200:]}")
    return sorted(path.name for path in folder.glob("*.whl"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the module's own command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m devices.wheels", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="gets the wheels")
    parser.add_argument("--python", choices=_PYTHONS, default="3.12", help="of the device")
    parser.add_argument("--glibc", type=int, default=35, help="of the device, 2.x: 35 is Ubuntu 22.04, 39 is 24.04")
    parser.add_argument("--extra", default="cpu,serve", help="what is installed there, comma-separated")
    options = parser.parse_args(arguments)
    extras = [each for each in options.extra.split(",") if each]
    try:
        names = fetch_wheels(options.folder, options.python, options.glibc, extras, _run)
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum((options.folder / name).stat().st_size for name in names)
    own = next(name for name in names if name.startswith("pocketvlm"))
    print(f"{len(names)} wheels, {size / 1e6:.0f} MB, in {options.folder}. There, in an environment of Python")
    print(f"{options.python}: pip install --no-index --find-links WHEELS 'WHEELS/{own}[{','.join(extras)}]'")
    if "gpu" in extras:
        print(
            "onnxruntime-gpu of PyPI is made for CUDA 13 (JetPack 7). JetPack 6 takes NVIDIA's own wheel by its file,"
        )
        print("with the extras of the line above but gpu: docs/edge.md")
    return 0


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
