"""A tiny EmbeddingGemma 2 checkpoint with random weights, as transformers saves it, and transformers' processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import BOS, CONTROL_IDS, EOS, NAMED, PAD, save_byte_tokenizer, save_processor, write_json
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, processors
from weight_shapes import Config, drawn_weight

START, END, IMAGE, AUDIO, VIDEO = "<|image>", "<image|>", "<|image|>", "<|audio|>", "<|video|>"
CONTROL = [PAD, BOS, EOS, START, END, IMAGE, AUDIO, VIDEO, "<|audio>", "<audio|>"]
PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: ", "STS": "task: ..."}


def config(text: Config | None = None, vision: Config | None = None) -> Config:
    """Return a tiny config; arguments override its parts."""
    words = {
        "model_type": "embedding_gemma2_text",
        "hidden_size": 60,
        "intermediate_size": 72,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "per_layer_config": {str(number): {"head_dim": 24, "num_key_value_heads": 1} for number in (1, 3)},
        "hidden_size_per_layer_input": 20,
        "embedding_dim": 48,
        "sliding_window": 5,
        "max_position_embeddings": 1024,
        "vocab_size": 256 + len(CONTROL) + 3,
        **CONTROL_IDS,
        **(text or {}),
    }
    tower = {
        "model_type": "gemma4_vision",
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 12,
        "patch_size": 4,
        "pooling_kernel_size": 3,
        "position_embedding_size": 240,
        "use_clipped_linears": False,
        "standardize": False,
        **(vision or {}),
    }
    return {
        "architectures": ["EmbeddingGemma2Model"],
        "model_type": "embedding_gemma2",
        "boi_token_id": 259,
        "eoi_token_id": 260,
        "image_token_id": 261,
        "audio_token_id": 262,
        "video_token_id": 263,
        "text_config": words,
        "vision_config": tower,
        "audio_config": None,
    }


def save(folder: Path, raw: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    from transformers import EmbeddingGemma2Config, EmbeddingGemma2Model

    EmbeddingGemma2Model(EmbeddingGemma2Config.from_dict(dict(raw))).save_pretrained(folder)
    write_json(folder / "config.json", raw)
    path = folder / "model.safetensors"
    save_file({name: _drawn(name, weight) for name, weight in load_file(path).items()}, path, {"format": "pt"})
    vision = raw["vision_config"]
    sizes = {key: vision[key] for key in ("patch_size", "pooling_kernel_size")}
    images = {"image_processor_type": "Gemma4ImageProcessor", "max_soft_tokens": 70, "do_normalize": False, **sizes}
    save_processor(folder, "EmbeddingGemma2Processor", images, image_seq_length=70)
    around = {"boa_token": "<|audio>", "eoa_token": "<audio|>", "audio_token": AUDIO}
    named = {"boi_token": START, "eoi_token": END, "image_token": IMAGE, **around}
    save_byte_tokenizer(folder, CONTROL, extra_special_tokens=named, **NAMED)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ends = [(token, backend.token_to_id(token)) for token in (BOS, EOS)]
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=ends)
    backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "config_sentence_transformers.json", {"prompts": PROMPTS})


def _drawn(name: str, weight: np.ndarray) -> np.ndarray:
    drawn = drawn_weight(name, weight.shape)
    if name.endswith("layer_scalar"):
        return drawn + np.float32(0.8)
    return drawn * np.float32(0.3) if name.endswith("embed_tokens.weight") else drawn


def processor(folder: Path) -> Any:
    """Return transformers' processor, without its parts for videos and sounds, which want torchvision."""
    from transformers import AutoTokenizer, EmbeddingGemma2Processor
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    class StillProcessor(EmbeddingGemma2Processor):  # type: ignore[misc]
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(name, argument)

    images = Gemma4ImageProcessorPil.from_pretrained(folder)
    return StillProcessor(None, images, AutoTokenizer.from_pretrained(folder), None)
