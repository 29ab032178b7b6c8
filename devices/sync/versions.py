"""The versions of a bundle in a place, and which of them is served.

PLACE/current -> versions/0002-3f9c...      what a server is told to serve; changed by one rename
PLACE/previous -> versions/0001-ab01...     what a rollback returns to
PLACE/versions/NNNN-DIGEST/                 a bundle, whole: DIGEST begins its manifest's SHA-256
PLACE/incoming/DIGEST/                      one that is on its way; the next attempt goes on from it
PLACE/lock/owner                            "HOST PID" of whoever writes here
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from bundle.errors import BundleError, MachineError
from devices.sync.place import Place

_DIGEST_CHARACTERS = 16
_STATE = """
command -v sha256sum >/dev/null || { echo 'sha256sum is missing there; install coreutils' >&2; exit 1; }
mkdir -p versions incoming
echo "free $(df -Pk . | awk 'NR==2 {print $4}')"
command -v rsync >/dev/null && echo "rsync yes" || :
for link in current previous; do test -L $link && echo "$link $(basename "$(readlink $link)")" || :; done
for each in versions/*/; do test -d "$each" && echo "version $(basename "$each")" || :; done
"""


@dataclass(frozen=True)
class State:
    """What is in a place.

    Attributes:
        free_bytes: Of its file system, for this user.
        has_rsync: On its machine.
        versions: Names, oldest first.
        current: The one that is served; None before the first.
        previous: The one before; None where there was none.
    """

    free_bytes: int
    has_rsync: bool
    versions: tuple[str, ...]
    current: str | None
    previous: str | None

    def try_version(self, digest: str) -> str | None:
        """Return the version of a manifest's digest; None where it is not there."""
        return next((name for name in self.versions if name.endswith(f"-{digest[:_DIGEST_CHARACTERS]}")), None)

    def next_name(self, digest: str) -> str:
        """Return what a new version is called."""
        number = max((int(name.split("-")[0]) for name in self.versions), default=0) + 1
        return f"{number:04}-{digest[:_DIGEST_CHARACTERS]}"

    def surplus(self, num_kept: int) -> tuple[str, ...]:
        """Return the versions beyond the newest so many; never what is served, nor what a rollback returns to."""
        old = self.versions[: max(len(self.versions) - num_kept, 0)]
        return tuple(name for name in old if name not in (self.current, self.previous))


def incoming(digest: str) -> str:
    """Return where a bundle arrives."""
    return f"incoming/{digest[:_DIGEST_CHARACTERS]}"


def read_state(place: Place) -> State:
    """Return what is in a place that is there.

    Raises:
        MachineError: It cannot be reached, or lacks what is needed.
    """
    told: dict[str, list[str]] = {}
    for line in place.run(_STATE).splitlines():
        name, _, value = line.partition(" ")
        told.setdefault(name, []).append(value)
    versions = sorted(name for name in told.get("version", []) if name.split("-")[0].isdecimal())
    return State(
        free_bytes=int(told["free"][0]) * 1024,
        has_rsync="rsync" in told,
        versions=tuple(versions),
        current=next(iter(told.get("current", [])), None),
        previous=next(iter(told.get("previous", [])), None),
    )


def switch(place: Place, state: State, name: str) -> State:
    """Let `current` name a version, in one rename, once it is on the disk; return what is there then."""
    if name == state.current:
        return state
    links = [_link("current", name)]
    if state.current is not None:
        links.insert(0, _link("previous", state.current))
    place.run("sync; " + "; ".join(links))
    return State(
        state.free_bytes,
        state.has_rsync,
        tuple(sorted({*state.versions, name})),
        name,
        state.current if state.current is not None else state.previous,
    )


def roll_back(place: Place) -> str:
    """Let the version before be served again, and return its name; a second time returns.

    Raises:
        BundleError: There is none.
        MachineError: The place cannot be reached, or somebody else writes there.
    """
    with locked(place):
        state = read_state(place)
        if state.previous is None or state.previous not in state.versions:
            raise BundleError(f"{place} has no version before {state.current or 'the first'}; nothing was changed")
        return switch(place, state, state.previous).current or state.previous


def remove(place: Place, names: tuple[str, ...]) -> None:
    """Remove versions; a server that still has one's files open keeps them until it ends."""
    if names:
        place.run("rm -rf " + " ".join(shlex.quote(f"versions/{name}") for name in names))


@contextmanager
def locked(place: Place) -> Iterator[None]:
    """Be the only one who writes in a place while the block lasts; the lock of a process that ended here is taken over.

    Raises:
        MachineError: Somebody else writes there.
    """
    owner = f"{socket.gethostname()} {os.getpid()}"
    take = (
        f"mkdir lock 2>/dev/null && echo {shlex.quote(owner)} > lock/owner || cat lock/owner 2>/dev/null || echo '? ?'"
    )
    found = place.run(take).strip()
    if found and _has_ended(found):
        place.run(f"rm -rf lock; mkdir lock; echo {shlex.quote(owner)} > lock/owner")
    elif found:
        raise MachineError(
            f"{place}: another sync writes there ({found.replace(' ', ', process ')}). Wait for it; if there is none, "
            "remove the folder 'lock' there"
        )
    try:
        yield
    finally:
        with suppress(MachineError):  # a connection that was lost: the next sync from here takes the lock over
            place.run("rm -rf lock")


def _has_ended(owner: str) -> bool:
    """Return whether a lock's owner was a process of this machine that is no more."""
    host, _, pid = owner.rpartition(" ")
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return False


def _link(link: str, name: str) -> str:
    """Return what makes a link name a version: made aside and renamed, so that it always names one."""
    target = shlex.quote(f"versions/{name}")
    return f"rm -f {link}.new; ln -s {target} {link}.new; mv -Tf {link}.new {link}"
