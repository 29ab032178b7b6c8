"""The load test's users in steps: `locust -f loadtests/scaling/locustfile.py --steps 1x20,8x60,1x20`."""

from __future__ import annotations

from typing import Any

from locust import LoadTestShape, events

from loadtests.locustfile import ChatUser, ClassifyUser, EmbedUser
from loadtests.scaling.steps import parse_steps, users_at

__all__ = ["ChatUser", "ClassifyUser", "EmbedUser", "Steps"]  # Locust finds them by looking through this module


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: Any) -> None:
    """Add this file's option to those of the load test."""
    parser.add_argument("--steps", default="1x10,4x30,1x10", help="Users x seconds. Default: 1x10,4x30,1x10")


class Steps(LoadTestShape):  # type: ignore[misc]
    """As many users as the step says that the run is in."""

    def tick(self) -> tuple[int, float] | None:
        """Return users and how many of them start per second; None ends the run."""
        users = users_at(parse_steps(self.runner.environment.parsed_options.steps), self.get_run_time())
        return None if users is None else (users, float(users))
