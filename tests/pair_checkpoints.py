"""Tiny ViLT and BridgeTower checkpoints with random weights, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import CLIP_MEAN, CLIP_STD, RESCALING, save_model, save_processor, write_json
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
]


def config(**changes: Any) -> Config:
    """Return a tiny config; arguments override it."""
    return {
        "architectures": ["ViltForImageAndTextRetrieval"],
        "model_type": "vilt",
        "vocab_size": len(WORDS),
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 56,
        "max_position_embeddings": 24,
        "image_size": 24,
        "patch_size": 8,
        "layer_norm_eps": 1e-12,
        **changes,
    }


def shapes(raw: Config) -> Shapes:
    """Name the weights."""
    size, inner, patch = raw["hidden_size"], raw["intermediate_size"], raw["patch_size"]
    text = "vilt.embeddings.text_embeddings."
    found: Shapes = {
        f"{text}word_embeddings.weight": (raw["vocab_size"], size),
        f"{text}position_embeddings.weight": (raw["max_position_embeddings"], size),
        f"{text}token_type_embeddings.weight": (2, size),
        "vilt.embeddings.cls_token": (1, 1, size),
        "vilt.embeddings.position_embeddings": (1, (raw["image_size"] // patch) ** 2 + 1, size),
        "vilt.embeddings.patch_embeddings.projection.weight": (size, 3, patch, patch),
        "vilt.embeddings.patch_embeddings.projection.bias": (size,),
        "vilt.embeddings.token_type_embeddings.weight": (2, size),
        **norm_shapes(size, f"{text}LayerNorm", "vilt.layernorm"),
        **linear_shapes("vilt.pooler.dense", size, size),
        **linear_shapes("rank_output", 1, size),
    }
    for layer in (f"vilt.encoder.layer.{number}." for number in range(raw["num_hidden_layers"])):
        for part in ("query", "key", "value"):
            found |= linear_shapes(f"{layer}attention.attention.{part}", size, size)
        found |= linear_shapes(f"{layer}attention.output.dense", size, size)
        found |= linear_shapes(f"{layer}intermediate.dense", inner, size)
        found |= linear_shapes(f"{layer}output.dense", size, inner)
        found |= norm_shapes(size, f"{layer}layernorm_before", f"{layer}layernorm_after")
    return found


def save(folder: Path, raw: Config | None = None) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    raw = raw or config()
    save_model(folder, raw, shapes(raw))
    images = {
        "image_processor_type": "ViltImageProcessor",
        "size": {"shortest_edge": raw["image_size"]},
        "size_divisor": raw["patch_size"],
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    _save_beside_weights(folder, "Vilt", images, raw["max_position_embeddings"])


def bridgetower_config() -> Config:
    """Return a tiny config whose towers have a layer below the first bridge."""
    text = {"vocab_size": len(WORDS), "hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 3}
    text |= {"intermediate_size": 56, "max_position_embeddings": 24, "type_vocab_size": 1, "pad_token_id": 0}
    vision = {"hidden_size": 64, "num_hidden_layers": 3, "patch_size": 8, "image_size": 24}
    return {
        "architectures": ["BridgeTowerForImageAndTextRetrieval"],
        "model_type": "bridgetower",
        "hidden_size": 36,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "text_config": {"model_type": "bridgetower_text_model", **text},
        "vision_config": {"model_type": "bridgetower_vision_model", **vision},
    }


def save_bridgetower(folder: Path) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    raw = bridgetower_config()
    save_model(folder, raw, _bridgetower_shapes(raw))
    side = raw["vision_config"]["image_size"]
    images = {
        "image_processor_type": "BridgeTowerImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"shortest_edge": side},
        "do_center_crop": True,
        "size_divisor": raw["vision_config"]["patch_size"],
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    _save_beside_weights(folder, "BridgeTower", images, raw["text_config"]["max_position_embeddings"])


def _bridgetower_shapes(raw: Config) -> Shapes:
    text, vision, size = raw["text_config"], raw["vision_config"], raw["hidden_size"]
    wide, patch, top = vision["hidden_size"], vision["patch_size"], "bridgetower."
    seen, read = f"{top}vision_model.visual.", f"{top}text_model."
    found: Shapes = {
        f"{seen}embeddings.class_embedding": (wide,),
        f"{seen}embeddings.patch_embedding.weight": (wide, 3, patch, patch),
        f"{seen}embeddings.position_embedding.weight": ((vision["image_size"] // patch) ** 2 + 1, wide),
        f"{read}embeddings.word_embeddings.weight": (text["vocab_size"], size),
        f"{read}embeddings.position_embeddings.weight": (text["max_position_embeddings"], size),
        f"{read}embeddings.token_type_embeddings.weight": (1, size),
        f"{top}token_type_embeddings.weight": (2, size),
        **norm_shapes(wide, f"{seen}ln_pre", f"{seen}ln_post"),
        **norm_shapes(size, f"{read}embeddings.LayerNorm"),
        **linear_shapes(f"{read}pooler.dense", size, size),
        **linear_shapes(f"{top}cross_modal_text_transform", size, size),
        **linear_shapes(f"{top}cross_modal_image_transform", size, wide),
        **linear_shapes("itm_score.fc", 2, 2 * size),
    }
    for layer in (f"{seen}transformer.resblocks.{number}." for number in range(vision["num_hidden_layers"])):
        found |= {f"{layer}attn.in_proj_weight": (3 * wide, wide), f"{layer}attn.in_proj_bias": (3 * wide,)}
        found |= linear_shapes(f"{layer}attn.out_proj", wide, wide) | norm_shapes(wide, f"{layer}ln_1", f"{layer}ln_2")
        found |= linear_shapes(f"{layer}mlp.c_fc", 4 * wide, wide) | linear_shapes(f"{layer}mlp.c_proj", wide, 4 * wide)
    for layer in (f"{read}encoder.layer.{number}." for number in range(text["num_hidden_layers"])):
        found |= _bert_shapes(layer, ("attention",), size, text["intermediate_size"])
    for kind in ("text", "image"):
        found |= linear_shapes(f"{top}cross_modal_{kind}_pooler.dense", size, size)
        found |= norm_shapes(size, f"{top}cross_modal_{kind}_layernorm")
        for number in range(raw["num_hidden_layers"]):
            layer = f"{top}cross_modal_{kind}_layers.{number}."
            found |= _bert_shapes(layer, ("attention", "crossattention"), size, text["intermediate_size"])
            if number:
                found |= norm_shapes(size, f"{top}cross_modal_{kind}_link_tower.{number - 1}.LayerNorm")
    return found


def _bert_shapes(layer: str, attentions: tuple[str, ...], size: int, inner: int) -> Shapes:
    found: Shapes = norm_shapes(size, f"{layer}output.LayerNorm", *(f"{layer}{a}.output.LayerNorm" for a in attentions))
    for attention in attentions:
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            found |= linear_shapes(f"{layer}{attention}.{part}", size, size)
    found |= linear_shapes(f"{layer}intermediate.dense", inner, size)
    return found | linear_shapes(f"{layer}output.dense", size, inner)


def _save_beside_weights(folder: Path, name: str, images: Config, max_tokens: int) -> None:
    weights = load_file(folder / "model.safetensors")
    # Norms near 0, as drawn by names that are not of lower case, would let nothing of an error through
    near_one = {name: 1 + each for name, each in weights.items() if name.endswith("LayerNorm.weight")}
    save_file({**weights, **near_one}, folder / "model.safetensors", {"format": "pt"})
    settings = {"do_resize": True, "do_pad": True, "resample": 3, **RESCALING}
    save_processor(folder, f"{name}Processor", {**settings, **images})
    save_word_pieces(folder, max_tokens)


def save_word_pieces(folder: Path, max_tokens: int) -> None:
    """Write a tokenizer of `WORDS`."""
    backend = Tokenizer(models.WordPiece({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": max_tokens}
    write_json(folder / "tokenizer_config.json", {**settings, **names})
