"""CLIP, and Long-CLIP's stretching of its text positions: `clip`."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import encoder_files as files
import numpy as np
from safetensors.numpy import load_file, save_file

TEXT = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 3, "num_hidden_layers": 2}
VISION = {"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 3}
POSITIONS, KEPT, FINER = 77, 20, 4
"""Of CLIP; of them, those that most texts take stay; the others are interpolated (arXiv 2403.15378, section 3.1)."""
STRETCHED = KEPT + FINER * (POSITIONS - KEPT)
TABLE = "text_model.embeddings.position_embedding.weight"
REFUSED = [
    ({"text_config": {"hidden_act": "mish"}}, "'mish'"),
    ({"text_config": {"num_attention_heads": 5}}, "hidden_size 36 is not a multiple of num_attention_heads 5"),
]


def geometries() -> list[files.Config]:
    """Return a plain one, and one whose texts may have 248 tokens."""
    words = {"vocab_size": 514, "eos_token_id": 513, "pad_token_id": 513, "bos_token_id": 512}
    first = {"projection_dim": 20, "vision_config": VISION | {"image_size": 36, "patch_size": 12}}
    second = {"projection_dim": 44, "vision_config": VISION | {"image_size": 50, "patch_size": 8, "hidden_act": "gelu"}}
    first["text_config"] = TEXT | words | {"max_position_embeddings": 48}
    second["text_config"] = TEXT | words | {"max_position_embeddings": STRETCHED, "hidden_act": "gelu"}
    return [{"model_type": "clip", "architectures": ["CLIPModel"], **each} for each in (first, second)]


def texts(config: files.Config) -> list[str] | None:
    """Return texts of more tokens than CLIP reads, for the stretched one."""
    is_stretched = config["text_config"]["max_position_embeddings"] == STRETCHED
    return [*files.TEXTS[:4], "the red cat " * 20] if is_stretched else None


def save_model(folder: Path, config: files.Config) -> None:
    """Write the model; the table of the second is CLIP's, stretched."""
    text = config["text_config"]
    if text["max_position_embeddings"] != STRETCHED:
        files.save_model(folder, config)
        return
    files.save_model(folder, config | {"text_config": text | {"max_position_embeddings": POSITIONS}}, config)
    weights = load_file(folder / "model.safetensors")
    weights[TABLE] = stretched(weights[TABLE])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def stretched(table: np.ndarray) -> np.ndarray:
    """Return [248, D] of CLIP's [77, D]; behind the last row it goes on as it went before it."""
    steps = np.diff(table[KEPT:], axis=0, append=2 * table[-1:] - table[-2:-1])
    finer = [table[KEPT:] + steps * part / FINER for part in range(FINER)]
    return np.concatenate([table[:KEPT], np.stack(finer, axis=1).reshape(-1, table.shape[1])]).astype(np.float32)


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a crop and CLIP's tokenizer."""
    files.save_images(folder, "CLIPImageProcessor", **files.cropped(config["vision_config"]["image_size"]))
    checkpoints.save_clip_tokenizer(folder, config["text_config"]["max_position_embeddings"])
