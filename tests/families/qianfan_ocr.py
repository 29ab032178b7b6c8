"""Tiny Qianfan-OCR checkpoints: InternVL's parts under the names of their authors and of transformers, Qwen3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import (
    BOS,
    CLIP_MEAN,
    CLIP_STD,
    CONTROL_IDS,
    EOS,
    PAD,
    RESCALING,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, norm_shapes

IMAGE, START, END, PLACE = "<IMG_CONTEXT>", "<img>", "</img>", "<COORD_7>"
CONTROL = [PAD, BOS, EOS, IMAGE, START, END, PLACE]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIDE_PX, PATCH_PX = 16, 4


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "authors-names-packed-projections": _config({}, {}),
        "transformers-names-tied-norm-behind-no-biases": _config(
            {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 44},
            {
                "attention_bias": False,
                "use_qk_norm": True,
                "use_mean_pooling": False,
                "norm_type": "rms_norm",
                "image_size": [SIDE_PX, SIDE_PX],
                "patch_size": [PATCH_PX, PATCH_PX],
            },
            tie_word_embeddings=True,
            downsample_ratio=0.25,
            image_seq_length=1,
        ),
    }


def _config(text: Config, vision: Config, **top: Any) -> Config:
    words = {
        "model_type": "qwen3",
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 256 + len(CONTROL) + 3,
        "max_position_embeddings": 512,
        **CONTROL_IDS,
        **text,
    }
    tower = {
        "model_type": "qianfan_ocr_vision",
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "patch_size": PATCH_PX,
        "image_size": SIDE_PX,
        **vision,
    }
    return {
        "architectures": ["QianfanOCRForConditionalGeneration"],
        "model_type": "qianfan_ocr",
        "image_token_id": 259,
        "image_seq_length": 4,
        "downsample_ratio": 0.5,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32; the authors' names of weights where biases are left out."""
    save_model(folder, config, shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    images = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "size": {"height": SIDE_PX, "width": SIDE_PX},
        "crop_to_patches": False,  # the processor overrides it
        "min_patches": 1,
        "max_patches": 5,
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_resize": True,
        **RESCALING,
    }
    save_processor(folder, "QianfanOCRProcessor", images, image_seq_length=config["image_seq_length"])
    named = {"start_image_token": START, "end_image_token": END, "context_image_token": IMAGE}
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, eos_token=EOS, extra_special_tokens=named)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def shapes(config: Config) -> Shapes:
    """Name every weight."""
    text, vision = config["text_config"], config["vision_config"]
    is_published = not config.get("tie_word_embeddings", False)
    before = "language_model.model." if is_published else "model.language_model."
    found = decoder_shapes({**text, "model_type": "llama"}, before)
    for number in range(text["num_hidden_layers"]):
        attention = f"{before}layers.{number}.self_attn"
        found |= {f"{attention}.{name}_norm.weight": (text["head_dim"],) for name in "qk"}
    width = vision["hidden_size"] * round(1 / config["downsample_ratio"]) ** 2
    connector = "mlp1" if is_published else "model.multi_modal_projector"
    norm, first, last = ("0", "1", "3") if is_published else ("layer_norm", "linear_1", "linear_2")
    found |= norm_shapes(width, f"{connector}.{norm}")
    found |= linear_shapes(f"{connector}.{first}", text["hidden_size"], width)
    found |= linear_shapes(f"{connector}.{last}", text["hidden_size"], text["hidden_size"])
    if is_published:
        found["language_model.lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
        return found | _published_tower(vision)
    return found | _tower(vision)


def _published_tower(vision: Config) -> Shapes:
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    embeddings = "vision_model.embeddings."
    shapes: Shapes = {
        f"{embeddings}class_embedding": (1, 1, width),
        f"{embeddings}position_embedding": (1, (SIDE_PX // PATCH_PX) ** 2 + 1, width),
        f"{embeddings}patch_embedding.weight": (width, 3, PATCH_PX, PATCH_PX),
        f"{embeddings}patch_embedding.bias": (width,),
    }
    for layer in (f"vision_model.encoder.layers.{number}." for number in range(vision["num_hidden_layers"])):
        shapes |= linear_shapes(f"{layer}attn.qkv", 3 * width, width)
        shapes |= linear_shapes(f"{layer}attn.proj", width, width)
        shapes |= linear_shapes(f"{layer}mlp.fc1", inner, width) | linear_shapes(f"{layer}mlp.fc2", width, inner)
        shapes |= norm_shapes(width, f"{layer}norm1", f"{layer}norm2") | {f"{layer}ls{at}": (width,) for at in (1, 2)}
    return shapes


def _tower(vision: Config) -> Shapes:
    width, inner, before = vision["hidden_size"], vision["intermediate_size"], "model.vision_tower."
    shapes: Shapes = {
        f"{before}embeddings.cls_token": (1, 1, width),
        f"{before}embeddings.position_embeddings": (1, (SIDE_PX // PATCH_PX) ** 2 + 1, width),
        f"{before}embeddings.patch_embeddings.projection.weight": (width, 3, PATCH_PX, PATCH_PX),
        f"{before}embeddings.patch_embeddings.projection.bias": (width,),
    }
    shapes |= norm_shapes(width, f"{before}layernorm")
    for layer in (f"{before}layers.{number}." for number in range(vision["num_hidden_layers"])):
        for name in ("q_proj", "k_proj", "v_proj"):
            shapes |= linear_shapes(f"{layer}attention.{name}", width, width, bias=False)
        shapes |= linear_shapes(f"{layer}attention.projection_layer", width, width)
        shapes |= {f"{layer}attention.{name}_norm.weight": (width,) for name in "qk"}
        shapes |= linear_shapes(f"{layer}mlp.fc1", inner, width) | linear_shapes(f"{layer}mlp.fc2", width, inner)
        shapes |= {f"{layer}lambda_{at}": (width,) for at in (1, 2)}
        shapes |= {f"{layer}layernorm_{side}.weight": (width,) for side in ("before", "after")}
    return shapes
