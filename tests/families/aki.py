"""Tiny AKI checkpoints: LLaVAs whose images see the question, against transformers' model under the paper's mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import IMAGE_TOKEN_ID, TEMPLATE, llava_config, save_llava
from safetensors.numpy import load_file, save_file
from weight_shapes import Config


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "siglip-mistral-wide-heads": _config(
            "siglip", "mistral", sliding_window=None, head_dim=24, num_attention_heads=3, num_key_value_heads=1
        ),
        "clip-llama-shared-keys": _config("clip", "llama", num_attention_heads=4, num_key_value_heads=2, head_dim=16),
    }


def _config(tower: str, decoder: str, **text: object) -> Config:
    config = llava_config(tower, decoder, tie_word_embeddings=False)
    config["text_config"] |= {"tie_word_embeddings": False, **text}
    return {**config, "model_type": "aki"}


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32; the head by its newer name, as transformers reads it."""
    save_llava(folder, config)
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"] = weights.pop("language_model.lm_head.weight")
    save_file(weights, path, {"format": "pt"})


def processor(folder: Path) -> Any:
    """Return LLaVA's processor, which transformers does not look for in a checkpoint of another name."""
    import json

    import transformers

    settings = json.loads((folder / "processor_config.json").read_text())
    images = settings.pop("image_processor")
    kind = getattr(transformers, f"{images.pop('image_processor_type')}Pil")
    named = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens", "image_token")
    return transformers.LlavaProcessor(
        kind(**images),
        transformers.TokenizersBackend.from_pretrained(folder),
        chat_template=TEMPLATE,
        **{name: settings[name] for name in named},
    )


def attention_mask(ids: Any, num_answered: int) -> Any:
    """Return what is added to scores [1, 1, T, T]: 0 where a token sees another.

    Modality-mutual attention (arXiv 2503.02597, section 3): of a prompt of images and a question, the mask is causal,
    and rows of image tokens are open at the columns of the question. An answer is seen by what follows alone. Image
    tokens among themselves stay causal, as in the authors' code.
    """
    import torch

    num_tokens = ids.shape[1]
    sees = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()
    is_image = ids[0] == IMAGE_TOKEN_ID
    if is_image.any():
        question = int(is_image.nonzero().max()) + 1
        sees[is_image, question : num_tokens - num_answered] = True
    return torch.where(sees, 0.0, torch.finfo(torch.float32).min)[None, None]
