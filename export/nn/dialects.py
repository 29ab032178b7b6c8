"""The dialects, by name."""

from __future__ import annotations

from collections.abc import Mapping

from export.nn.contrib import Contrib
from export.nn.dialect import Dialect
from export.nn.portable import Portable

DIALECTS: Mapping[str, type[Dialect]] = {"contrib": Contrib, "portable": Portable}
