"""open_clip on torch, from JPEGs to CLIP's vectors: `python -m loadtests.peers.clip_open_clip`.

It runs in an environment of its own, and imports nothing of ours but this folder. Its weights are drawn by itself. Its
transforms are torchvision's, whose wheel is built for torch with CUDA: the same steps are made here of Pillow, NumPy
and torch, which is what torchvision's are made of, and its name is filled with nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from io import BytesIO
from types import ModuleType
from typing import Any

from loadtests.peers.measures import Measure
from loadtests.peers.photographs import Photographs
from loadtests.peers.worker import Prepare, Work, serve

_TORCHVISION = (
    *("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops"),
    "torchvision.ops.misc",
)
_MODEL = "ViT-B-32-quickgelu"
_SIDE_PX = 224
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class _Anything(type):
    """The type of a class that holds whatever is asked of it, of no use."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Nothing(ModuleType):
    """A module of such classes."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


def _without_torchvision() -> None:
    for name in _TORCHVISION:
        module = _Nothing(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
        sys.modules[name] = module
        above, _, last = name.rpartition(".")
        if above:
            setattr(sys.modules[above], last, module)


def open_system(threads: int) -> Mapping[str, Prepare]:
    """Return what prepares images of a CLIP."""
    _without_torchvision()
    import open_clip
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model, photographs = open_clip.create_model(_MODEL).eval(), Photographs()
    mean, std = (torch.tensor(each)[:, None, None] for each in (_MEAN, _STD))

    def embed(measure: Measure) -> Work:
        files = photographs.take(measure.size)

        def work() -> None:
            pixels = torch.stack([(_pixels(file) - mean) / std for file in files])
            model.encode_image(pixels, normalize=True)

        return work, 1

    return {"embed": embed}


def _pixels(file: bytes) -> Any:
    """Return [3, 224, 224] float32 from 0 to 1: the shorter side scaled, the middle cut out."""
    import numpy as np
    import torch
    from PIL import Image

    image = Image.open(BytesIO(file))
    scale = _SIDE_PX / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - _SIDE_PX) // 2, (height - _SIDE_PX) // 2
    cut = scaled.crop((left, top, left + _SIDE_PX, top + _SIDE_PX)).convert("RGB")
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def main() -> None:
    """Answer the comparison's questions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    serve(lambda: open_system(options.threads), ("torch", "open_clip_torch"))


if __name__ == "__main__":
    main()
