"""Tiny SOLO checkpoints; the reference is a Mistral of transformers' and what the authors' code puts before it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import save_model, write_json
from piece_tokenizers import BOS, merged_pieces, save_merged
from PIL import Image
from tokenizers import Tokenizer
from weight_shapes import Config, Shapes, decoder_shapes

VISION = ["<vision>", "<vpatch>", "<vrow_sep>", "<vframe_sep>", "</vision>", "<loc_1>", "<loc_2>"]
MERGES = [("▁", "["), ("▁[", "I"), ("N", "S"), ("NS", "T"), ("i", "s"), ("▁", "is"), ("▁", "W"), ("h", "a")]
PIECES = merged_pieces(MERGES, VISION)  # those of images by no merge, as `create_solo.py` has them
PLACE_ID = PIECES.index("<vpatch>")
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
"""Of ImageNet, as the authors' `image_utils.py` normalises (`get_transform`)."""


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "window-shared-heads": _config(sliding_window=50, num_attention_heads=6, num_key_value_heads=2),
        "tied-no-window-heads-of-16": _config(
            sliding_window=None, head_dim=16, hidden_size=40, tie_word_embeddings=True, vision_patch_size=24
        ),
    }


def _config(**changes: Any) -> Config:
    return {
        "architectures": ["SoloForCausalLM"],
        "model_type": "mistral",
        "vocab_size": len(PIECES) + 2,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "hidden_act": "silu",
        "max_position_embeddings": 1280,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vision_patch_size": 20,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a processor or a template, as published."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    save_merged(folder, PIECES, MERGES, begins=False)


def _shapes(config: Config) -> Shapes:
    shapes = decoder_shapes({**config, "model_type": "llama"}, "model.")
    shapes["model.embed_vision_patch.weight"] = (config["hidden_size"], 3 * config["vision_patch_size"] ** 2)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], config["hidden_size"])
    return shapes


class Processor:
    """What the authors' code makes of images (`image_utils.py`) and messages (`src/data/instruction_tuning.py`)."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.patch_px = json.loads((folder / "config.json").read_text())["vision_patch_size"]

    def size_of(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return (width, height), of `get_resize_output_image_size`; its longest side is 32 patches."""
        side, most = self.patch_px, 32 * self.patch_px
        short, long = sorted((width_px, height_px))
        new_long = min(math.ceil(long / side) * side, most)
        new_short = math.ceil(int(new_long * short / long) / side) * side
        return (new_long, new_short) if height_px <= width_px else (new_short, new_long)

    def patches(self, image: Image.Image) -> Any:
        """Return [rows, cols, 3 * side * side], channels first in each."""
        side, (width, height) = self.patch_px, self.size_of(*image.size)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32) / np.float32(255)
        squares = ((pixels - MEAN) / STD).reshape(height // side, side, width // side, side, 3)
        return squares.transpose(0, 2, 4, 1, 3).reshape(height // side, width // side, -1)

    def __call__(self, images: list[Image.Image], text: str) -> Any:
        """Return ids and patches of the first message of a conversation."""
        import torch

        ids, patches = list[int](), []
        for image in images:
            of_image = self.patches(image)
            tokens = ["<vision>"]
            for row in range(of_image.shape[0]):
                tokens += [*(["<vrow_sep>"] if row else []), *["<vpatch>"] * of_image.shape[1]]
            ids += map(self.tokenizer.token_to_id, [*tokens, "<vision>"])
            patches.append(of_image.reshape(-1, of_image.shape[-1]))
        ids += self.tokenizer.encode(f"{BOS}[INST] {text.strip()} [/INST]", add_special_tokens=False).ids
        made: dict[str, Any] = {"input_ids": torch.tensor([ids])}
        return made | ({"vision_patches": torch.from_numpy(np.concatenate(patches))} if patches else {})


def processor(folder: Path) -> Processor:
    """Return the reference's way from messages to ids and patches."""
    return Processor(folder)


def inputs(processor: Processor, parts: list[Any]) -> Any:
    """Return what it makes of one message, whose images stand before all of its words."""
    images = [part for part in parts if not isinstance(part, str)]
    return processor(images, "".join(part for part in parts if isinstance(part, str)))


def model(folder: Path) -> Any:
    """Return the reference: embeddings, to which those of patches are added, into a Mistral (`modeling_solo.py`)."""
    import torch
    from safetensors.torch import load_file
    from transformers import MistralConfig, MistralForCausalLM

    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    matrix = weights.pop("model.embed_vision_patch.weight")
    decoder = MistralForCausalLM(MistralConfig(**config)).eval()
    missing, unexpected = decoder.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"} or (missing and not config["tie_word_embeddings"]):
        raise ValueError(f"{folder} is no Mistral: {missing}, {unexpected}")

    def answered(input_ids: Any, attention_mask: Any = None, vision_patches: Any = None) -> Any:
        embeds = decoder.model.embed_tokens(input_ids).clone()
        if vision_patches is not None:
            embeds[input_ids == PLACE_ID] += torch.nn.functional.linear(vision_patches, matrix)
        return decoder(inputs_embeds=embeds, attention_mask=attention_mask)

    return answered
