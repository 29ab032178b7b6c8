"""MaPLe: transformers' CLIP, into whose layers prompts are put by hooks, as the published code does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import checkpoints
import encoder_files as files
import torch
from torch import Tensor, nn

TEXT = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 3}
VISION = {"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 4}
WORDS = {"vocab_size": 514, "eos_token_id": 513, "pad_token_id": 513, "bos_token_id": 512}
PADDING = "max_length"
REFUSED = [({"text_config": {"num_hidden_layers": 2}}, "prompts of 2 layers behind the first; CLIP's towers have 2")]


def geometries() -> list[files.Config]:
    """Return prompts of two tokens in three layers, and of three tokens before the first layer alone."""
    text = TEXT | WORDS | {"max_position_embeddings": 48}
    clip = {"model_type": "clip", "architectures": ["CLIPModel"], "text_config": text}
    first = {"projection_dim": 20, "vision_config": VISION | {"image_size": 36, "patch_size": 12}, "prompts": [2, 2]}
    second = {"projection_dim": 44, "vision_config": VISION | {"image_size": 50, "patch_size": 8}, "prompts": [3, 0]}
    return [clip | each for each in (first, second)]


class Learner(nn.Module):
    """muzairkhattak/multimodal-prompt-learning, trainers/maple.py: what it keeps."""

    def __init__(self, config: files.Config) -> None:
        super().__init__()
        num, deep = config["prompts"]
        size, image_size = config["text_config"]["hidden_size"], config["vision_config"]["hidden_size"]
        self.ctx = nn.Parameter(torch.zeros(num, size))
        self.proj = nn.Linear(size, image_size)
        self.compound_prompts_text = nn.ParameterList([nn.Parameter(torch.zeros(num, size)) for _ in range(deep)])
        self.compound_prompt_projections = nn.ModuleList([nn.Linear(size, image_size) for _ in range(deep)])
        files.draw(self)


def texts(config: files.Config) -> list[str]:
    """Return those of which something is left behind the prompts: words, or letters of one, and the end."""
    return [text for text in files.TEXTS if text != "a"]


def save_model(folder: Path, config: files.Config) -> None:
    """Write CLIP, and the prompt learner beside it."""
    from safetensors.torch import save_file

    clip = {key: value for key, value in config.items() if key != "prompts"}
    files.save_model(folder, clip)
    learner = Learner(config).state_dict()
    buffers = {f"token_{part}": torch.zeros(2, 3, 4) for part in ("prefix", "suffix")}
    save_file({**learner, **buffers}, folder / "prompt_learner.safetensors")
    files.write_json(folder / "reference.json", config)


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a crop and CLIP's tokenizer."""
    files.save_images(folder, "CLIPImageProcessor", **files.cropped(config["vision_config"]["image_size"]))
    checkpoints.save_clip_tokenizer(folder, config["text_config"]["max_position_embeddings"])


def model(folder: Path) -> Any:
    """Return CLIP with the prompts in it."""
    import json

    from transformers import CLIPModel

    clip = CLIPModel.from_pretrained(folder).eval()
    learner = Learner(json.loads((folder / "reference.json").read_text()))
    num = len(learner.ctx)

    def with_words(_: Any, __: Any, words: Tensor) -> Tensor:
        return torch.cat([words[:, :1], learner.ctx.expand(len(words), -1, -1), words[:, 1 + num :]], 1)

    def with_patches(_: Any, __: Any, x: Tensor) -> Tensor:
        return torch.cat([x, learner.proj(learner.ctx).expand(len(x), -1, -1)], 1)

    clip.text_model.embeddings.token_embedding.register_forward_hook(with_words)
    clip.vision_model.embeddings.register_forward_hook(with_patches)
    deep = zip(learner.compound_prompts_text, learner.compound_prompt_projections, strict=True)
    for number, (prompts, projection) in enumerate(deep, 1):
        of_images = projection(prompts)
        clip.vision_model.encoder.layers[number].register_forward_pre_hook(
            lambda _, args, own=of_images: (
                torch.cat([args[0][:, :-num], own.expand(len(args[0]), -1, -1)], 1),
                *args[1:],
            )
        )
        clip.text_model.encoder.layers[number].register_forward_pre_hook(
            lambda _, args, own=prompts: (
                torch.cat([args[0][:, :1], own.expand(len(args[0]), -1, -1), args[0][:, 1 + num :]], 1),
                *args[1:],
            )
        )
    return clip
