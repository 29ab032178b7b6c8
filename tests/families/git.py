"""Tiny GIT checkpoints: rows of an image that see one another, and a text whose places are counted without them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from checkpoints import CLIP_MEAN, CLIP_STD, RESCALING, save_byte_tokenizer, save_model, save_processor, write_json
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, processors
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes, tower_shapes

PAD, CLS, SEP = "[PAD]", "[CLS]", "[SEP]"
CONTROL = [PAD, CLS, SEP, "[MASK]"]
PAD_ID, CLS_ID, SEP_ID = range(256, 259)
IDS = {"bos_token_id": CLS_ID, "eos_token_id": SEP_ID, "pad_token_id": PAD_ID}
TAKES_VIDEOS = False


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "untied-narrow-tower": _config(),
        "tied-three-layers": _config(
            {"image_size": 30, "patch_size": 6, "hidden_size": 40, "num_attention_heads": 4},
            hidden_size=56,
            num_attention_heads=7,
            num_hidden_layers=3,
            tie_word_embeddings=True,
        ),
    }


def _config(vision: Config | None = None, **top: Any) -> Config:
    tower = {
        "model_type": "git_vision_model",
        "hidden_size": 36,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_channels": 3,
        "image_size": 32,
        "patch_size": 8,
        **(vision or {}),
    }
    return {
        "architectures": ["GitForCausalLM"],
        "model_type": "git",
        "vision_config": tower,
        "vocab_size": 256 + len(CONTROL) + 1,
        "hidden_size": 48,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 160,
        "tie_word_embeddings": False,
        **IDS,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a chat template, as published."""
    save_model(folder, config, _shapes(config))
    stored = load_file(folder / "model.safetensors")
    for name in stored:
        if name.endswith("LayerNorm.weight"):
            stored[name] += np.float32(1)
        if name.startswith("git.encoder") and "attention.output.dense.weight" in name:
            stored[name] *= np.float32(0.25)  # what attention adds is quiet beside tokens and their places
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "generation_config.json", IDS)
    side = config["vision_config"]["image_size"]
    crop = {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
    images = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": side}, "resample": 3, **crop}
    colours = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, **RESCALING}
    save_processor(folder, "GitProcessor", {**images, "do_resize": True, **colours})
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, cls_token=CLS, sep_token=SEP)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    around = [(CLS, CLS_ID), (SEP, SEP_ID)]
    backend.post_processor = processors.TemplateProcessing(f"{CLS} $A {SEP}", special_tokens=around)
    backend.save(str(folder / "tokenizer.json"))


def conversations(given: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return messages that it takes, by the names of those that others take."""
    (wide, _), (*_, large, _) = given["one image"], given["two images"]
    return {"text": ["it is said that"], "one image": [wide, "what is it?"], "two images": [large, "a dog"]}


def processor(folder: Path) -> Any:
    """Return transformers' processor."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil, GitProcessor

    return GitProcessor(CLIPImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def inputs(processor: Any, parts: list[Any]) -> Any:
    """Return the prompt with the tokens that stand for an image, of which transformers' model has none in its ids."""
    import torch

    shown, text = [part for part in parts if not isinstance(part, str)], parts[-1]
    said = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not shown:
        return {"input_ids": torch.tensor([[CLS_ID, *said]])}
    made = processor(images=shown, return_tensors="pt")
    num_rows = (made["pixel_values"].shape[-1] // (8 if made["pixel_values"].shape[-1] == 32 else 6)) ** 2 + 1
    ids = torch.tensor([[*[PAD_ID] * num_rows, CLS_ID, *said]])
    return {"input_ids": ids, "pixel_values": made["pixel_values"]}


def model(folder: Path) -> Any:
    """Return transformers' model, called with ids of which those of an image are left out.

    Raises:
        ValueError: A weight is missing or left over.
    """
    from transformers import GitForCausalLM

    whole, found = GitForCausalLM.from_pretrained(folder, output_loading_info=True)
    if any(found.values()):
        raise ValueError(f"{folder} is not what GIT wants: {found}")
    whole.eval()

    def answered(input_ids: Any, attention_mask: Any = None, pixel_values: Any = None, **more: Any) -> Any:
        text = input_ids[:, input_ids[0].tolist().index(CLS_ID) :]
        return whole(input_ids=text, pixel_values=pixel_values, **more)

    return answered


def _blip() -> ModuleType:
    spec = importlib.util.spec_from_file_location("family_blip_parts", Path(__file__).parent / "blip.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _shapes(config: Config) -> Shapes:
    vision, width = config["vision_config"], config["hidden_size"]
    at = "git.visual_projection.visual_projection."
    shapes = tower_shapes({**vision, "model_type": "clip_vision_model"}, "git.image_encoder.vision_model.")
    shapes |= linear_shapes(f"{at}0", width, vision["hidden_size"]) | norm_shapes(width, f"{at}1")
    shapes["output.bias"] = (config["vocab_size"],)
    if not config["tie_word_embeddings"]:
        shapes["output.weight"] = (config["vocab_size"], width)
    return shapes | _blip().bert_shapes(config, "git.", None)
