"""Where log lines go."""

from __future__ import annotations

import logging

from serving.access.settings import is_loopback
from serving.log_format import JsonFormatter, TextFormatter
from serving.settings import ServerSettings

logger = logging.getLogger(__name__)


def configure_logging(settings: ServerSettings) -> None:
    """Send log lines of at least the chosen level to standard error, in the chosen form."""
    logging.basicConfig(level=settings.log_level.upper(), force=True)
    formatter = JsonFormatter() if settings.log_format == "json" else TextFormatter()
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)


def warn_of_strangers(settings: ServerSettings) -> None:
    """Log a warning where other machines reach a server that asks nobody for a key."""
    if not is_loopback(settings.host) and not settings.api.access.needs_key:
        logger.warning(
            "host %s is reached from other machines, and nobody is asked for a key: set --keys-file (pocketvlm keys), "
            "or put a proxy in front that asks",
            settings.host,
        )
