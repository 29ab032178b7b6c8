"""What is said of the machine is what the kernel says."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from bundle.machine import (
    largest_cache_bytes,
    num_granted_cores,
    num_usable_cores,
    own_version,
    this_machine,
    try_version,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("content", "expected"),
    [("max 100000\n", None), ("200000 100000\n", 2), ("150000 100000\n", 2), ("50000 100000\n", 1), ("", None)],
)
def test_a_containers_limit_is_read_in_cores_rounded_up(tmp_path: Path, content: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert num_granted_cores(tmp_path / "cpu.max") == expected


def test_a_machine_without_cgroups_has_no_limit(tmp_path: Path) -> None:
    assert num_granted_cores(tmp_path / "absent") is None


def test_a_package_that_is_not_installed_is_left_out_of_the_versions() -> None:
    versions = this_machine(("numpy", "no-such-package")).versions
    assert set(versions) == {"python", "numpy"}
    assert versions["python"] == sys.version.split()[0]
    assert versions["numpy"] == metadata.version("numpy")
    assert try_version("no-such-package") is None


def test_pocketvlm_knows_its_version_or_says_that_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bundle.machine.try_version", {"pocketvlm": "1.2.3"}.get)
    assert own_version() == "1.2.3"
    monkeypatch.setattr("bundle.machine.try_version", {}.get)
    assert own_version() == "unknown"


def test_the_largest_of_the_caches_counts(tmp_path: Path) -> None:
    for index, size in enumerate(["32K", "32K", "1024K", "32768K"]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "size").write_text(size + "\n")
    assert largest_cache_bytes(tmp_path) == 32 << 20
    assert largest_cache_bytes(tmp_path / "absent") is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes to cores")
def test_cores_that_the_process_may_not_use_are_not_counted() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert num_usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert this_machine(()).cores == len(allowed)


@pytest.mark.skipif(platform.system() != "Linux", reason="reads what Linux says of its memory")
def test_memory_is_the_systems_total_and_the_peak_grows_with_what_is_touched() -> None:
    total_kib = int(Path("/proc/meminfo").read_text().split()[1])
    assert this_machine(()).memory_bytes == pytest.approx(total_kib * 1024, rel=0.01)
    # in a process of its own: this one may have needed gigabytes before
    script = (
        "from bundle.machine import peak_memory_bytes\n"
        "before = peak_memory_bytes()\n"
        "ballast = bytearray(64 << 20)\n"
        "ballast[::4096] = b'x' * len(ballast[::4096])\n"
        "print(before, peak_memory_bytes())\n"
    )
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    before, after = map(int, said.stdout.split())
    assert before + (60 << 20) < after < before + (80 << 20)
