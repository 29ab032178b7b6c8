"""Qianfan-OCR's own: places of boxes in answers, and projections that a checkpoint keeps in one matrix."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import CheckpointError
from bundle.text import TOKENIZER, Tokenizer
from export.exporter import export_checkpoint


def test_places_of_boxes_are_part_of_answers(sample_of: Any) -> None:
    sample = sample_of("qianfan_ocr", 0)
    tokenizer = Tokenizer.from_file(sample.bundle().path(TOKENIZER))
    ids = tokenizer.encode(f"<box>{sample.family.PLACE}</box>{sample.family.END}")
    assert tokenizer.decode(ids) == f"<box>{sample.family.PLACE}</box>"


def test_packed_projections_of_other_rows_are_refused(sample_of: Any, checkpoints: Any, tmp_path: Path) -> None:
    sample = sample_of("qianfan_ocr", 0)
    folder = Path(shutil.copytree(sample.checkpoint, tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    packed = "vision_model.encoder.layers.1.attn.qkv.weight"
    shapes = sample.family.shapes(config)
    checkpoints.save_model(folder, config, {**shapes, packed: (72, 36)})
    with pytest.raises(CheckpointError, match="has 72 rows; q_proj, k_proj, v_proj in it want 108"):
        export_checkpoint(folder, tmp_path / "bundle", name="tiny")
