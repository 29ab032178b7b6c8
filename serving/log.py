"""Where log lines go."""

from __future__ import annotations

import logging

from serving.log_format import JsonFormatter, TextFormatter
from serving.settings import ServerSettings


def configure_logging(settings: ServerSettings) -> None:
    """Send log lines of at least the chosen level to standard error, in the chosen form."""
    logging.basicConfig(level=settings.log_level.upper(), force=True)
    formatter = JsonFormatter() if settings.log_format == "json" else TextFormatter()
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)
