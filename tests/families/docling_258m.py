"""Tiny checkpoints of Granite Docling 258M and SmolDocling: Idefics3 whose vocabulary has the markup of documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import (
    CONTROL,
    CONTROL_IDS,
    MARKERS,
    NAMED,
    RESCALING,
    save_byte_tokenizer,
    save_model,
    save_processor,
    smolvlm_config,
    write_json,
)
from weight_shapes import Config, smolvlm_shapes

ROLES = ["<|start_of_role|>", "<|end_of_role|>"]
MARKUP = ["<doctag>", "</doctag>", "<text>", "</text>", "<otsl>", "<fcel>", "<nl>", "<section_header_level_1>"]
PLACES = [f"<loc_{place}>" for place in range(8)]
SPECIALS = [*CONTROL, *MARKERS, *ROLES, *MARKUP, *PLACES]
# as published: roles between tokens of their own
TEMPLATE = (
    "{%- for message in messages -%}{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'text' -%}{{- part['text'] -}}"
    "{%- elif part['type'] == 'image' -%}{{- '<image>' -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{- '<end_of_utterance>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_of_role|>assistant<|end_of_role|>' -}}{%- endif -%}"
)


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0}}
    return {
        "tied-in-tiles-a-head-size-of-its-own": _config({"head_dim": 16, "rope_theta": 100_000.0}),
        "untied-factor-4": _config(
            {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, **rope},
            scale_factor=4,
            tie_word_embeddings=False,
        ),
    }


def _config(text: Config, **top: Any) -> Config:
    # keys of published files that change nothing
    dead = {"use_base_siglip": False, "size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    return {
        **smolvlm_config({"vocab_size": 256 + len(SPECIALS), **text}, {"model_type": "idefics3_vision", **dead}, **top),
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "vocab_size": 256 + len(SPECIALS),
        **CONTROL_IDS,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, smolvlm_shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    vision = config["vision_config"]
    images = {
        "image_processor_type": "Idefics3ImageProcessor",
        "do_resize": True,
        "size": vision["size"],
        "do_image_splitting": True,
        "max_image_size": vision["max_image_size"],
        "resample": 1,
        "do_pad": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        **RESCALING,
    }
    grid = vision["image_size"] // vision["patch_size"] // config["scale_factor"]
    save_processor(folder, "Idefics3Processor", images, image_seq_len=grid**2)
    save_byte_tokenizer(folder, SPECIALS, extra_special_tokens=SPECIALS[3:], **NAMED)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
