"""What a load test may send, for how long, and to whom."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from bundle.errors import MachineError, SettingsError
from loadtests.discovery import DEFAULT_MIX, parse_mix
from loadtests.summary import Window
from loadtests.wording import out_of_range

_PORTS = {"http": 80, "https": 443}
"""Scheme -> port where a URL names none."""
_CONNECT_TIMEOUT_S = 10.0
MAX_USERS = 1000
MAX_DURATION_S = 24 * 3600.0


@dataclass(frozen=True)
class LoadPlan:
    """What to send, for how long, and how much at most.

    Attributes:
        users: Requests in flight, since each user waits for its answer before it asks again.
        spawn_rate: Users started per second.
        warmup_s: Sent but not measured.
        duration_s: Measured.
        mix: Users of each kind relative to the others.
        max_requests: The run ends early at so many.
        max_tokens: Of a chat answer.
        image_px: Width and height of the images.
        distinct_images: Images before they repeat.
        seed: Of images and texts.
        timeout_s: Longest silence of the server within one request.
    """

    users: int = 4
    spawn_rate: float = 10.0
    warmup_s: float = 2.0
    duration_s: float = 30.0
    mix: str = DEFAULT_MIX
    max_requests: int = 100_000
    max_tokens: int = 32
    image_px: int = 256
    distinct_images: int = 64
    seed: int = 0
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        """Check every bound.

        Raises:
            SettingsError: A value is out of its range.
        """
        kinds = _mix_kinds(self.mix)
        bounds: tuple[tuple[str, float, float], ...] = (
            ("users", len(kinds), MAX_USERS),
            ("spawn_rate", 0.1, MAX_USERS),
            ("warmup_s", 0, MAX_DURATION_S),
            ("duration_s", 1, MAX_DURATION_S),
            ("max_requests", 1, 10_000_000),
            ("max_tokens", 1, 4096),
            ("image_px", 16, 4096),
            ("distinct_images", 1, 4096),
            ("seed", 0, 2**32 - 1),
            ("timeout_s", 1, 3600),
        )
        for name, low, high in bounds:
            value = getattr(self, name)
            if not low <= value <= high:
                raise SettingsError(out_of_range(name, value, low, high))

    @property
    def total_s(self) -> float:
        """Length of the run, warm-up included."""
        return self.warmup_s + self.duration_s

    def window(self, stopped_s: float) -> Window:
        """Return the measured part of a run that was told to end at `stopped_s`, perhaps early at `max_requests`."""
        return Window(self.warmup_s, max(self.warmup_s, min(self.total_s, stopped_s)))


def _mix_kinds(mix: str) -> dict[str, int]:
    try:
        return parse_mix(mix)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def check_url(url: str) -> tuple[str, int]:
    """Return the host and the port of a URL that a load test takes.

    Raises:
        SettingsError: It is malformed, or more than scheme, host and port.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SettingsError(f"URL {url!r} cannot be read: {error}") from error
    if parts.scheme not in _PORTS or not host or parts.path not in ("", "/") or parts.query:
        raise SettingsError(f"URL {url!r} is not http://HOST[:PORT], e.g. http://127.0.0.1:8000")
    return host, port if port is not None else _PORTS[parts.scheme]


def check_target(url: str, allow_remote: bool) -> None:
    """Refuse a URL that is malformed, or that is another machine's unless `allow_remote`.

    Raises:
        SettingsError: The URL is refused.
        MachineError: The host's name does not resolve.
    """
    host, port = check_url(url)
    if allow_remote:
        return
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise MachineError(f"the host of {url!r} does not resolve: {error}") from error
    remote = [a for a in addresses if not ipaddress.ip_address(str(a).split("%")[0]).is_loopback]
    if remote:
        raise SettingsError(
            f"{url!r} is another machine ({remote[0]}); a load test disturbs it. Pass --allow-remote if it is yours."
        )


def require_listener(url: str) -> None:
    """Refuse a URL where nothing listens, before anything is started.

    Raises:
        MachineError: Nothing listens there.
    """
    try:
        socket.create_connection(check_url(url), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise MachineError(
            f"nothing listens at {url}: {error.strerror or error}. "
            "Start a server with pocketvlm serve, or name the URL of one."
        ) from error
