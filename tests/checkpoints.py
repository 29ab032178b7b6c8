"""Tiny checkpoints with random weights, saved by transformers as real ones are.

Tests reach these functions through the fixture `checkpoints` of tests/conftest.py. Weights are drawn large enough that
greedy decoding is diverse: at its default initialisation a decoder repeats one token, which hides errors.

`python tests/checkpoints.py FOLDER [--preset NAME] [--one-tile]` writes one of a real model's sizes, SmolVLM-256M's by
default, for measuring speed and memory.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    CLIPVisionConfig,
    GenerationConfig,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

TILE_PX = 32
PATCH_PX = 8
CONTEXT_TOKENS = 512
MARKERS = [f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)]
CONTROL = ["<|pad|>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>"]
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}:"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def byte_tokenizer(specials: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer: one token per byte, then the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def enlarge(model: PreTrainedModel, seed: int = 0) -> None:
    """Redraw every weight in place: matrices with gain 2, norms near 1, biases and vectors near 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "embed" in name and weight.dim() == 2:
                weight.copy_(noise)
            elif weight.dim() >= 2:
                weight.copy_(2 * noise / weight[0].numel() ** 0.5)
            elif weight.dim() == 1 and "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.2 * noise)
            elif weight.dim() == 1:
                weight.copy_(0.2 * noise)


def smolvlm_config(
    text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **top: Any
) -> SmolVLMConfig:
    """Return a tiny SmolVLM config with 6 query and 2 key/value heads; arguments override its parts."""
    text_config = {
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 256 + len(CONTROL) + len(MARKERS),
        "max_position_embeddings": CONTEXT_TOKENS,
        "pad_token_id": 256,
        "bos_token_id": 257,
        "eos_token_id": 258,
        **(text or {}),
    }
    vision_config = {
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": TILE_PX,
        "patch_size": PATCH_PX,
        **(vision or {}),
    }
    settings = {"scale_factor": 2, "image_token_id": 260, "tie_word_embeddings": True, **top}
    return SmolVLMConfig(text_config=text_config, vision_config=vision_config, **settings)


def save_smolvlm(folder: Path, config: SmolVLMConfig | None = None, *, splits: bool = True) -> PreTrainedModel:
    """Write a whole SmolVLM checkpoint into `folder` and return the model in float32.

    Args:
        folder: Created when missing.
        config: `smolvlm_config()` by default.
        splits: Whether large images are cut into tiles (at most 4 x 4).
    """
    config = config or smolvlm_config()
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration(config).eval()
    enlarge(model)
    model.generation_config = GenerationConfig(eos_token_id=258, pad_token_id=256, bos_token_id=257)
    model.save_pretrained(folder)
    save_smolvlm_processor(folder, config, splits=splits)
    return model


def save_smolvlm_processor(folder: Path, config: SmolVLMConfig, *, splits: bool = True) -> None:
    """Write the processor files of a SmolVLM checkpoint."""
    tile_px = config.vision_config.image_size
    tokenizer = byte_tokenizer([*CONTROL, *MARKERS])
    tokenizer.add_special_tokens(
        {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|pad|>"}
    )
    tokenizer.model_max_length = CONTEXT_TOKENS
    images = Idefics3ImageProcessorPil(
        do_image_splitting=splits,
        size={"longest_edge": 4 * tile_px if splits else tile_px},
        max_image_size={"longest_edge": tile_px},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    grid = tile_px // config.vision_config.patch_size // config.scale_factor
    Idefics3Processor(images, tokenizer, image_seq_len=grid**2, chat_template=TEMPLATE).save_pretrained(folder)


def smolvlm_256m_config() -> SmolVLMConfig:
    """Return the sizes of SmolVLM-256M."""
    text = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_280,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    }
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    }
    return smolvlm_config(text, vision, scale_factor=4, tie_word_embeddings=False)


def llama_1_1b_config() -> SmolVLMConfig:
    """Return the sizes of TinyLlama-1.1B as the decoder of a SmolVLM with a small vision tower."""
    text = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32_000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
    }
    vision = {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "image_size": 512,
        "patch_size": 16,
    }
    return smolvlm_config(text, vision, scale_factor=4, tie_word_embeddings=False)


PRESETS = {"smolvlm-256m": smolvlm_256m_config, "llama-1.1b": llama_1_1b_config}


def save_preset(folder: Path, preset: str, *, splits: bool = True) -> int:
    """Write a checkpoint of a real model's sizes with random bfloat16 weights; return its number of weights.

    With `splits`, an image is enlarged to 2048 px and cut into 16 tiles and itself, as the real processor does.
    """
    config = PRESETS[preset]()
    with torch.device("meta"):
        model = SmolVLMForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5).to(torch.bfloat16)
        for name, weight in model.named_parameters()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    save_smolvlm_processor(folder, config, splits=splits)
    return sum(weight.numel() for weight in weights.values())


