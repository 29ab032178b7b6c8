"""Where log lines go."""

from __future__ import annotations

import logging

from serving.settings import ServerSettings


def configure_logging(settings: ServerSettings) -> None:
    """Send log lines of at least the chosen level to standard error."""
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
