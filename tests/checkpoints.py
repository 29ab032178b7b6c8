"""Tiny checkpoints with random weights, written as transformers writes real ones, without torch or transformers.

Tests reach these functions through the fixture `checkpoints` of tests/conftest.py. Weights are drawn large enough that
greedy decoding is diverse: at its default initialisation a decoder repeats one token, which hides errors.
tests/export/test_tiny_checkpoints.py holds that transformers loads every weight of them and would save the same.

`python tests/checkpoints.py FOLDER [--preset NAME] [--one-tile]` writes one of a real model's sizes, SmolVLM-256M's by
default, for measuring speed and memory.
"""

from __future__ import annotations

import argparse
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from weight_shapes import Config, Shapes, clip_shapes, drawn_weight, llava_shapes, siglip_shapes, smolvlm_shapes

TILE_PX = 32
PATCH_PX = 8
CONTEXT_TOKENS = 512
MARKERS = [f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)]
PAD, BOS, EOS = "<|pad|>", "<|im_start|>", "<end_of_utterance>"
NAMED = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS}
CONTROL = [PAD, BOS, EOS, "<fake_token_around_image>", "<image>", "<global-img>"]
CONTROL_IDS = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
IMAGE_TOKEN_ID = 260
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}:"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
RESCALING = {"do_rescale": True, "rescale_factor": 1 / 255, "do_convert_rgb": True, "do_normalize": True}


def smolvlm_config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
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
        **CONTROL_IDS,
        **(text or {}),
    }
    vision_config = {
        "model_type": "smolvlm_vision",
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": TILE_PX,
        "patch_size": PATCH_PX,
        **(vision or {}),
    }
    return {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "scale_factor": 2,
        "image_token_id": IMAGE_TOKEN_ID,
        "tie_word_embeddings": True,
        "text_config": text_config,
        "vision_config": vision_config,
        **top,
    }


def smolvlm_256m_config() -> Config:
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


def llama_1_1b_config() -> Config:
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


def tiny_config() -> Config:
    """Return tiny sizes with heads of 16, as float16 attention wants them at least."""
    return smolvlm_config({"num_attention_heads": 3, "num_key_value_heads": 1})


def siglip_b16_config() -> Config:
    """Return the sizes of SigLIP-B/16 at 224 px, but for the words, whose table changes no speed."""
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    return siglip_config(
        {**sizes, "projection_size": 768, "max_position_embeddings": 64}, {**sizes, "image_size": 224, "patch_size": 16}
    )


def clip_b32_config() -> Config:
    """Return the sizes of CLIP-B/32, but for the words, whose table changes no speed of images."""
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 12}
    tower = {**sizes, "projection_dim": 512, "image_size": 224, "patch_size": 32}
    return clip_config({**text, "projection_dim": 512, "max_position_embeddings": 77}, tower, projection_dim=512)


PRESETS = {
    "smolvlm-256m": smolvlm_256m_config,
    "llama-1.1b": llama_1_1b_config,
    "siglip-b16": siglip_b16_config,
    "clip-b32": clip_b32_config,
    "tiny": tiny_config,
}


def clip_config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    """Return a tiny CLIP config; arguments override its parts."""
    ids = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    text_config = {"vocab_size": 514, "max_position_embeddings": 32, **sizes, **ids, **(text or {})}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 24,
        "logit_scale_init_value": 2.6592,
        "text_config": {"model_type": "clip_text_model", **text_config},
        "vision_config": {"model_type": "clip_vision_model", **_dual_tower(), **(vision or {})},
        **top,
    }


def siglip_config(text: Config | None = None, vision: Config | None = None) -> Config:
    """Return a tiny SigLIP config; arguments override its parts."""
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    vocab = {"vocab_size": 256 + len(CONTROL), "max_position_embeddings": 24, "projection_size": sizes["hidden_size"]}
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": {"model_type": "siglip_text_model", **sizes, **vocab, **CONTROL_IDS, **(text or {})},
        "vision_config": {"model_type": "siglip_vision_model", **_dual_tower(), **(vision or {})},
    }


def _dual_tower() -> Config:
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 3, "num_hidden_layers": 2}
    return {**sizes, "image_size": TILE_PX, "patch_size": PATCH_PX}


