"""TIPSv2: `tipsv2`, in the authors' names, which transformers writes as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import encoder_files as files
from safetensors.numpy import load_file, save_file

TEXT = {"hidden_size": 40, "intermediate_size": 52, "num_attention_heads": 5, "num_hidden_layers": 2}
VISION = {"hidden_size": 40, "num_attention_heads": 4, "num_hidden_layers": 2, "patch_size": 12}
PIECES = ["<pad>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz猫,.'", "▁c", "at", "▁cat"]
MERGES = [("▁", "c"), ("a", "t"), ("▁c", "at")]
REFUSED = [
    ({"text_config": {"hidden_size": 44}}, "text_config.hidden_size 44 differs from vision_config.hidden_size 40"),
    ({"vision_config": {"num_register_tokens": 0}}, "num_register_tokens is 0"),
    ({"vision_config": {"qkv_bias": False}}, "qkv_bias is False"),
    ({"text_config": {"hidden_act": "mish"}}, "'mish'"),
]


def geometries() -> list[files.Config]:
    """Return one at its own size, and a gated one whose positions are resampled, with a temperature of its own."""
    words = {"vocab_size": len(PIECES) + 2, "max_position_embeddings": 48}
    first = {"text_config": TEXT | words, "vision_config": VISION | {"image_size": 36, "mlp_ratio": 2.3}}
    gated = {"image_size": 60, "num_register_tokens": 2, "use_swiglu_ffn": True}
    second = {"text_config": TEXT | words | {"scale_sqrt_depth": False, "hidden_act": "gelu"}}
    second |= {"vision_config": VISION | gated, "temperature_init_value": 0.2}
    return [{"model_type": "tipsv2", "architectures": ["Tipsv2Model"], **each} for each in (first, second)]


def save_model(folder: Path, config: files.Config) -> None:
    """Write the model; no temperature, as published, and the feed-forwards of the first under DINOv2's names."""
    files.save_model(folder, config)
    weights = load_file(folder / "model.safetensors")
    del weights["temperature"]
    if not config["vision_config"].get("use_swiglu_ffn"):
        for ours, theirs in (("c_fc", "fc1"), ("c_proj", "fc2")):
            for key in [key for key in weights if key.startswith("vision") and f".{ours}." in key]:
                weights[key.replace(ours, theirs)] = weights.pop(key)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def save_processor(folder: Path, config: files.Config) -> None:
    """Write a stretch without normalising, and the tokenizer of transformers' class."""
    from transformers import Tipsv2Tokenizer

    files.save_images(folder, "Tipsv2ImageProcessor", size=files.square(36), do_normalize=False)
    vocab = {piece: i for i, piece in enumerate(PIECES)}
    longest = config["text_config"]["max_position_embeddings"]
    Tipsv2Tokenizer(vocab, MERGES, model_max_length=longest).save_pretrained(folder)


class _Apart(files.Apart):
    """Pillow's processor of the same settings, for transformers' is torchvision's alone, and its tokenizer."""

    def __init__(self, folder: Path) -> None:
        from transformers import Tipsv2Tokenizer, ViTImageProcessorPil

        self.images = ViTImageProcessorPil(size=files.square(36), do_normalize=False)
        self.tokenizer = Tipsv2Tokenizer.from_pretrained(folder)


def processor(folder: Path) -> files.Apart:
    """Return both, apart."""
    return _Apart(folder)


def model(folder: Path) -> Any:
    """Return transformers' model; a weight that is missing, but for the temperature, or left over is an error."""
    from transformers import Tipsv2Model

    found, told = Tipsv2Model.from_pretrained(folder, output_loading_info=True)
    if any(told.values()):
        raise ValueError(told)
    return found.eval()
