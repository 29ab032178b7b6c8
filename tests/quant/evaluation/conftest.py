"""Files of samples beside two images, and samples made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from quant.evaluation.rows import Place
from quant.evaluation.sample import Sample


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write lines as a file of samples beside two images."""
    Image.new("RGB", (3, 2), "red").save(tmp_path / "red.png")
    (tmp_path / "more").mkdir()
    Image.new("RGB", (5, 4), "blue").save(tmp_path / "more" / "blue.jpg")

    def lines(*rows: object, name: str = "samples.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return lines


@pytest.fixture(scope="session")
def sample() -> Callable[..., Sample]:
    """Make a sample of right answers, with anything else by name."""

    def make(*answers: str, **more: Any) -> Sample:
        given = {"place": Place(Path("samples.jsonl"), 1), "format": "vqa", "task": "any", "metric": "exact", **more}
        return Sample(answers=answers, **given)

    return make
