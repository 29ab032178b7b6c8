"""HunYuanVLImageProcessor: as Qwen2-VL's, with other bounds, and bicubic whatever a file says."""

from __future__ import annotations

from dataclasses import replace

from export.image_processors.qwen2_vl import QWEN2_VL

HUNYUAN_VL = replace(
    QWEN2_VL,
    defaults={
        **QWEN2_VL.defaults,
        "size": {"shortest_edge": 512 * 512, "longest_edge": 2048 * 2048},
        "patch_size": 16,
        "temporal_patch_size": 1,
    },
)
