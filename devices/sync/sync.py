"""A bundle brought to a place: only what is not there, verified there, and served by one rename."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bundle.directory import MANIFEST, Bundle, sha256_of
from bundle.errors import MachineError, SettingsError
from bundle.manifest import FileRecord
from devices.sync.place import Place
from devices.sync.versions import incoming, locked, read_state, remove, switch

_SPARE_BYTES = 64 << 20
"""Left free: a full disk keeps a server from its log, and a shell from its temporary files."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sent:
    """What a sync did.

    Attributes:
        version: That is served now.
        sent_bytes: That crossed.
        kept_bytes: Of files that were there already, in the version before or from an attempt that was cut.
        removed: Old versions that are gone.
    """

    version: str
    sent_bytes: int
    kept_bytes: int
    removed: tuple[str, ...]


def sync_bundle(bundle: Bundle, place: Place, *, num_kept: int, say: Say) -> Sent:
    """Bring a bundle to a place and let it be served there.

    Args:
        bundle: Opened with its digests verified.
        place: The folder is made where there is none.
        num_kept: Versions that stay, what is served and the one before in any case.
        say: Told of each step.

    Raises:
        SettingsError: Fewer than one version would stay.
        MachineError: The place cannot be reached, lacks room, or what arrived there is not what was sent.
    """
    if num_kept < 1:
        raise SettingsError(f"--keep {num_kept} would keep nothing; the least is 1")
    place.make()
    with locked(place):
        return _Sync(bundle, place, say).run(num_kept)


