"""What an ended process leaves beside a bundle, and what the next one makes of it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.directory import MANIFEST, write_aside
from bundle.errors import BundleError

WRITER = """
import sys, time
from pathlib import Path
from bundle.directory import write_aside

with write_aside(sys.argv[1]) as aside:
    (aside / "weights").write_text("half")
    print("begun", flush=True)
    time.sleep(60)
"""


def begun_writer(target: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(target: Path) -> None:
    with write_aside(target) as aside:
        (aside / MANIFEST).write_text("{}")


def test_what_a_killed_process_left_is_removed_by_the_next_and_a_living_one_s_stays(tmp_path: Path) -> None:
    with begun_writer(tmp_path / "vlm") as killed, begun_writer(tmp_path / "vlm") as alive:
        killed.kill()
        killed.wait()
        assert len(names(tmp_path)) == 2
        write(tmp_path / "vlm")
        hidden, written = names(tmp_path)
        assert (tmp_path / hidden / "new" / "weights").read_text() == "half"
        assert written == "vlm"
        alive.kill()
    with pytest.raises(BundleError, match="exists"):
        write(tmp_path / "vlm")
    assert names(tmp_path) == ["vlm"]


def test_what_stood_there_stands_again_where_a_process_was_killed_between_two_renames(tmp_path: Path) -> None:
    old = tmp_path / ".vlm.abcd0123" / "old"
    old.mkdir(parents=True)
    (old / MANIFEST).write_text("the user's")
    with pytest.raises(BundleError, match="--overwrite"):
        write(tmp_path / "vlm")
    assert (tmp_path / "vlm" / MANIFEST).read_text() == "the user's"
    assert names(tmp_path) == ["vlm"]


@pytest.mark.parametrize("inside", ["", "notes.txt", "new/../notes.txt"])
def test_a_hidden_folder_of_another_kind_is_left_alone(tmp_path: Path, inside: str) -> None:
    other = tmp_path / ".vlm.settings"
    (other / "new").mkdir(parents=True)
    if inside:
        (other / inside).write_text("x")
    else:
        (other / "new").rmdir()
    write(tmp_path / "vlm")
    assert names(tmp_path) == [".vlm.settings", "vlm"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), os.strerror(errno.EDQUOT)),
        (OSError("180224 requested and 57344 written"), "the disk is full, or a limit on the size of files was met"),
    ],
)
def test_lack_of_room_is_told_with_the_place(tmp_path: Path, error: OSError, reason: str) -> None:
    with pytest.raises(BundleError) as told, write_aside(tmp_path / "vlm"):
        raise error
    assert f"{tmp_path / 'vlm'} cannot be written: {reason}" in str(told.value)
    assert names(tmp_path) == []


def test_an_error_of_a_file_that_was_read_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), write_aside(tmp_path / "vlm"):
        (tmp_path / "absent").read_bytes()