def clip_config(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **top: Any) -> CLIPConfig:
    """Return a tiny CLIP config; arguments override its parts."""
    text_config = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 514,
        "max_position_embeddings": 32,
        "bos_token_id": 512,
        "eos_token_id": 513,
        "pad_token_id": 513,
        **(text or {}),
    }
    vision_config = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": TILE_PX,
        "patch_size": PATCH_PX,
        **(vision or {}),
    }
    return CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=24, **top)


def save_clip(folder: Path, config: CLIPConfig | None = None) -> PreTrainedModel:
    """Write a whole CLIP checkpoint into `folder` and return the model in float32."""
    config = config or clip_config()
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    enlarge(model)
    model.save_pretrained(folder)
    side = config.vision_config.image_size
    images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({text: i for i, text in enumerate(letters)}, [])
    tokenizer.model_max_length = config.text_config.max_position_embeddings
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return model


def llava_config(tower: str = "clip", text: str = "llama", **top: Any) -> LlavaConfig:
    """Return a tiny LLaVA config.

    Args:
        tower: "clip" or "siglip".
        text: "llama" (untied, biased projections) or "qwen2" (tied).
        top: Overrides of the top level, e.g. `vision_feature_layer`.
    """
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": TILE_PX,
        "patch_size": PATCH_PX,
    }
    vision = CLIPVisionConfig(**sizes) if tower == "clip" else SiglipVisionConfig(**sizes)
    words: dict[str, Any] = {
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "vocab_size": 256 + len(CONTROL),
        "max_position_embeddings": CONTEXT_TOKENS,
        "pad_token_id": 256,
        "bos_token_id": 257,
        "eos_token_id": 258,
    }
    if text == "llama":
        decoder = LlamaConfig(**words, attention_bias=True, mlp_bias=True, head_dim=16)
    else:
        decoder = Qwen2Config(**words, tie_word_embeddings=True)
    settings = {"image_token_index": 260, "tie_word_embeddings": text == "qwen2", **top}
    return LlavaConfig(vision_config=vision, text_config=decoder, **settings)


def save_llava(folder: Path, config: LlavaConfig | None = None) -> PreTrainedModel:
    """Write a whole LLaVA checkpoint into `folder` and return the model in float32."""
    config = config or llava_config()
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    enlarge(model)
    model.generation_config = GenerationConfig(eos_token_id=258, pad_token_id=256, bos_token_id=257)
    model.save_pretrained(folder)
    side = config.vision_config.image_size
    is_clip = config.vision_config.model_type == "clip_vision_model"
    tokenizer = byte_tokenizer(CONTROL)
    tokenizer.add_special_tokens(
        {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|pad|>"}
    )
    if is_clip:
        images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    else:
        images = SiglipImageProcessorPil(size={"height": side, "width": side})
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(is_clip),
        chat_template=TEMPLATE,
        image_token="<image>",
    ).save_pretrained(folder)
    return model


def siglip_config(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> SiglipConfig:
    """Return a tiny SigLIP config; arguments override its parts."""
    text_config = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256 + len(CONTROL),
        "max_position_embeddings": 24,
        "bos_token_id": 257,
        "eos_token_id": 258,
        "pad_token_id": 256,
        **(text or {}),
    }
    vision_config = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": TILE_PX,
        "patch_size": PATCH_PX,
        **(vision or {}),
    }
    return SiglipConfig(text_config=text_config, vision_config=vision_config)


def save_siglip(folder: Path, config: SiglipConfig | None = None) -> PreTrainedModel:
    """Write a whole SigLIP checkpoint into `folder` and return the model in float32."""
    config = config or siglip_config()
    torch.manual_seed(0)
    model = SiglipModel(config).eval()
    enlarge(model)
    model.save_pretrained(folder)
    side = config.vision_config.image_size
    tokenizer = byte_tokenizer(CONTROL)
    tokenizer.add_special_tokens({"eos_token": "<end_of_utterance>", "pad_token": "<|pad|>"})
    tokenizer.model_max_length = config.text_config.max_position_embeddings
    SiglipProcessor(SiglipImageProcessorPil(size={"height": side, "width": side}), tokenizer).save_pretrained(folder)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=save_preset.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="smolvlm-256m", help="whose sizes")
    parser.add_argument("--one-tile", action="store_true", help="scale an image to 512 px instead of cutting it")
    options = parser.parse_args()
    num_weights = save_preset(options.folder, options.preset, splits=not options.one_tile)
    print(f"{num_weights:,} weights in {options.folder}")
