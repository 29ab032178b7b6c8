"""VideoLlama3ImageProcessor: as Qwen2-VL's, with a patch for each token, colours of one mean, and no frames."""

from __future__ import annotations

from export.image_processors.image_processor import ImageProcessor
from export.image_processors.qwen2_vl import QWEN2_VL, area

VIDEO_LLAMA_3 = ImageProcessor(
    {
        **QWEN2_VL.defaults,
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
        "temporal_patch_size": 1,
        "merge_size": 1,
    },
    area,
)
