"""Makes the checkpoints of this folder: tiny MobileCLIPs with random weights, and what the authors' code makes of them.

The code is github.com/apple/ml-mobileclip at 4144bb1, in a folder that is named; it wants torchvision and open_clip for
what nothing here uses, whose places stand-ins of empty classes take, and timm 1.0.31. So this runs in an environment of
its own, as tests/data/open_clip/make.py does:

    /tmp/open_clip/bin/python tests/data/mobileclip/make.py ML_MOBILECLIP

Weights are kept in float16.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

_KINDS = ("NEAREST", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [sys.argv[1], str(HERE.parents[1])]


class _StandIn(ModuleType):
    """A module that has a class of any name."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__.setdefault(name, type(name, (), {kind: kind for kind in _KINDS}))


def _stand_in() -> None:
    parts = "datasets models models.feature_extraction ops ops.misc transforms transforms.functional"
    for name in ("open_clip", "torchvision", *(f"torchvision.{part}" for part in parts.split())):
        sys.modules[name] = module = _StandIn(name)
        module.__path__, module.__spec__ = [], ModuleSpec(name, None)
        around, _, own = name.rpartition(".")
        if around:
            setattr(sys.modules[around], own, module)


import checkpoints  # noqa: E402
import encoder_files as files  # noqa: E402
import torch  # noqa: E402
import weight_shapes  # noqa: E402, F401 - which the next two import
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

_stand_in()  # behind transformers, which would look for them
import mobileclip.models.mci as mci  # noqa: E402
from mobileclip.modules.image.image_projection import GlobalPool2D  # noqa: E402
from mobileclip.text_encoder import TextTransformer  # noqa: E402

SIDE = 64
TEXT = {"context_length": 48, "vocab_size": 514, "norm_layer": "layer_norm_fp32"}
MODELS: dict[str, dict[str, Any]] = {
    "s0": {
        "embed_dim": 12,
        "image_cfg": {"image_size": SIDE, "model_name": "mci0"},
        "text_cfg": TEXT
        | {"dim": 20, "ffn_multiplier_per_layer": 2.3, "n_heads_per_layer": 4, "n_transformer_layers": 2}
        | {"causal_masking": False, "model_name": "mct"},
    },
    "s2_that_looks_back": {
        "embed_dim": 20,
        "image_cfg": {"image_size": SIDE, "model_name": "mci2"},
        "text_cfg": TEXT
        | {"dim": 24, "ffn_multiplier_per_layer": [1.0, 3.0], "n_heads_per_layer": [2, 3], "n_transformer_layers": 2}
        | {"causal_masking": True, "model_name": "base"},
    },
}
SIZES = {"mci0": ((1, 2, 1, 1), (8, 16, 16, 32), (2, 3, 1.5, 2)), "mci2": ((1, 1, 1, 2), (8, 8, 16, 64), (1, 2, 2, 1))}
"""Blocks, channels and inner widths of the towers of that name here, in the place of their own."""


class _Model(torch.nn.Module):
    """Both towers under the names that the authors' CLIP has them by."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        layers, widths, ratios = SIZES[config["image_cfg"]["model_name"]]
        tower = mci.FastViT(
            layers,
            token_mixers=("repmixer", "repmixer", "repmixer", "attention"),
            embed_dims=widths,
            pos_embs=[None, None, None, partial(mci.RepCPE, spatial_shape=(7, 7))],
            mlp_ratios=ratios,
            downsamples=[True] * 4,
            se_downsamples=[False, False, True, True],
        )
        tower.head = GlobalPool2D(tower.head.in_features, config["embed_dim"])
        self.image_encoder = torch.nn.ModuleDict({"model": tower})
        self.text_encoder = TextTransformer(config["text_cfg"], config["embed_dim"])
        self.logit_scale = torch.nn.Parameter(torch.ones([]))


def _pixels(image: Any) -> np.ndarray:
    """Return what torchvision's Resize, CenterCrop and ToTensor make of a Pillow image."""
    image, short = image.convert("RGB"), min(image.size)
    image = image.resize(tuple(SIDE if edge == short else int(SIDE * edge / short) for edge in image.size), 2)
    left, top = (round((edge - SIDE) / 2) for edge in image.size)
    image = image.crop((left, top, left + SIDE, top + SIDE))
    return np.asarray(image, np.float32).transpose(2, 0, 1) / np.float32(255)


def main() -> None:
    """Write both folders."""
    for name, config in MODELS.items():
        folder, longest = HERE / name, config["text_cfg"]["context_length"]
        folder.mkdir(exist_ok=True)
        files.write_json(folder / "config.json", {"model_type": "mobileclip", **config})
        checkpoints.save_clip_tokenizer(folder, longest)
        model = _Model(json.loads(json.dumps(config))).eval()
        files.draw(model, torch.float16)
        with torch.no_grad():
            model.logit_scale.fill_(5.0)  # above what it is cut to
        state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = torch.zeros(len(files.TEXTS), longest, dtype=torch.long)
        for row, text in zip(ids, files.TEXTS, strict=True):
            found = tokenizer(text)["input_ids"]
            row[: len(found)] = torch.tensor(found)
        pixels = torch.from_numpy(np.stack([_pixels(image) for image in files.pictures()]))
        with torch.no_grad():
            images = torch.nn.functional.normalize(model.image_encoder["model"](pixels), dim=-1)
            texts = torch.nn.functional.normalize(model.text_encoder(ids), dim=-1)
            scale = model.logit_scale.exp().clamp(0, 100)
        arrays = {"images": images, "texts": texts, "logits": scale * images @ texts.T}
        arrays |= {"input_ids": ids, "pixel_values": pixels}
        np.savez_compressed(folder / "expected.npz", **{key: value.numpy() for key, value in arrays.items()})


if __name__ == "__main__":
    main()