def llava_config(tower: str = "clip", text: str = "llama", **top: Any) -> Config:
    """Return a tiny LLaVA config.

    Args:
        tower: "clip" or "siglip".
        text: "llama" (untied, biased projections) or "qwen2" (tied).
        top: Overrides of the top level, e.g. `vision_feature_layer`.
    """
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 4}
    vision = {"model_type": f"{tower}_vision_model", **sizes, "image_size": TILE_PX, "patch_size": PATCH_PX}
    words = {
        "model_type": text,
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "vocab_size": 256 + len(CONTROL),
        "max_position_embeddings": CONTEXT_TOKENS,
        **CONTROL_IDS,
    }
    llama = {"attention_bias": True, "mlp_bias": True, "head_dim": 16}
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": IMAGE_TOKEN_ID,
        "tie_word_embeddings": text == "qwen2",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": words | (llama if text == "llama" else {"tie_word_embeddings": True}),
        "vision_config": vision,
        **top,
    }


def save_smolvlm(folder: Path, config: Config | None = None, *, splits: bool = True) -> None:
    """Write a whole SmolVLM checkpoint into `folder`, in float32.

    Args:
        folder: Created when missing.
        config: `smolvlm_config()` by default.
        splits: Whether large images are cut into tiles (at most 4 x 4).
    """
    config = config or smolvlm_config()
    save_model(folder, config, smolvlm_shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    save_smolvlm_processor(folder, config, splits=splits)


def save_smolvlm_processor(folder: Path, config: Config, *, splits: bool = True) -> None:
    """Write the processor files of a SmolVLM checkpoint."""
    tile_px = config["vision_config"]["image_size"]
    images = {
        "image_processor_type": "Idefics3ImageProcessor",
        "do_resize": True,
        "size": {"longest_edge": 4 * tile_px if splits else tile_px},
        "do_image_splitting": splits,
        "max_image_size": {"longest_edge": tile_px},
        "resample": 1,
        "do_pad": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        **RESCALING,
    }
    grid = tile_px // config["vision_config"]["patch_size"] // config["scale_factor"]
    save_processor(folder, "Idefics3Processor", images, image_seq_len=grid**2)
    save_byte_tokenizer(
        folder,
        [*CONTROL, *MARKERS],
        extra_special_tokens=["<fake_token_around_image>", "<image>", EOS],
        model_max_length=CONTEXT_TOKENS,
        **NAMED,
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def save_clip(folder: Path, config: Config | None = None) -> None:
    """Write a whole CLIP checkpoint into `folder`, in float32."""
    config = config or clip_config()
    save_model(folder, config, clip_shapes(config))
    save_processor(folder, "CLIPProcessor", _cropping(config["vision_config"]["image_size"]))
    save_clip_tokenizer(folder, config["text_config"]["max_position_embeddings"])


def save_llava(
    folder: Path,
    config: Config | None = None,
    decoder: Shapes | None = None,
    *,
    pads: bool = False,
    more: Shapes | None = None,
) -> None:
    """Write a whole LLaVA checkpoint into `folder`, in float32; `decoder` as `llava_shapes` takes it.

    With `pads`, images are padded to squares; `more` are weights beside LLaVA's.
    """
    config = config or llava_config()
    vision = config["vision_config"]
    is_clip = vision["model_type"] == "clip_vision_model"
    save_model(folder, config, llava_shapes(config, decoder) | (more or {}))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    save_processor(
        folder,
        "LlavaProcessor",
        _padding(vision["image_size"]) if pads else (_cropping if is_clip else _squashing)(vision["image_size"]),
        image_token="<image>",
        patch_size=vision["patch_size"],
        num_additional_image_tokens=int(is_clip),
        vision_feature_select_strategy=config["vision_feature_select_strategy"],
    )
    save_byte_tokenizer(folder, CONTROL, **NAMED)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def save_siglip(folder: Path, config: Config | None = None) -> None:
    """Write a whole SigLIP checkpoint into `folder`, in float32."""
    config = config or siglip_config()
    save_model(folder, config, siglip_shapes(config))
    save_siglip_processor(folder, config)


def save_siglip_processor(folder: Path, config: Config) -> None:
    """Write the processor files of a SigLIP checkpoint."""
    save_processor(folder, "SiglipProcessor", _squashing(config["vision_config"]["image_size"]))
    tokens = {"eos_token": EOS, "pad_token": PAD}
    save_byte_tokenizer(folder, CONTROL, model_max_length=config["text_config"]["max_position_embeddings"], **tokens)


def save_preset(folder: Path, preset: str, *, splits: bool = True) -> int:
    """Write a checkpoint of a real model's sizes with random bfloat16 weights; return its number of weights.

    With `splits`, an image of a SmolVLM is enlarged to 2048 px and cut into 16 tiles and itself, as the real processor
    does.
    """
    config = PRESETS[preset]()
    if config["model_type"] == "clip":
        save_clip(folder, config)
        write_json(
            folder / "preprocessor_config.json", _cropping(config["vision_config"]["image_size"])
        )  # older readers'
        return sum(math.prod(shape) for shape in clip_shapes(config).values())
    is_encoder = config["model_type"] == "siglip"
    shapes = siglip_shapes(config) if is_encoder else smolvlm_shapes(config)
    save_model(folder, config, shapes, ml_dtypes.bfloat16)
    if is_encoder:
        save_siglip_processor(folder, config)
    else:
        save_smolvlm_processor(folder, config, splits=splits)
    return sum(math.prod(shape) for shape in shapes.values())


def save_model(folder: Path, config: Config, shapes: Shapes, dtype: DTypeLike = np.float32) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {**config, "dtype": np.dtype(dtype).name})
    with ThreadPoolExecutor() as pool:
        drawn = pool.map(lambda name: drawn_weight(name, shapes[name]).astype(dtype), shapes)
        save_file(dict(zip(shapes, drawn, strict=True)), folder / "model.safetensors", {"format": "pt"})


def save_processor(folder: Path, name: str, images: Config, **settings: Any) -> None:
    write_json(folder / "processor_config.json", {"processor_class": name, "image_processor": images, **settings})


def _cropping(side_px: int) -> Config:
    crop = {"do_center_crop": True, "crop_size": {"height": side_px, "width": side_px}}
    resize = {"do_resize": True, "size": {"shortest_edge": side_px}, "resample": 3}
    colours = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    return {"image_processor_type": "CLIPImageProcessor", **resize, **crop, **colours, **RESCALING}


def _padding(side_px: int) -> Config:
    return {**_cropping(side_px), "image_processor_type": "LlavaImageProcessor", "do_pad": True}


def _squashing(side_px: int) -> Config:
    resize = {"do_resize": True, "size": {"height": side_px, "width": side_px}, "resample": 3}
    colours = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return {"image_processor_type": "SiglipImageProcessor", **resize, **colours, **RESCALING}


def save_byte_tokenizer(folder: Path, specials: list[str], begins_with: str | None = None, **settings: Any) -> None:
    """Write a byte-level tokenizer: one token per byte, then the special ones, one of which may begin every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if begins_with is not None:
        first = (begins_with, len(alphabet) + specials.index(begins_with))
        backend.post_processor = processors.TemplateProcessing(f"{begins_with} $A", special_tokens=[first])
    _save_tokenizer(folder, backend, specials, tokenizer_class="TokenizersBackend", **settings)


def save_clip_tokenizer(folder: Path, max_tokens: int) -> None:
    """Write CLIP's tokenizer with letters for words."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [*alphabet, *(f"{letter}</w>" for letter in alphabet), start, end]
    vocab = {text: i for i, text in enumerate(letters)}
    backend = Tokenizer(models.BPE(vocab, [], unk_token=end, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(CLIP_WORDS), "removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.post_processor = processors.RobertaProcessing(
        (end, vocab[end]), (start, vocab[start]), trim_offsets=False, add_prefix_space=False
    )
    backend.decoder = decoders.ByteLevel()
    tokens = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    _save_tokenizer(
        folder, backend, [start, end], tokenizer_class="CLIPTokenizer", model_max_length=max_tokens, **tokens
    )


def _save_tokenizer(folder: Path, backend: Tokenizer, specials: list[str], **settings: Any) -> None:
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", settings)


def write_json(path: Path, content: Config) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=save_preset.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="smolvlm-256m", help="whose sizes")
    parser.add_argument("--one-tile", action="store_true", help="scale an image to 512 px instead of cutting it")
    options = parser.parse_args()
    num_weights = save_preset(options.folder, options.preset, splits=not options.one_tile)
    print(f"{num_weights:,} weights in {options.folder}")
