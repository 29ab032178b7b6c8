"""`pocketvlm embed` on a tiny dual encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_images_and_texts_become_unit_vectors(pocketvlm, clip_bundle: Path, image: Path) -> None:
    done = pocketvlm("embed", clip_bundle, "--image", image, "--text", "red", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["embeddings"]
    assert len(rows) == 2
    for row in rows:
        assert sum(value * value for value in row) == pytest.approx(1.0, abs=1e-5)


def test_the_table_names_every_input_and_is_one_on_its_diagonal(pocketvlm, clip_bundle: Path) -> None:
    done = pocketvlm("embed", clip_bundle, "--text", "red", "--text", "blue")
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("│ ")]
    assert [row[2] for row in rows] == ["red", "blue"]
    assert rows[0][4] == rows[1][6] == "1.000"
    assert rows[0][6] == rows[1][4]
