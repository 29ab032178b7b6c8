"""What measures Ray beside Locust: threads stay threads there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import sys
import loadtests.scaling.routing, loadtests.scaling.composition, loadtests.scaling.__main__, loadtests.overhead
print("gevent" in sys.modules)
"""


def test_what_starts_ray_leaves_threads_as_they_are() -> None:
    """Locust makes greenlets of them, and Ray's thread that waits for the cluster's errors waits for ever in one."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n"