class _Sync:
    """One bundle on its way to one place, whose lock is held."""

    def __init__(self, bundle: Bundle, place: Place, say: Say) -> None:
        manifest = bundle.directory / MANIFEST
        self._folder, self._place, self._say = bundle.directory, place, say
        self._digest = sha256_of(manifest)
        # The manifest last: a folder that has it is a bundle.
        own = FileRecord(size_bytes=manifest.stat().st_size, sha256=self._digest)
        self._files: Mapping[str, FileRecord] = {**bundle.manifest.files, MANIFEST: own}
        self._state = read_state(place)
        self._arriving = incoming(self._digest)

    def run(self, num_kept: int) -> Sent:
        """Send what is missing, verify all of it, and switch."""
        name, sent = self._state.try_version(self._digest), 0
        if name is None:
            sent = self._send()
            name = self._state.next_name(self._digest)
            self._place.run(f"mv {shlex.quote(self._arriving)} versions/{name}")
        else:
            self._say(f"{name} is there already; it is verified")
            self._require_whole(f"versions/{name}", list(self._files))
        state = switch(self._place, self._state, name)
        removed = state.surplus(num_kept)
        remove(self._place, removed)
        return Sent(name, sent, sum(record.size_bytes for record in self._files.values()) - sent, removed)

    def _send(self) -> int:
        """Bring the bundle to where it arrives; return the bytes that crossed."""
        unchanged = self._unchanged()
        there = self._link(unchanged)
        arrived = {name: min(there.get(name, 0), record.size_bytes) for name, record in self._files.items()}
        missing = {name: size for name, size in arrived.items() if size < self._files[name].size_bytes}
        missing.update({name: 0 for name in unchanged if name in missing})  # cut short in the version before
        num_bytes = sum(self._files[name].size_bytes - size for name, size in missing.items())
        self._require_room(num_bytes)
        self._say(f"{len(missing)} of {len(self._files)} files to send, {num_bytes / 1e6:,.1f} MB")
        for name, size in missing.items():
            self._send_file(name, size)
        broken = self._broken(self._arriving, list(self._files))
        for name in broken:  # from an attempt that was cut in the middle of something else: once more, from the start
            self._say(f"{name} did not arrive as it was sent; it is sent again")
            self._send_file(name, 0)
            num_bytes += self._files[name].size_bytes
        self._require_whole(self._arriving, list(broken))
        return num_bytes

    def _link(self, unchanged: list[str]) -> dict[str, int]:
        """Link what the served version has of this one, and return the size of all that has arrived, by name."""
        links = [
            f"test -e {self._at(name)} || ln versions/{self._state.current}/{shlex.quote(name)} {self._at(name)}"
            for name in unchanged
        ]
        sizes = f'cd {shlex.quote(self._arriving)}; for each in *; do test -f "$each" && wc -c "$each" || :; done'
        told = self._place.run("; ".join([f"mkdir -p {shlex.quote(self._arriving)}", *links, sizes]))
        pairs = (line.strip().partition(" ") for line in told.splitlines())
        return {name: int(size) for size, _, name in pairs}

    def _unchanged(self) -> list[str]:
        """Return the files that the served version has as this one has them, by what its manifest says."""
        if self._state.current is None:
            return []
        raw = self._place.run(f"cat versions/{shlex.quote(self._state.current)}/{MANIFEST} 2>/dev/null || echo '{{}}'")
        try:
            served = json.loads(raw)["files"]
            return [name for name, record in self._files.items() if served.get(name, {}).get("sha256") == record.sha256]
        except (ValueError, KeyError, AttributeError):
            return []  # nothing that we know: all of it is sent

    def _send_file(self, name: str, has_bytes: int) -> None:
        """Send a file, or the rest of it."""
        self._say(f"{name}: {(self._files[name].size_bytes - has_bytes) / 1e6:,.1f} MB")
        rsync = shutil.which("rsync")
        if not has_bytes:  # what stands there may be a link to a version's file, which is never written
            self._place.run(f"rm -f {self._at(name)}")
        if self._place.login is not None and self._state.has_rsync and rsync:
            _rsync(rsync, self._folder / name, self._place, f"{self._arriving}/{name}")
            return
        with (self._folder / name).open("rb", buffering=0) as file:
            file.seek(has_bytes)
            self._place.run(f"cat {'>>' if has_bytes else '>'} {self._at(name)}", file)

    def _at(self, name: str) -> str:
        return shlex.quote(f"{self._arriving}/{name}")

    def _require_room(self, num_bytes: int) -> None:
        if num_bytes + _SPARE_BYTES > self._state.free_bytes:
            old = self._state.surplus(1)
            advice = f"; older versions there: {', '.join(old)} (--keep 1 removes them after a sync)" if old else ""
            raise MachineError(
                f"{self._place}: {num_bytes / 1e6:,.1f} MB are to be sent and {_SPARE_BYTES / 1e6:,.0f} MB stay free; "
                f"there are {self._state.free_bytes / 1e6:,.1f} MB. Free some there{advice}"
            )

    def _require_whole(self, folder: str, names: list[str]) -> None:
        if broken := self._broken(folder, names):
            raise MachineError(
                f"{self._place}: {folder}/{broken[0]} is not what was sent, by its digest: the disk there, or its "
                f"memory, loses bits. Nothing was switched. Remove {folder} there and try again"
            )

    def _broken(self, folder: str, names: list[str]) -> list[str]:
        """Return the files whose digest there is not the manifest's."""
        if not names:
            return []
        told = self._place.run(f"cd {shlex.quote(folder)}; sha256sum -- {shlex.join(names)} || :")
        found = {name.lstrip("*"): digest for digest, _, name in (line.partition(" ") for line in told.splitlines())}
        found = {name.strip(): digest for name, digest in found.items()}
        return [name for name in names if found.get(name) != self._files[name].sha256]


def _rsync(rsync: str, file: Path, place: Place, target: str) -> None:
    """Send a file by rsync, which goes on where an attempt was cut.

    Raises:
        MachineError: It failed; the message is its own.
    """
    where = f"{place.login}:{place.folder.rstrip('/')}/{target}"
    command = [rsync, "--inplace", "--partial", "--secluded-args", "-e", shlex.join(place.ssh), "--", str(file), where]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise MachineError(
            f"{place}: rsync failed: {said}. What has arrived stays there: the same command goes on from it"
        )
