"""Tiny BLIP-2 checkpoints: queries that look at the image in every other layer or in every third, OPT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blip_shapes import opt_shapes, qformer_shapes, tower_shapes
from checkpoints import CLIP_MEAN, CLIP_STD, RESCALING, save_byte_tokenizer, save_model, save_processor, write_json
from weight_shapes import Config, Shapes, linear_shapes

PAD, BOS, IMAGE = "<pad>", "</s>", "<image>"
CONTROL = [PAD, BOS, IMAGE]
IDS = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 257}


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "every-other-layer-tied": _config(),
        "every-third-layer-untied-heads-of-8": _config(
            {"hidden_size": 40, "num_attention_heads": 5, "ffn_dim": 56},
            {"hidden_size": 36, "num_attention_heads": 3, "patch_size": 6, "image_size": 30},
            {"num_hidden_layers": 4, "cross_attention_frequency": 3, "hidden_act": "gelu_new"},
            num_query_tokens=5,
            tie_word_embeddings=False,
        ),
    }


def _config(
    text: Config | None = None, vision: Config | None = None, queries: Config | None = None, **top: Any
) -> Config:
    is_tied = top.get("tie_word_embeddings", True)
    words = {"hidden_size": 48, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 3}
    more = {"vocab_size": 262, "max_position_embeddings": 512, "word_embed_proj_dim": (text or words)["hidden_size"]}
    sizes = {"intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
    image = {"hidden_size": 32, **sizes, "image_size": 16, "patch_size": 4}
    return {
        "architectures": ["Blip2ForConditionalGeneration"],
        "model_type": "blip-2",
        "image_token_index": 258,
        "num_query_tokens": 7,
        "tie_word_embeddings": is_tied,
        "text_config": {"model_type": "opt", **words, **more, **IDS, "tie_word_embeddings": is_tied, **(text or {})},
        "vision_config": {"model_type": "blip_2_vision_model", **image, **(vision or {})},
        "qformer_config": {"model_type": "blip_2_qformer", "hidden_size": 28, **sizes, **(queries or {})},
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
    save_processor(folder, "Blip2Processor", images, num_query_tokens=config["num_query_tokens"])
    save_byte_tokenizer(folder, CONTROL, begins_with=BOS, pad_token=PAD, bos_token=BOS, eos_token=BOS)


def processor(folder: Path) -> Any:
    """Return transformers' processor, which writes the tokens of one image and knows no conversation."""
    from transformers import AutoTokenizer, Blip2Processor, BlipImageProcessorPil

    config = json.loads((folder / "config.json").read_text())

    class ChatProcessor(Blip2Processor):  # type: ignore[misc]
        def apply_chat_template(self, messages: list[Config], **options: Any) -> str:
            (content,) = (message["content"] for message in messages)
            return f"Question: {''.join(part.get('text', '') for part in content)} Answer:"

        def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
            self.num_query_tokens = config["num_query_tokens"] * len(images or ())
            made = super().__call__(images, text, **options)
            if images is None:  # the model wants one, whose features then go nowhere
                side = config["vision_config"]["image_size"]
                made["pixel_values"] = made["input_ids"].new_zeros((1, 3, side, side)).float()
            return made

    return ChatProcessor(BlipImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def _shapes(config: Config) -> Shapes:
    text = config["text_config"]
    shapes = opt_shapes(text, "language_model.model.decoder.")
    if not config["tie_word_embeddings"]:
        shapes["language_model.lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    queries, width = config["qformer_config"], config["qformer_config"]["hidden_size"]
    shapes["query_tokens"] = (1, config["num_query_tokens"], width)
    shapes |= linear_shapes("language_projection", text["hidden_size"], width)
    shapes |= qformer_shapes(queries, config["vision_config"]["hidden_size"])
    return shapes | tower_shapes(config["vision_config"])
