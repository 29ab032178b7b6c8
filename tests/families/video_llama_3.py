"""Tiny VideoLLaMA 3 checkpoints: angles and no learned positions, a patch for each token or for four, Qwen2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import (
    BOS,
    CONTROL_IDS,
    EOS,
    PAD,
    RESCALING,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, tower_shapes

IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
CONTROL = [PAD, BOS, EOS, IMAGE, VIDEO]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|image_pad|>\n{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them; how many patches a token has is of the processor."""
    return {
        "three-heads-tied-a-token-a-patch": _config({}, {}, tie_word_embeddings=True),
        "untied-other-angles-four-patches-a-token": _config(
            {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
            {
                "num_attention_heads": 2,
                "hidden_size": 40,
                "patch_size": 6,
                "rope_parameters": {"rope_type": "axial", "rope_theta": 300.0},
            },
        ),
    }


def _config(text: Config, vision: Config, **top: Any) -> Config:
    words = {
        "model_type": "qwen2",
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "vocab_size": 256 + len(CONTROL) + 2,
        "max_position_embeddings": 1024,
        **CONTROL_IDS,
        **text,
    }
    tower = {
        "model_type": "video_llama_3_vision",
        "hidden_size": 36,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "patch_size": 8,
        **vision,
    }
    return {
        "architectures": ["VideoLlama3ForConditionalGeneration"],
        "model_type": "video_llama_3",
        "image_token_id": 259,
        "video_token_id": 260,
        "text_config": words,
        "vision_config": tower,
        **top,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    images = {
        "image_processor_type": "VideoLlama3ImageProcessor",
        "size": {"shortest_edge": 24 * 24, "longest_edge": 64 * 64},
        "patch_size": config["vision_config"]["patch_size"],
        "resample": 3,
        "do_resize": True,
        **RESCALING,
    }
    merged = {} if config.get("tie_word_embeddings") else {"merge_size": 2}
    save_processor(folder, "VideoLlama3Processor", {**images, **merged})
    save_byte_tokenizer(folder, CONTROL, pad_token=PAD, eos_token=EOS)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def processor(folder: Path) -> Any:
    """Return transformers' processor without its part for videos, which wants torchvision."""
    import json

    from transformers import AutoTokenizer, VideoLlama3Processor
    from transformers.models.video_llama_3.image_processing_pil_video_llama_3 import VideoLlama3ImageProcessorPil

    class StillProcessor(VideoLlama3Processor):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    stated = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    return StillProcessor(
        VideoLlama3ImageProcessorPil(**stated), AutoTokenizer.from_pretrained(folder), chat_template=TEMPLATE
    )


def _shapes(config: Config) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    shapes = decoder_shapes(text, "model.language_model.")
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    tower = tower_shapes({**vision, "image_size": vision["patch_size"]}, "model.vision_model.")
    shapes |= {name: shape for name, shape in tower.items() if "position" not in name}
    shapes |= linear_shapes("model.projector.readout.0", text["hidden_size"], vision["hidden_size"])
    return shapes | linear_shapes("model.projector.readout.2", text["hidden_size"], text["hidden_size"])
