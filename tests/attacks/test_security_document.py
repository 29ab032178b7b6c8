"""docs/security.md names limits that are there, with their defaults, and leaves out none of a request's."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import pytest
from pydantic import BaseModel
from victim import ROOT

from bundle.decode import ImageLimits
from bundle.frames.limits import VideoLimits
from serving.settings import ApiSettings, HttpSettings, ServerSettings

DOCUMENT = ROOT / "docs" / "security.md"
_ROW = re.compile(r"^\| `(?P<name>[a-z_0-9.]+)` \| (?P<default>[^|]+?) \|", re.MULTILINE)
_FIXED_ROW = re.compile(r"^\| `(?P<module>[a-z_.]+):(?P<path>[A-Za-z_.]+)` \| (?P<value>[^|]+?) \|", re.MULTILINE)
_UNITS = {"": 1, "s": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "B/s": 1, "million": 10**6}
_NOT_LIMITS = {
    "retry_after_s",
    "health_port",
    "allow_cache_clear",
    "aliases",
    "access",
    "remote",
    "recording",
    "tls_certificate",
    "tls_key",
    "min_side_px",
    "max_bytes",
}
"""Of an image or a video, its bytes are a setting, and a side of one pixel is the least there is."""


def value_of(told: str) -> Any:
    """Return the number that a cell tells, its unit included; a cell of words as it is."""
    match = re.fullmatch(r"(?P<number>[\d,.]+) ?(?P<unit>[A-Za-z/]*)", told)
    if match is None or match["unit"] not in _UNITS:
        return told
    return float(match["number"].replace(",", "")) * _UNITS[match["unit"]]


def rows(pattern: re.Pattern[str]) -> list[dict[str, str]]:
    """Return the rows of the document's tables of this form."""
    return [match.groupdict() for match in pattern.finditer(DOCUMENT.read_text(encoding="utf-8"))]


def setting(path: str) -> Any:
    """Return the default of a setting by its dotted path.

    Raises:
        AttributeError: There is none.
    """
    value: Any = ServerSettings()
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("row", rows(_ROW), ids=lambda row: row["name"])
def test_a_limit_of_the_table_is_a_setting_with_that_default(row: dict[str, str]) -> None:
    default = setting(row["name"])
    assert value_of(row["default"]) == ("none" if default is None else default)


@pytest.mark.parametrize("row", rows(_FIXED_ROW), ids=lambda row: row["path"])
def test_a_fixed_limit_of_the_table_is_in_the_code_with_that_value(row: dict[str, str]) -> None:
    value: Any = import_module(row["module"])
    for name in row["path"].split("."):
        value = getattr(value, name)
    assert value_of(row["value"]) == value


def test_every_limit_of_a_request_is_in_the_table() -> None:
    told = {row["name"].rpartition(".")[2] for row in rows(_ROW)}
    assert {*ApiSettings.model_fields, *HttpSettings.model_fields} - _NOT_LIMITS - told == set()


@pytest.mark.parametrize("limits", [ImageLimits, VideoLimits])
def test_every_limit_of_an_image_or_video_is_in_a_table(limits: type[BaseModel]) -> None:
    told = {row["path"].rpartition(".")[2] for row in rows(_FIXED_ROW)}
    assert {*limits.model_fields} - _NOT_LIMITS - told == set()


def test_a_number_is_read_with_its_unit() -> None:
    assert [value_of(told) for told in ("32 MiB", "1,024", "0.5 s", "none")] == [32 << 20, 1024, 0.5, "none"]
