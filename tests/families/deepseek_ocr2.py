"""Tiny DeepSeek-OCR 2 checkpoints: two sizes of squares, under the authors' names and under transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import RESCALING, save_byte_tokenizer, save_model, save_processor, write_json
from deepseek_ocr_shapes import mixture_shapes, sam_shapes, silence
from PIL import Image
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
CONTROL = [BEGIN, END, PAD, "<image>", "<|grounding|>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<td>", "</td>"]
IDS = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
WHOLE_PX, TILE_PX, PATCH_PX = 448, 312, 8
"""So that all of an image has more than 144 patches behind the convolutions, which ask for the second table."""
COUNTED_PX = 7
"""What transformers' processor takes for a patch, so that it counts the rows of the two tables: 16 and 12 squared."""


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "authors-names-one-global-layer": _config({}, {}, {}),
        "new-names-scaled-experts-another-table": _config(
            {
                "hidden_size": 48,
                "num_attention_heads": 6,
                "num_key_value_heads": 2,
                "mlp_layer_types": ["sparse", "dense", "sparse"],
                "num_hidden_layers": 3,
                "n_routed_experts": 3,
                "num_experts_per_tok": 1,
                "n_shared_experts": 1,
                "routed_scaling_factor": 1.7,
                "attention_bias": True,
                "topk_method": "group_limited_greedy",
                "n_group": 1,
                "topk_group": 1,
            },
            {"image_size": 224, "window_size": 5, "global_attn_indexes": [], "num_attention_heads": 3},
            {"hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 3, "rope_theta": 500.0},
        ),
    }


def _config(text: Config, sam: Config, encoder: Config) -> Config:
    words = {
        "model_type": "deepseek_ocr2_text",
        "hidden_size": 40,
        "intermediate_size": 56,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 2,
        "mlp_layer_types": ["dense", "sparse"],
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "n_routed_experts": 7,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "vocab_size": 256 + len(CONTROL) + 2,
        "max_position_embeddings": 2048,
        **IDS,
        **text,
    }
    tower = {
        "model_type": "deepseek_ocr2_sam_vision_model",
        "hidden_size": 12,
        "output_channels": 10,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "image_size": WHOLE_PX,
        "patch_size": PATCH_PX,
        "window_size": 14,
        "global_attn_indexes": [1],
        "mlp_dim": 20,
        **sam,
    }
    layers = {
        "model_type": "deepseek_ocr2_encoder",
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **encoder,
    }
    tower["downsample_channels"] = [14, layers["hidden_size"]]
    return {
        "architectures": ["DeepseekOcr2ForConditionalGeneration"],
        "model_type": "deepseek_ocr2",
        "image_token_id": 259,
        "tie_word_embeddings": False,
        "text_config": words,
        "vision_config": {"model_type": "deepseek_ocr2_vision", "sam_config": tower, "encoder_config": layers},
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a chat template, as published."""
    save_model(folder, config, _shapes(config))
    silence(folder, config["image_token_id"])
    write_json(folder / "generation_config.json", IDS)
    images = {
        "image_processor_type": "DeepseekOcr2ImageProcessor",
        "size": {"height": WHOLE_PX, "width": WHOLE_PX},
        "tile_size": TILE_PX,
        "background_color": [127, 127, 127],
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_resize": True,
        **RESCALING,
    }
    save_processor(folder, "DeepseekOcr2Processor", images, patch_size=COUNTED_PX)
    begins = BEGIN if config["text_config"]["n_shared_experts"] == 2 else None
    save_byte_tokenizer(folder, CONTROL, begins, bos_token=BEGIN, eos_token=END, pad_token=PAD)


def processor(folder: Path) -> Any:
    """Return transformers' processor, which knows no conversation."""
    from transformers import AutoTokenizer, DeepseekOcr2ImageProcessorPil, DeepseekOcr2Processor

    class ChattyProcessor(DeepseekOcr2Processor):  # type: ignore[misc]
        def apply_chat_template(self, messages: list[Config], **options: Any) -> str:
            parts = [part for message in messages for part in message["content"]]
            return "".join("<image>\n" if part["type"] == "image" else part["text"] for part in parts)

    images, tokenizer = DeepseekOcr2ImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return ChattyProcessor(images, tokenizer, patch_size=COUNTED_PX)


def conversations(given: dict[str, Any]) -> dict[str, list[str | Image.Image]]:
    """Return messages in one of which an image is larger than a tile."""
    large = given["two images"][3].resize((430, 250))
    return {**given, "two images": [*given["two images"][:3], large, " please."]}


def _shapes(config: Config) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    encoder, by_authors = vision["encoder_config"], text["num_hidden_layers"] == 2
    size = encoder["hidden_size"]
    layers = {
        name: shape
        for name, shape in decoder_shapes({**encoder, "model_type": "qwen2", "vocab_size": 1}, "").items()
        if "embed" not in name
    }
    tower = "model.vision_tower."
    shapes = mixture_shapes(text, "model.")  # transformers saves experts by the authors' names alone
    if by_authors:
        queries, behind = "model.qwen2_model.query_", "model.qwen2_model.model.model."
        shapes |= sam_shapes(vision["sam_config"], "model.sam_model.", by_authors=True)
        shapes |= linear_shapes("model.projector.layers", text["hidden_size"], size)
    else:
        queries, behind = f"{tower}query_", f"{tower}vision_encoder."
        shapes |= sam_shapes(vision["sam_config"], f"{tower}sam_encoder.", by_authors=False)
        shapes |= linear_shapes("model.multi_modal_projector", text["hidden_size"], size)
    ending = "" if by_authors else "_resolution"
    shapes |= {f"{queries}768{ending}.weight": (144, size), f"{queries}1024{ending}.weight": (256, size)}
    shapes |= {f"{behind}{name}": shape for name, shape in layers.items()}
    shapes[f"model.view_sep{'e' if by_authors else 'a'}rator"] = (text["hidden_size"],)
    return shapes | linear_shapes("lm_head", text["vocab_size"], text["hidden_size"], bias=False)
