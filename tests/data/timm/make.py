"""Makes the files of this folder: what timm makes of a tiny MobileNetV5, and the names of a whole one's weights.

timm wants torchvision, which nothing here uses: the stand-in of tests/data/open_clip/make.py takes its place, and this
runs in an environment of its own, as that says:

    /tmp/open_clip/bin/python tests/data/timm/make.py
"""

from __future__ import annotations

import gzip
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]
BLOCKS = [
    ["er_r1_k3_s2_e4_c16", "er_r1_k5_s1_e3_c16"],
    ["uir_r1_a3_k5_s2_e6_c24", "uir_r1_a5_k0_s1_e4_c24"],
    ["uir_r1_a5_k5_s2_e3_c40", "uir_r1_a0_k0_s1_e1_c40", "mqa_r1_k3_h3_v2_s1_d16_c40", "uir_r1_a0_k0_s1_e2_c40"],
    ["uir_r1_a5_k3_s2_e2_c48", "mqa_r1_k3_h2_s1_d24_c48", "uir_r1_a0_k0_s1_e2_c48"],
]
SIDE_PX, RESOLUTION, STEM, CHANNELS = 96, 3, 16, 64


class _StandIn(ModuleType):
    """A module of torchvision's that has a class of any name."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        kinds = {kind: kind for kind in ("NEAREST", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")}
        return self.__dict__.setdefault(name, type(name, (), kinds))


def _stand_in_for_torchvision() -> None:
    parts = "datasets models models.feature_extraction ops ops.misc transforms transforms.functional"
    for name in ("torchvision", *(f"torchvision.{part}" for part in parts.split())):
        sys.modules[name] = module = _StandIn(name)
        module.__path__, module.__spec__ = [], ModuleSpec(name, None)
        around, _, own = name.rpartition(".")
        if around:
            setattr(sys.modules[around], own, module)


def main() -> None:
    """Write `mobilenetv5/expected.npz` and `mobilenetv5/weights.txt.gz`."""
    _stand_in_for_torchvision()
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.mobilenetv5 import mobilenetv5_300m_enc
    from weight_shapes import drawn_weight

    blocks = decode_arch_def(BLOCKS, group_size=None)
    tiny = mobilenetv5_300m_enc(block_args=blocks, stem_size=STEM, msfa_output_resolution=RESOLUTION).eval()
    drawn = {key: torch.from_numpy(drawn_weight(key, tuple(each.shape))) for key, each in tiny.state_dict().items()}
    tiny.load_state_dict(drawn)
    pixels = np.random.default_rng(7).random((2, 3, SIDE_PX, SIDE_PX), np.float32)
    with torch.no_grad():
        features = tiny(torch.from_numpy(pixels)).numpy()
    np.savez_compressed(HERE / "mobilenetv5/expected.npz", features=features[:, :CHANNELS])
    whole = mobilenetv5_300m_enc().state_dict()
    lines = "\n".join(f"{key} {' '.join(map(str, each.shape))}" for key, each in sorted(whole.items()))
    (HERE / "mobilenetv5/weights.txt.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))


if __name__ == "__main__":
    main()
