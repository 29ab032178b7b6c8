"""Tiny KOSMOS-2 checkpoints: queries that look once, norms within layers, tokens of boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from checkpoints import CLIP_MEAN, CLIP_STD, RESCALING, save_byte_tokenizer, save_model, save_processor, write_json
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes, tower_shapes

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
NUM_PLACES = 16
TAGS = ["</doc>", "<image>", "</image>", "</chunk>", "</line>", "<phrase>", "</phrase>", "<object>", "</object>"]
TAGS += ["</delimiter_of_multi_objects/>", "<grounding>", *(f"<patch_index_{n:04}>" for n in range(NUM_PLACES))]
IDS = {"pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
PLACE_ID = 260 + TAGS.index("</chunk>")


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "tied-not-scaled": _config({"scale_embedding": False, "layers": 6}),
        "untied-scaled-heads-of-8": _config(
            {"embed_dim": 40, "attention_heads": 5, "ffn_dim": 56, "activation_function": "gelu_new"},
            {"hidden_size": 36, "num_attention_heads": 3, "patch_size": 6, "image_size": 30},
            latent_query_num=3,
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config | None = None, vision: Config | None = None, **top: Any) -> Config:
    is_tied = top.get("tie_word_embeddings", True)
    words = {"embed_dim": 48, "ffn_dim": 72, "layers": 3, "attention_heads": 3, "max_position_embeddings": 512}
    image = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
    return {
        "architectures": ["Kosmos2ForConditionalGeneration"],
        "model_type": "kosmos-2",
        "latent_query_num": 5,
        "tie_word_embeddings": is_tied,
        "text_config": {
            "model_type": "kosmos_2_text_model",
            "vocab_size": 260 + len(TAGS) + 3,
            "tie_word_embeddings": is_tied,
            **IDS,
            **words,
            **(text or {}),
        },
        "vision_config": {
            "model_type": "kosmos_2_vision_model",
            "image_size": 16,
            "patch_size": 4,
            **image,
            **(vision or {}),
        },
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a chat template, as published."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", IDS)
    side = config["vision_config"]["image_size"]
    images = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_resize": True,
        **RESCALING,
    }
    save_processor(folder, "Kosmos2Processor", images)
    named = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS, "unk_token": UNKNOWN}
    save_byte_tokenizer(folder, [PAD, BOS, EOS, UNKNOWN, *TAGS], **named)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    for token in content["added_tokens"]:
        token["lstrip"] = token["content"] in TAGS
    path.write_text(json.dumps(content))


def processor(folder: Path) -> Any:
    """Return transformers' processor, which takes one image and one text, and writes words where images are."""
    import torch
    from transformers import AutoTokenizer, CLIPImageProcessorPil, Kosmos2Processor

    config = json.loads((folder / "config.json").read_text())

    class ChatProcessor(Kosmos2Processor):  # type: ignore[misc]
        num_image_tokens = config["latent_query_num"]
        first_image_token_id = 0

        def apply_chat_template(self, messages: list[Config], **options: Any) -> str:
            (content,) = (message["content"] for message in messages)
            return "".join(part.get("text", "") for part in content)

        def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
            made = super().__call__((images or [None])[0], text, **{"return_tensors": "pt", **options})
            if images is None:
                made["image_embeds"] = torch.zeros(1, 0, config["text_config"]["embed_dim"])
                made["image_embeds_position_mask"] = torch.zeros_like(made["input_ids"])
                return made
            for image in images[1:]:  # as it writes the first one, before that
                one, made = made, super().__call__(image, text, return_tensors="pt")
                end = 3 + self.num_image_tokens
                for name in ("input_ids", "image_embeds_position_mask", "attention_mask"):
                    made[name] = torch.cat([one[name][:, :end], made[name][:, 1:]], dim=1)
                made["pixel_values"] = torch.cat([one["pixel_values"], made["pixel_values"]])
            made["input_ids"][made["image_embeds_position_mask"].bool()] = PLACE_ID
            return made

    images = CLIPImageProcessorPil.from_pretrained(folder)
    return ChatProcessor(images, AutoTokenizer.from_pretrained(folder), NUM_PLACES)


def _shapes(config: Config) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    width, inner = text["embed_dim"], text["ffn_dim"]
    shapes: Shapes = {"text_model.model.embed_tokens.weight": (text["vocab_size"], width)}
    shapes |= norm_shapes(width, "text_model.model.layer_norm")
    if not config["tie_word_embeddings"]:
        shapes["text_model.lm_head.weight"] = (text["vocab_size"], width)
    for layer in (f"text_model.model.layers.{number}." for number in range(text["layers"])):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear_shapes(f"{layer}self_attn.{name}", width, width)
        shapes |= linear_shapes(f"{layer}ffn.fc1", inner, width) | linear_shapes(f"{layer}ffn.fc2", width, inner)
        norms = ("self_attn.inner_attn_ln", "self_attn_layer_norm", "final_layer_norm")
        shapes |= norm_shapes(width, *(f"{layer}{name}" for name in norms))
        shapes |= norm_shapes(inner, f"{layer}ffn.ffn_layernorm")
    connector = "image_to_text_projection."
    shapes[f"{connector}latent_query"] = (config["latent_query_num"], width)
    shapes |= linear_shapes(f"{connector}dense", width, vision["hidden_size"])
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= linear_shapes(f"{connector}x_attn.{name}", width, width)
    return shapes | tower_shapes({**vision, "model_type": "clip_vision_model"}, "vision_model.model.")
