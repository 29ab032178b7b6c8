"""How a line of the log is written: for people, or one JSON object a line for what collects them."""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any

REQUEST: ContextVar[str] = ContextVar("REQUEST", default="")
"""The id of the request that the code now running serves; empty outside of any. Tasks inherit it."""
FACTS = "facts"
"""The field of a log record that holds what a line tells by name, beside its words."""


class TextFormatter(logging.Formatter):
    """Time, level, logger, the words, and the request's id behind them where they do not begin with it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s%(of_request)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and a traceback below it."""
        request = REQUEST.get()
        record.of_request = f" [{request}]" if request and not hasattr(record, FACTS) else ""
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """One object a line: `time` (UTC), `level`, `logger`, `message`, and `request_id`, facts and `exception` if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := REQUEST.get():
            told["request_id"] = request
        told |= getattr(record, FACTS, {})
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)
