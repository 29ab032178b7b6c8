"""A bundle arrives whole or not at all, what is there is not sent again, and what is served is never half of one."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bundle.directory import MANIFEST, Bundle, open_bundle, read_manifest, seal, sha256_of
from bundle.errors import BundleError, MachineError, SettingsError
from devices.sync import versions
from devices.sync.place import Place, read_place
from devices.sync.sync import Sent, sync_bundle
from devices.sync.versions import read_state, roll_back

CHANGED = "generation.json"


@pytest.fixture(scope="module")
def first(smolvlm_bundle: Path) -> Bundle:
    return open_bundle(smolvlm_bundle, allow_ungated=True)


@pytest.fixture(scope="module")
def variants(first: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Bundle]:
    """The bundle with one small file changed, as often as asked."""
    made: dict[int, Bundle] = {}

    def variant(number: int) -> Bundle:
        if number not in made:
            folder = tmp_path_factory.mktemp("variant") / "bundle"
            shutil.copytree(first.directory, folder)
            (folder / CHANGED).write_text("{}" + " " * number, encoding="utf-8")
            made[number] = seal(folder, read_manifest(folder))
        return made[number]

    return variant


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(str(tmp_path / "models" / "vlm"))


class Ssh:
    """A command in the place of ssh, whose other side is this machine; may be told to fail like a bad line."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.path, self.cut, self.flip, self.log = (folder / name for name in ("ssh", "cut", "flip", "log"))
        self.path.write_text(
            f"""#!/bin/sh
if test "$1" = -l; then shift 2; fi
shift; echo "$*" >> {self.log}
case "$*" in *"cat >"*)
    if test -e {self.cut}; then n=$(cat {self.cut}); rm {self.cut}; head -c $n | sh -c "$*"
        echo 'Connection closed by remote host' >&2; exit 255; fi
    if test -e {self.flip}; then tr a-z A-Z | sh -c "$*"; exit; fi;; esac
exec sh -c "$*"
""",
            encoding="ascii",
        )
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)

    def place(self, folder: Path) -> Place:
        return read_place(f"orin@board:{folder}", str(self.path))


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ssh:
    """ssh to a machine without rsync."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return Ssh(tmp_path / "ssh-command")


def sync(bundle: Bundle, place: Place, num_kept: int = 2) -> Sent:
    return sync_bundle(bundle, place, num_kept=num_kept, say=lambda _: None)


def size_of(bundle: Bundle) -> int:
    return sum(path.stat().st_size for path in bundle.directory.iterdir())


def test_a_bundle_arrives_whole_and_is_served_under_one_name(first: Bundle, place: Place) -> None:
    sent = sync(first, place)
    assert sent.sent_bytes == size_of(first)
    assert sent.kept_bytes == 0
    assert open_bundle(Path(place.folder) / "current", allow_ungated=True).manifest == first.manifest
    assert {path.name for path in Path(place.folder).iterdir()} == {"current", "versions", "incoming"}


def test_only_what_changed_is_sent_and_the_rest_is_linked(first: Bundle, variants, place: Place) -> None:
    sync(first, place)
    before = (Path(place.folder) / "current").resolve()
    second = variants(1)
    sent = sync(second, place)
    changed = sum((second.directory / name).stat().st_size for name in (CHANGED, "manifest.json"))
    assert sent.sent_bytes == changed
    after = open_bundle(Path(place.folder) / "current", allow_ungated=True).directory.resolve()
    assert (after / "decoder.onnx").stat().st_ino == (before / "decoder.onnx").stat().st_ino
    assert open_bundle(before, allow_ungated=True).manifest == first.manifest


def test_the_same_again_sends_nothing(first: Bundle, place: Place) -> None:
    sync(first, place)
    again = sync(first, place)
    assert (again.sent_bytes, again.version[:5]) == (0, "0001-")


def test_a_cut_line_is_told_and_the_next_attempt_sends_the_rest(first: Bundle, ssh: Ssh, tmp_path: Path) -> None:
    place = ssh.place(tmp_path / "board")
    ssh.cut.write_text("200", encoding="ascii")  # within the first file, whichever
    with pytest.raises(MachineError, match=r"orin@board cannot be reached, or was lost: Connection closed.*goes on"):
        sync(first, place)
    assert not (tmp_path / "board" / "current").exists()
    (arrived,) = [path for path in (tmp_path / "board" / "incoming").rglob("*") if path.is_file()]
    assert arrived.stat().st_size == 200
    assert sync(first, place).sent_bytes == size_of(first) - 200
    assert open_bundle(tmp_path / "board" / "current", allow_ungated=True).manifest == first.manifest


def test_a_rest_that_belongs_to_something_else_is_found_out_and_sent_anew(first: Bundle, place: Place) -> None:
    place.make()
    arriving = Path(place.folder) / versions.incoming(sha256_of(first.directory / MANIFEST))
    arriving.mkdir(parents=True)
    (arriving / "tokenizer.json").write_bytes(b"?" * 100)
    (arriving / CHANGED).write_bytes(b"?" * 100_000)
    sync(first, place)
    assert open_bundle(Path(place.folder) / "current", allow_ungated=True).manifest == first.manifest


def test_what_arrives_as_something_else_is_not_served(first: Bundle, variants, ssh: Ssh, tmp_path: Path) -> None:
    place = ssh.place(tmp_path / "board")
    sync(first, place)
    ssh.flip.touch()
    with pytest.raises(MachineError, match=r"is not what was sent, by its digest.*Nothing was switched"):
        sync(variants(1), place)
    assert open_bundle(tmp_path / "board" / "current", allow_ungated=True).manifest == first.manifest


def test_no_file_of_a_version_is_written_through_its_link(first: Bundle, variants, place: Place) -> None:
    sync(first, place)
    damaged = (Path(place.folder) / "current").resolve() / "tokenizer.json"
    damaged.write_bytes(damaged.read_bytes()[:50])
    sync(variants(1), place)
    assert damaged.stat().st_size == 50
    assert open_bundle(Path(place.folder) / "current", allow_ungated=True).manifest == variants(1).manifest


def test_a_rollback_serves_the_version_before_and_a_second_one_returns(first: Bundle, variants, place: Place) -> None:
    sync(first, place)
    with pytest.raises(BundleError, match="no version before 0001-"):
        roll_back(place)
    second = sync(variants(1), place).version
    assert roll_back(place).startswith("0001-")
    assert open_bundle(Path(place.folder) / "current", allow_ungated=True).manifest == first.manifest
    assert roll_back(place) == second


def test_old_versions_go_and_never_what_is_served_or_would_be_returned_to(
    first: Bundle, variants, place: Place
) -> None:
    names = [sync(bundle, place, num_kept=2).version for bundle in (first, variants(1), variants(2))]
    assert read_state(place).versions == tuple(names[1:])
    roll_back(place)
    sync(variants(3), place, num_kept=1)  # beside it stays what was served until now
    state = read_state(place)
    assert (state.current or "")[:4] == "0004"
    assert state.versions == (names[1], state.current)


def test_what_is_served_is_named_at_every_moment(first: Bundle, variants, place: Place) -> None:
    sync(first, place)
    sync(variants(1), place)
    ended, problems = threading.Event(), []

    def look() -> None:
        while not ended.is_set():
            try:
                os.readlink(Path(place.folder) / "current")
            except OSError as error:
                problems.append(error)

    looking = threading.Thread(target=look)
    looking.start()
    for _ in range(6):
        roll_back(place)
    ended.set()
    looking.join()
    assert problems == []


def test_too_little_room_is_told_before_anything_is_sent(first: Bundle, place: Place, monkeypatch) -> None:
    monkeypatch.setattr("devices.sync.sync._SPARE_BYTES", 1 << 60)
    with pytest.raises(MachineError, match=r"MB are to be sent and .* MB stay free; there are .* MB\. Free some"):
        sync(first, place)
    assert not [path for path in (Path(place.folder) / "incoming").rglob("*") if path.is_file()]


def test_two_do_not_write_at_once_and_a_dead_ones_lock_is_taken_over(first: Bundle, place: Place) -> None:
    place.make()
    lock = Path(place.folder) / "lock"
    lock.mkdir()
    (lock / "owner").write_text("elsewhere 17\n", encoding="ascii")
    with pytest.raises(MachineError, match=r"another sync writes there \(elsewhere, process 17\)\. Wait"):
        sync(first, place)
    ended = subprocess.Popen(["true"])
    ended.wait()
    (lock / "owner").write_text(f"{versions.socket.gethostname()} {ended.pid}\n", encoding="ascii")
    sync(first, place)
    assert not lock.exists()


def test_a_machine_that_is_not_reached_and_a_missing_ssh_are_one_line(first: Bundle, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.write_text("#!/bin/sh\necho 'ssh: connect to host board port 22: No route to host' >&2\nexit 255\n")
    gone.chmod(0o755)
    with pytest.raises(MachineError, match=r"No route to host\. Try: \S+ board true"):
        sync(first, read_place("board:models", str(gone)))
    with pytest.raises(MachineError, match=r"cannot be run: No such file.*--ssh"):
        sync(first, read_place("board:models", str(tmp_path / "nothing")))


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
def test_rsync_is_used_where_both_sides_have_it(first: Bundle, tmp_path: Path) -> None:
    ssh = Ssh(tmp_path / "ssh-command")
    sent = sync(first, ssh.place(tmp_path / "a board"))
    assert sent.sent_bytes == size_of(first)
    assert open_bundle(tmp_path / "a board" / "current", allow_ungated=True).manifest == first.manifest
    assert "rsync --server" in ssh.log.read_text(encoding="ascii")


@pytest.mark.parametrize(
    ("text", "login", "folder"),
    [
        ("models", None, "models"),
        ("/srv/a:b", None, "/srv/a:b"),
        ("orin@board:/srv", "orin@board", "/srv"),
        ("board:~/models", "board", "models"),
    ],
)
def test_a_place_is_read_as_scp_reads_it(text: str, login: str | None, folder: str) -> None:
    place = read_place(text)
    assert (place.login, place.folder) == (login, folder)


@pytest.mark.parametrize("text", ["", "board:", "-oProxyCommand=x:/srv", "a\nb"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is no place for bundles"):
        read_place(text)
