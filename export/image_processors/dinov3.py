"""DINOv3ViTImageProcessor: every image stretched to a square.

It resizes colours as real numbers, and here they are rounded to whole ones of 255 between the two steps, as every other
processor's are: a pixel differs by half a 255th at most, before it is divided by the colours' deviation.
"""

from __future__ import annotations

from export.image_processors.clip import single_tile
from export.image_processors.image_processor import IMAGENET_MEAN, IMAGENET_STD, ImageProcessor
from export.image_processors.vit import VIT

DINOV3 = ImageProcessor({**VIT.defaults, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}, single_tile)
