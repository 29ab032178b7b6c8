"""Tiny Unlimited-OCR checkpoints: windows that answers outgrow, in transformers' config and in the first published one.

transformers' model is run as it generates: the prompt in one run, an answer's tokens one by one, which alone have
windows. Its image processor wants torchvision; where images are padded it is DeepSeek-OCR 2's, which runs on Pillow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoints import RESCALING, save_byte_tokenizer, save_model, save_processor, write_json
from deepseek_ocr_shapes import clip_layers_shapes, mixture_shapes, sam_shapes, silence
from PIL import Image
from weight_shapes import Config, Shapes, linear_shapes

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
CONTROL = [BEGIN, END, PAD, "<image>", "<|det|>", "<|/det|>"]
IDS = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
WHOLE_PX, TILE_PX, PATCH_PX = 256, 160, 16
OF_ANSWER = 2
"""In a mask: a token that was generated."""


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "one-layer-without-window": _config(
            {
                "sliding_window": 9,
                "layer_types": ["reference_sliding_attention", "full_attention", "reference_sliding_attention"],
            },
            {},
        ),
        "first-published-layout": _older(
            _config(
                {
                    "hidden_size": 32,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "mlp_layer_types": ["dense", "sparse", "sparse"],
                    "sliding_window": 5,
                },
                {"global_attn_indexes": [0, 1], "image_size": 192, "num_attention_heads": 3},
            )
        ),
    }


def _config(text: Config, sam: Config) -> Config:
    words = {
        "model_type": "unlimited_ocr_text",
        "hidden_size": 40,
        "intermediate_size": 56,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 3,
        "mlp_layer_types": ["sparse", "dense", "sparse"],
        "layer_types": ["reference_sliding_attention"] * 3,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "n_routed_experts": 5,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "vocab_size": 256 + len(CONTROL) + 2,
        "max_position_embeddings": 1024,
        **IDS,
        **text,
    }
    tower = {
        "model_type": "unlimited_ocr_sam_vision_model",
        "hidden_size": 24,
        "output_channels": 10,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": WHOLE_PX,
        "patch_size": PATCH_PX,
        "window_size": 7,
        "global_attn_indexes": [1],
        "mlp_dim": 20,
        "downsample_channels": [14, 32],
        **sam,
    }
    layers = {
        "model_type": "unlimited_ocr_vision_encoder",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
    }
    return {
        "architectures": ["UnlimitedOcrForConditionalGeneration"],
        "model_type": "unlimited_ocr",
        "image_token_id": 259,
        "tie_word_embeddings": False,
        "text_config": words,
        "vision_config": {"model_type": "unlimited_ocr_vision", "sam_config": tower, "encoder_config": layers},
    }


def _older(config: Config) -> Config:
    """Return a config whose decoder's part has the authors' key, with its window beside it, and layers of one kind."""
    text = {key: value for key, value in config["text_config"].items() if key not in ("layer_types", "mlp_layer_types")}
    window = text.pop("sliding_window")
    rest = {key: value for key, value in config.items() if key != "text_config"}
    return {**rest, "language_config": {**text, "first_k_dense_replace": 1}, "sliding_window": window}


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a chat template."""
    save_model(folder, config, _shapes(config))
    silence(folder, config["image_token_id"])
    write_json(folder / "generation_config.json", IDS)
    images = {
        "image_processor_type": "UnlimitedOcrImageProcessor",
        "size": {"height": WHOLE_PX, "width": WHOLE_PX},
        "tile_size": TILE_PX,
        "max_patches": 5,
        "background_color": [127, 127, 127],
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_resize": True,
        **RESCALING,
    }
    save_processor(folder, "UnlimitedOcrProcessor", images)
    save_byte_tokenizer(folder, CONTROL, BEGIN, bos_token=BEGIN, eos_token=END, pad_token=PAD)


def model(folder: Path) -> Any:
    """Return transformers' model, as it generates."""
    import torch
    from transformers import DynamicCache, UnlimitedOcrForConditionalGeneration

    own = UnlimitedOcrForConditionalGeneration
    found, told = own.from_pretrained(folder, output_loading_info=True)
    left = {key: value for key, value in told.items() if value}
    if left:
        raise ValueError(f"{folder} is not what transformers' model wants: {left}")
    found.eval()

    class Generating:
        def __call__(self, input_ids: Any, attention_mask: Any, **images: Any) -> Any:
            first = int((attention_mask[0] != OF_ANSWER).sum())
            cache = DynamicCache(config=found.config.get_text_config())
            given = found(input_ids=input_ids[:, :first], past_key_values=cache, use_cache=True, **images)
            logits = [given.logits]
            for at in range(first, input_ids.shape[1]):
                step = found(input_ids=input_ids[:, at : at + 1], past_key_values=cache, use_cache=True)
                logits.append(step.logits)
            given.logits = torch.cat(logits, dim=1)
            return given

    return Generating()


def attention_mask(ids: Any, num_answered: int) -> Any:
    """Return a mask that tells an answer's tokens."""
    import torch

    mask = torch.ones_like(ids)
    mask[:, ids.shape[1] - num_answered :] = OF_ANSWER
    return mask


def processor(folder: Path) -> Any:
    """Return transformers' processor, which knows no conversation, before an image processor on Pillow."""
    from transformers import AutoTokenizer, DeepseekOcr2ImageProcessorPil, UnlimitedOcrProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    class WithGrids(DeepseekOcr2ImageProcessorPil):  # type: ignore[misc]
        def preprocess(self, images: Any, **options: Any) -> Any:
            found, tile = super().preprocess(images, **options), self.tile_size
            grids = []
            for image in images:
                cols, rows = get_optimal_tiled_canvas(
                    image.size[::-1], (tile, tile), self.min_patches, self.max_patches
                )
                grids.append([cols, rows] if max(image.size) > tile else [1, 1])
            found["patches_grid"] = grids
            found["num_local_patches"] = [int(each) for each in found["num_local_patches"]]
            return found

    class ChattyProcessor(UnlimitedOcrProcessor):  # type: ignore[misc]
        def apply_chat_template(self, messages: list[Config], **options: Any) -> str:
            parts = [part for message in messages for part in message["content"]]
            return "".join("<image>\n" if part["type"] == "image" else part["text"] for part in parts)

        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return type(argument)

    return ChattyProcessor(WithGrids.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def conversations(given: dict[str, Any]) -> dict[str, list[str | Image.Image]]:
    """Return messages in one of which an image is larger than a tile."""
    large = given["two images"][3].resize((300, 210))
    return {**given, "two images": [*given["two images"][:3], large, " please."]}


def _shapes(config: Config) -> Shapes:
    text, vision = config.get("text_config") or config["language_config"], config["vision_config"]
    clip, size = vision["encoder_config"], text["hidden_size"]
    kinds = text.get("mlp_layer_types") or ["dense", "sparse", "sparse"]
    shapes = mixture_shapes({**text, "mlp_layer_types": kinds}, "model.")
    shapes |= sam_shapes(vision["sam_config"], "model.sam_model.", by_authors=True)
    shapes |= clip_layers_shapes(clip, "model.vision_model.")
    shapes |= linear_shapes("model.projector.layers", size, 2 * clip["hidden_size"])
    shapes |= {"model.image_newline": (size,), "model.view_seperator": (size,)}
    return shapes | linear_shapes("lm_head", text["vocab_size"], size, bias=False)
