"""Tiny Fuyu checkpoints: no tower, a tokenizer of pieces that are found by their scores, heads that turn in part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import save_model, write_json
from piece_tokenizers import BYTES, LETTERS, save_pieces
from tokenizers import models
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes

SPEAKER, NEWLINE, END, TEXT, ANSWER = "|SPEAKER|", "|NEWLINE|", "|ENDOFTEXT|", "<s>", "<0x04>"
WORDS = ["▁What", "▁is", "▁it", "t?", "▁the", "▁in", "em", "▁ple", "ase", "Com", "pare", "|SPEAK", "R|"]
# the fifth byte ends a prompt about an image
PIECES = ["<unk>", TEXT, "</s>", "▁", *LETTERS, *WORDS, SPEAKER, "|unused|", END, NEWLINE, *BYTES]
SPEAKER_ID, END_ID = PIECES.index(SPEAKER), PIECES.index(END)
VOCABULARY = len(PIECES) + 3
TAKES_VIDEOS = False
FRAME = {"height": 84, "width": 108}


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    nested = {
        "model_type": "persimmon",
        **_text(hidden_size=72, num_attention_heads=3, num_hidden_layers=3, qk_layernorm=False, hidden_act="gelu"),
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0, "partial_rotary_factor": 1 / 3},
    }
    nested.pop("rope_theta")
    return {
        "flat-as-published": _config(**_text(num_hidden_layers=4, max_position_embeddings=384)),
        "nested-tied-no-head-norms": _config(text_config=nested, tie_word_embeddings=True, patch_size=6),
    }


def _text(**changes: Any) -> Config:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 512,
        "qk_layernorm": True,
        "hidden_act": "relu2",
        "rope_theta": 25000.0,
        **changes,
    }


def _config(**top: Any) -> Config:
    return {
        "architectures": ["FuyuForCausalLM"],
        "model_type": "fuyu",
        "patch_size": 12,
        "num_channels": 3,
        "image_size": 300,
        "image_token_id": SPEAKER_ID,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": END_ID,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a chat template, as published."""
    save_model(folder, config, shapes(config))
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": END_ID})
    side = config["patch_size"]
    images = {
        "image_processor_type": "FuyuImageProcessor",
        "size": FRAME,
        "patch_size": {"height": side, "width": side},
        "do_pad": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": 0.5,
        "image_std": 0.5,
        "padding_mode": "constant",
        "padding_value": 1.0,
        "resample": 2,
        "rescale_factor": 1 / 255,
    }
    write_json(folder / "preprocessor_config.json", {**images, "processor_class": "FuyuProcessor"})
    save_tokenizer(folder, begins=config["patch_size"] == 12)


def save_tokenizer(folder: Path, *, begins: bool) -> None:
    """Write a tokenizer as sentencepiece's unigram models become.

    Args:
        folder: Where to.
        begins: A token stands before every text, as `add_bos_token` once had it put into the file; transformers 5
            reads that setting no more where there is a file.
    """
    scores = [-float(len(PIECES) + 10 * (len(piece) == 1) - at) / 20 for at, piece in enumerate(PIECES)]
    certain = {"<unk>", TEXT, "</s>", SPEAKER, NEWLINE, *BYTES}
    pieces = [(piece, 0.0 if piece in certain else score) for piece, score in zip(PIECES, scores, strict=True)]
    added = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": True}
    settings = {  # but for numbers, what is published
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {"0": {"content": "<unk>", **added}, str(END_ID): {"content": END, **added}},
        "additional_special_tokens": [],
        "bos_token": END,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "legacy": True,
        "pad_token": None,
        "spaces_between_special_tokens": False,
        "unk_token": "<unk>",
        "use_default_system_prompt": True,
    }
    model = models.Unigram(pieces, unk_id=0, byte_fallback=True)
    save_pieces(folder, model, (END, END_ID) if begins else None, **settings)


def conversations(given: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return messages that it takes, by the names of those that others take."""
    (wide, asked), (first, *_, large, last) = given["one image"], given["two images"]
    return {"text": given["text"], "one image": [wide, asked], "two images": [first, large, last]}


def processor(folder: Path) -> Any:
    """Return transformers' processor, on Pillow."""
    import torch
    from transformers import FuyuProcessor
    from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil

    class OnTensors(FuyuImageProcessorPil):  # type: ignore[misc]
        """Whose patches are cut of what the processor hands it: tensors, which 5.23's Pillow class cannot transpose."""

        def patchify_image(self, image: Any, patch_size: Any = None) -> Any:
            return torch.from_numpy(super().patchify_image(image.numpy(), patch_size))

    tokenizer = FuyuProcessor._load_tokenizer_from_pretrained("tokenizer", folder)
    return FuyuProcessor(OnTensors.from_pretrained(folder), tokenizer)


def inputs(processor: Any, parts: list[Any]) -> Any:
    """Return what it makes of a message, whose image always comes first."""
    text = "".join(part for part in parts if isinstance(part, str))
    images = [part for part in parts if not isinstance(part, str)]
    if not images:
        return processor(text=[text], return_tensors="pt")
    return processor(text=[text], images=images, return_tensors="pt", return_legacy_image_output=False)


def shapes(config: Config) -> Shapes:
    """Name every weight, under the hub's names."""
    text = config.get("text_config", config)
    width, inner = text["hidden_size"], text["intermediate_size"]
    head = width // text["num_attention_heads"]
    named: Shapes = {"language_model.model.embed_tokens.weight": (text["vocab_size"], width)}
    named |= norm_shapes(width, "language_model.model.final_layernorm")
    named |= linear_shapes("vision_embed_tokens", width, 3 * config["patch_size"] ** 2)
    if not config["tie_word_embeddings"]:
        named["language_model.lm_head.weight"] = (text["vocab_size"], width)
    for layer in (f"language_model.model.layers.{number}." for number in range(text["num_hidden_layers"])):
        named |= linear_shapes(f"{layer}self_attn.query_key_value", 3 * width, width)
        named |= linear_shapes(f"{layer}self_attn.dense", width, width)
        if text["qk_layernorm"]:
            named |= norm_shapes(head, f"{layer}self_attn.q_layernorm", f"{layer}self_attn.k_layernorm")
        named |= linear_shapes(f"{layer}mlp.dense_h_to_4h", inner, width)
        named |= linear_shapes(f"{layer}mlp.dense_4h_to_h", width, inner)
        named |= norm_shapes(width, f"{layer}input_layernorm", f"{layer}post_attention_layernorm")
    return named
