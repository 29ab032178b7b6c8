"""PaddleOCRVLImageProcessor: as Qwen2-VL's, with larger images and no frames."""

from __future__ import annotations

from functools import partial

from export.image_processors.image_processor import ImageProcessor
from export.image_processors.qwen2_vl import QWEN2_VL, area

PADDLEOCR_VL = ImageProcessor(
    {
        **QWEN2_VL.defaults,
        "size": {"shortest_edge": 384 * 384, "longest_edge": 1536 * 1536},
        "temporal_patch_size": 1,
    },
    partial(area, grows=True),
)
