"""CLIP-UP: transformers' CLIP, in whose layers stand experts that are written from the paper, arXiv 2502.00965."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import encoder_files as files
import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

TEXT = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2}
VISION = {"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 3}
WORDS = {"vocab_size": 514, "eos_token_id": 513, "pad_token_id": 513, "bos_token_id": 512}
FOUR = {"layers": [0, 2], "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
THREE = {"layers": [1], "num_experts": 3, "num_experts_per_tok": 1, "norm_topk_prob": False}
REFUSED = [
    ({"vision_config": {"moe": None}, "text_config": {"moe": None}}, "no tower has moe"),
    ({"vision_config": {"moe": FOUR | {"layers": [3]}}}, r"moe.layers is \[3\]; wanted are some of 0 to 2"),
    ({"vision_config": {"moe": FOUR | {"num_experts_per_tok": 5}}}, "5 experts are chosen for each token, of 4"),
    ({"vision_config": {"moe": FOUR | {"norm_topk_prob": None}}}, "norm_topk_prob is None"),
    ({"vision_config": {"moe": FOUR | {"capacity_factor": 2.0}}}, "capacity_factor missing or not built"),
    ({"text_config": {"moe": {"layers": [1]}}}, "norm_topk_prob, num_experts, num_experts_per_tok missing"),
]


def geometries() -> list[files.Config]:
    """Return experts in both towers, and in that of images alone, with shares that are not normalised."""
    clip = {"model_type": "clip_up", "architectures": ["CLIPModel"]}
    text = TEXT | WORDS | {"max_position_embeddings": 48}
    first = {"projection_dim": 20, "vision_config": VISION | {"image_size": 36, "patch_size": 12, "moe": FOUR}}
    second = {"projection_dim": 44, "vision_config": VISION | {"image_size": 50, "patch_size": 8, "moe": THREE}}
    return [
        clip | first | {"text_config": text | {"moe": FOUR | {"layers": [1]}}},
        clip | second | {"text_config": text},
    ]


class Mixture(nn.Module):
    """A router and feed-forwards of which the most probable ones count, by their probabilities."""

    def __init__(self, dense: Any, size: int, moe: files.Config) -> None:
        from copy import deepcopy

        super().__init__()
        self.router = nn.Linear(size, moe["num_experts"], bias=False)
        self.experts = nn.ModuleList([deepcopy(dense) for _ in range(moe["num_experts"])])
        self.per_token, self.is_normalised = moe["num_experts_per_tok"], moe["norm_topk_prob"]
        self.met: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        shares, chosen = softmax(self.router(x), -1).topk(self.per_token)
        if self.is_normalised:
            shares = shares / shares.sum(-1, keepdim=True)
        self.met |= set(chosen.flatten().tolist())
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            out = out + expert(x) * (shares * (chosen == number)).sum(-1, keepdim=True)
        return out


def upcycled(config: files.Config) -> Any:
    """Return CLIP with mixtures where the config says them."""
    from transformers import CLIPConfig, CLIPModel

    dense = json.loads(json.dumps(config)) | {"model_type": "clip"}
    found = {name: dense[name].pop("moe", None) for name in ("vision_config", "text_config")}
    clip = CLIPModel(CLIPConfig.from_dict(dense))
    for name, tower in (("vision_config", clip.vision_model), ("text_config", clip.text_model)):
        for number in (found[name] or {"layers": ()})["layers"]:
            layer = tower.encoder.layers[number]
            layer.mlp = Mixture(layer.mlp, config[name]["hidden_size"], found[name])
    return clip


def save_model(folder: Path, config: files.Config) -> None:
    """Write CLIP's weights and the experts', each drawn by its own name."""
    from safetensors.torch import save_file

    clip = upcycled(config)
    files.draw(clip)
    folder.mkdir()
    save_file(clip.state_dict(), folder / "model.safetensors", {"format": "pt"})
    files.write_json(folder / "config.json", config)


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a crop and CLIP's tokenizer."""
    files.save_images(folder, "CLIPImageProcessor", **files.cropped(config["vision_config"]["image_size"]))
    checkpoints.save_clip_tokenizer(folder, config["text_config"]["max_position_embeddings"])


def model(folder: Path) -> Any:
    """Return CLIP with the experts of the checkpoint."""
    from safetensors.torch import load_file

    clip = upcycled(json.loads((folder / "config.json").read_text()))
    left = clip.load_state_dict(load_file(folder / "model.safetensors"))
    assert not left.missing_keys
    return clip.eval()


def expected(clip: Any, inputs: Any) -> Any:
    """Return vectors of images and texts, and their logits; every expert was met, or the test would show less."""
    found = files.towers(clip, inputs)
    mixtures = [each for each in clip.modules() if isinstance(each, Mixture)]
    assert mixtures
    assert all(len(each.met) == len(each.experts) for each in mixtures)
    return found


def processor(folder: Path) -> files.Apart:
    """Return the image processor and the tokenizer, which no class of transformers' joins for this name."""
    return files.Apart(folder)
