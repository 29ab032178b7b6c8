"""What systemd is told of the server: that it serves, that it lives, that it stops (sd_notify(3)).

A unit of `Type=notify` is started when the server says so, and one with `WatchdogSec=` is restarted when it has said
nothing for so long. Elsewhere there is no socket, and nothing is said.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

logger = logging.getLogger(__name__)

_SOCKET = "NOTIFY_SOCKET"
_WATCHDOG, _WATCHDOG_PID = "WATCHDOG_USEC", "WATCHDOG_PID"


class ServiceManager:
    """The other end of systemd's socket, where there is one.

    Args:
        environment: Of the process, as systemd set it.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        named = environment.get(_SOCKET, "")
        self._address = f"\0{named[1:]}" if named.startswith("@") else named  # the abstract namespace
        is_ours = environment.get(_WATCHDOG_PID, str(os.getpid())) == str(os.getpid())
        self._is_watched = _WATCHDOG in environment and is_ours

    def ready(self) -> None:
        """Say that requests are served."""
        self._say("READY=1")

    def alive(self) -> None:
        """Say that the process is not in need of a restart; called again and again."""
        if self._is_watched:
            self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that it ends, however long running requests take."""
        self._say("STOPPING=1")

    def _say(self, words: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as told:
                told.sendto(words.encode(), self._address)
        except OSError as error:
            logger.warning("systemd was not told %s: %s", words, error.strerror)
