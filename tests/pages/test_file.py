from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pages.file import write_whole

LIMITED = """
import resource, sys
from pathlib import Path
from pages.file import write_whole

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_whole(Path(sys.argv[1]), b"x" * 100_000)
except OSError as error:
    print(error.filename)
"""


def test_a_file_and_its_folders_are_made_as_others_are(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b" / "page.html", b"whole")
    (tmp_path / "beside").write_bytes(b"")
    written = tmp_path / "a" / "b" / "page.html"
    assert written.read_bytes() == b"whole"
    assert written.stat().st_mode == (tmp_path / "beside").stat().st_mode
    assert list(written.parent.iterdir()) == [written]


def test_where_there_is_no_room_the_old_file_stands_and_the_error_names_it(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for before in (None, b"old"):
        if before:
            page.write_bytes(before)
        done = subprocess.run([sys.executable, "-c", LIMITED, str(page)], capture_output=True, text=True, check=True)
        assert done.stdout == f"{page}\n"
        assert [path.read_bytes() for path in tmp_path.iterdir()] == ([before] if before else [])


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_whole(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"x"
    write_whole(Path("/dev/null"), b"x")
    assert Path("/dev/null").is_char_device()


def test_a_file_where_a_folder_is_wanted_is_an_error_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file") as told:
        write_whole(tmp_path / "file" / "page.html", b"x")
    assert told.value.filename == str(tmp_path / "file" / "page.html")
