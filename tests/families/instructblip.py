"""Tiny InstructBLIP checkpoints: queries beside the words of a question, before an OPT or a Llama."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_lowercase, digits, punctuation
from typing import Any

from blip_shapes import opt_shapes, qformer_shapes, tower_shapes
from checkpoints import CLIP_MEAN, CLIP_STD, RESCALING, save_byte_tokenizer, save_model, save_processor, write_json
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes

PAD, BOS, IMAGE = "<pad>", "</s>", "<image>"
CONTROL = [PAD, BOS, IMAGE]
IDS = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 257}
WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *(f"{before}{letter}" for before in ("", "##") for letter in ascii_lowercase),
    *digits,
    *punctuation,
]
QUESTION_FOLDER = "qformer_tokenizer"


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "opt-every-other-layer": _config({"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 48}),
        "llama-every-third-layer-shared-keys": _config(
            {"model_type": "llama", "intermediate_size": 56, "num_key_value_heads": 1, "tie_word_embeddings": False},
            {"hidden_size": 36, "num_attention_heads": 3, "patch_size": 6, "image_size": 30},
            {"num_hidden_layers": 4, "cross_attention_frequency": 3, "vocab_size": len(WORDS) + 9},
            num_query_tokens=5,
        ),
    }


def _config(text: Config, vision: Config | None = None, queries: Config | None = None, **top: Any) -> Config:
    words = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3}
    more = {"vocab_size": 262, "max_position_embeddings": 512, **IDS}
    sizes = {"intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
    image = {"hidden_size": 32, **sizes, "image_size": 16, "patch_size": 4}
    read = {"hidden_size": 28, **sizes, "vocab_size": len(WORDS), "max_position_embeddings": 48}
    return {
        "architectures": ["InstructBlipForConditionalGeneration"],
        "model_type": "instructblip",
        "image_token_index": 258,
        "num_query_tokens": 7,
        "text_config": {**words, **more, **text},
        "vision_config": {"model_type": "instructblip_vision_model", **image, **(vision or {})},
        "qformer_config": {"model_type": "instructblip_qformer", **read, **(queries or {})},
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a chat template, as published."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", IDS)
    side = config["vision_config"]["image_size"]
    images = {
        "image_processor_type": "BlipImageProcessor",
        "size": {"height": side, "width": side},
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_resize": True,
        **RESCALING,
    }
    save_processor(folder, "InstructBlipProcessor", images, num_query_tokens=config["num_query_tokens"])
    save_byte_tokenizer(folder, CONTROL, begins_with=BOS, pad_token=PAD, bos_token=BOS, eos_token=BOS)
    _save_question_tokenizer(folder / QUESTION_FOLDER)


def _save_question_tokenizer(folder: Path) -> None:
    """Write BERT's tokenizer with letters for words."""
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.add_special_tokens(WORDS[:5])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), WORDS[:5], strict=True))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **named})


def processor(folder: Path) -> Any:
    """Return transformers' processor, which writes the tokens of one image and knows no conversation."""
    from transformers import AutoTokenizer, BlipImageProcessorPil, InstructBlipProcessor

    config = json.loads((folder / "config.json").read_text())

    class ChatProcessor(InstructBlipProcessor):  # type: ignore[misc]
        def apply_chat_template(self, messages: list[Config], **options: Any) -> str:
            (content,) = (message["content"] for message in messages)
            return "".join(part.get("text", "") for part in content)

        def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
            self.num_query_tokens = config["num_query_tokens"] * len(images or ())
            made = super().__call__(images, text, **options)
            if images is None:  # the model wants one, whose features then go nowhere
                side = config["vision_config"]["image_size"]
                made["pixel_values"] = made["input_ids"].new_zeros((1, 3, side, side)).float()
            for name in ("qformer_input_ids", "qformer_attention_mask"):  # the model wants a question for each image
                made[name] = made[name].repeat(len(made["pixel_values"]), 1)
            return made

    words = AutoTokenizer.from_pretrained(folder / QUESTION_FOLDER)
    images = BlipImageProcessorPil.from_pretrained(folder)
    return ChatProcessor(images, AutoTokenizer.from_pretrained(folder), words)


def _shapes(config: Config) -> Shapes:
    text, queries = config["text_config"], config["qformer_config"]
    if text["model_type"] == "opt":
        shapes = opt_shapes(text, "language_model.model.decoder.")
    else:
        shapes = decoder_shapes(text, "language_model.model.")
        shapes["language_model.lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    shapes["query_tokens"] = (1, config["num_query_tokens"], queries["hidden_size"])
    shapes |= linear_shapes("language_projection", text["hidden_size"], queries["hidden_size"])
    shapes |= qformer_shapes(queries, config["vision_config"]["hidden_size"], reads=True)
    return shapes | tower_shapes(config["vision_config"])
