"""MoDE: transformers' CLIPs, whose scores are weighed as arXiv 2404.16030 and its authors' evaluation do.

What is written again here: weights by the words of a task (mode/post_report_ensemble.py of
facebookresearch/MetaCLIP), those of one text for its vector, those of all texts for the logits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import encoder_files as files
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, softmax

TEXT = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2}
VISION = {"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 2}
WORDS = {"vocab_size": 514, "eos_token_id": 513, "pad_token_id": 513, "bos_token_id": 512}
FINE = 7
"""Clusters of captions, of which each expert has some."""
REFUSED = [
    ({"expert_1/config.json": {"projection_dim": 24}}, "expert_1 has text_tower .*embedding_size=24"),
    ({"words/config.json": {"model_type": "bert"}}, "words/config.json: model_type is 'bert'"),
    ({"words/config.json": {"max_position_embeddings": 20}}, "words reads 20 tokens of 514, the experts 48"),
]


def geometries() -> list[files.Config]:
    """Return two experts, and three of other depths."""
    first = {"experts": [2, 2], "projection_dim": 20, "vision": VISION | {"image_size": 36, "patch_size": 12}}
    second = {"experts": [1, 2, 3], "projection_dim": 44, "vision": VISION | {"image_size": 50, "patch_size": 8}}
    return [{"model_type": "clip_mode", **each} for each in (first, second)]


def save_model(folder: Path, config: files.Config) -> None:
    """Write experts and the tower of words in folders of their own, and clusters near some of the texts."""
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

    folder.mkdir()
    text = TEXT | WORDS | {"max_position_embeddings": 48}
    for number, depth in enumerate(config["experts"]):
        clip = {"model_type": "clip", "projection_dim": config["projection_dim"], "vision_config": config["vision"]}
        clip |= {"text_config": text | {"num_hidden_layers": depth}}
        expert = CLIPModel(CLIPConfig.from_dict(json.loads(json.dumps(clip))))
        _draw(expert, f"expert_{number}")
        expert.save_pretrained(folder / f"expert_{number}")
        files.write_json(folder / f"expert_{number}" / "config.json", clip)
    of_words = {**text, "model_type": "clip_text_model", "projection_dim": 28}
    words = CLIPTextModelWithProjection(CLIPTextConfig(**of_words)).eval()
    _draw(words, "words")
    words.save_pretrained(folder / "words")
    files.write_json(folder / "words" / "config.json", of_words)
    checkpoints.save_clip_tokenizer(folder, 48)
    rows = AutoTokenizer.from_pretrained(folder)(files.TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        near = normalize(words(**rows).text_embeds, dim=-1)
    noise = torch.from_numpy(np.random.default_rng(3).standard_normal((FINE, 28), np.float32))
    center = near[torch.arange(FINE) % len(near)] + 0.08 * noise
    assign = torch.arange(FINE) % len(config["experts"])
    save_file({"center": center, "assign": assign}, folder / "model.safetensors", {"format": "pt"})
    files.write_json(folder / "config.json", {"model_type": "clip_mode"})


def _draw(model: Any, name: str) -> None:
    """Give a model weights that are no other's."""
    files.draw(model)
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data = weight.data + 0.7 * weight.data.std() * torch.randn(weight.shape, generator=generator)


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a crop; the tokenizer is there."""
    files.save_images(folder, "CLIPImageProcessor", **files.cropped(config["vision"]["image_size"]))


def changed(change: files.Config) -> files.Config:
    """Return the config, which says the model's type alone."""
    return {"model_type": "clip_mode"}


def model(folder: Path) -> Any:
    """Return the experts, the tower of words and the clusters."""
    from safetensors.torch import load_file
    from transformers import CLIPModel, CLIPTextModelWithProjection

    experts = [CLIPModel.from_pretrained(each).eval() for each in sorted(folder.glob("expert_*"))]
    words = CLIPTextModelWithProjection.from_pretrained(folder / "words").eval()
    return experts, words, load_file(folder / "model.safetensors")


def expected(found: Any, inputs: Any) -> Any:
    """Return vectors of images and texts, and the logits of images over all the texts as one task's classes."""
    experts, words, clusters = found
    given = [expert(**inputs) for expert in experts]
    images = [normalize(each.image_embeds, dim=-1) for each in given]
    texts = [normalize(each.text_embeds, dim=-1) for each in given]
    rows = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    of_words = normalize(words(**rows).text_embeds, dim=-1)
    alone = torch.stack([task_weights(each[None], clusters, len(experts)) for each in of_words])
    assert (alone.amax(-1) - alone.amin(-1)).max() > 0.1
    assert len(alone) == 1 or alone.argmax(-1).unique().numel() > 1
    weighed = torch.cat([alone[:, number, None] * each for number, each in enumerate(texts)], -1)
    rest = (1 - (alone**2).sum(-1, keepdim=True)).sqrt()  # what makes the length 1
    joined = torch.cat([*images, torch.zeros(len(images[0]), 1)], -1)
    weights = task_weights(of_words, clusters, len(experts))
    logits = [weight * image @ text.T for weight, image, text in zip(weights, images, texts, strict=True)]
    scale = torch.stack([expert.logit_scale.exp() for expert in experts]).mean()
    return joined, torch.cat([weighed, rest], -1), scale * sum(logits)


def task_weights(words: Tensor, clusters: Any, num: int) -> Tensor:
    """Return [num] what each expert counts for in a task of these words."""
    distances, nearest = torch.cdist(words, clusters["center"]).min(-1)
    few = np.exp(0.5 - np.sqrt(len(words))) if len(words) < 10 else 0.0
    sharper = 5 * np.log10(max(10, len(words) - 200))
    near = ((few - distances) * sharper).exp()
    coarse = clusters["assign"][nearest]
    return softmax(torch.stack([near[coarse == number].sum() for number in range(num)]) / 8, -1)


def processor(folder: Path) -> files.Apart:
    """Return the image processor and the tokenizer, which no class of transformers' joins for this name."""
    return files.Apart(folder)
