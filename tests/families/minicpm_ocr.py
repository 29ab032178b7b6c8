"""Tiny MiniCPM-OCR checkpoints: MiniCPM-V 4.6's with other defaults, small images made larger and left as they are."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from weight_shapes import Config


def _sibling() -> ModuleType:
    """Return MiniCPM-V 4.6's family, which is loaded behind this one."""
    import family_minicpmv4_6

    found: ModuleType = family_minicpmv4_6
    return found


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    first, second = (dict(config) for config in _sibling().geometries().values())
    own = {"model_type": "minicpm_ocr", "architectures": ["MiniCPMOcrForConditionalGeneration"]}
    del second["downsample_mode"], second["tie_word_embeddings"]
    return {
        "defaults-small-images-as-they-are": {**_of_ocr(second), **own},
        "merged-patches-untied": {**_of_ocr(first), **own, "downsample_mode": "16x"},
    }


def _of_ocr(config: Config) -> Config:
    return {**config, "vision_config": {**config["vision_config"], "model_type": "minicpm_ocr_vision"}}


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    mode, is_tied = config.get("downsample_mode", "4x"), config.get("tie_word_embeddings", True)
    _sibling().save(folder, {**config, "downsample_mode": mode, "tie_word_embeddings": is_tied})
    _change(folder / "config.json", lambda found: {key: found[key] for key in (*config, "dtype")})
    upsize = {} if mode == "16x" else {"small_image_upsize": "never"}
    own = {"image_processor_type": "MiniCPMOcrImageProcessor", **upsize}
    _change(
        folder / "processor_config.json",
        lambda found: {
            **found,
            "processor_class": "MiniCPMOcrProcessor",
            "image_processor": {**found["image_processor"], **own},
        },
    )


def _change(file: Path, change: Any) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def processor(folder: Path) -> Any:
    """Return transformers' processor, before MiniCPM-V 4.6's image processor on Pillow: its own wants torchvision."""
    from transformers import AutoTokenizer, MiniCPMOcrProcessor
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil
    from transformers.processing_utils import ProcessorMixin

    settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    is_never, template = settings.pop("small_image_upsize", "always") == "never", _sibling().TEMPLATE

    class OcrImages(MiniCPMV4_6ImageProcessorPil):  # type: ignore[misc]
        def find_best_resize(self, image_size: Any, *args: Any, allow_upscale: bool = False, **options: Any) -> Any:
            is_slice = isinstance(image_size[0], float)  # a part of an image, whose sides are quotients
            grows = allow_upscale and (is_slice or not is_never)
            return super().find_best_resize(image_size, *args, allow_upscale=grows, **options)

    class StillProcessor(MiniCPMOcrProcessor):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

        def __init__(self, images: Any, tokenizer: Any) -> None:
            """Take what the class takes of its parts, videos aside."""
            ProcessorMixin.__init__(self, images, tokenizer, chat_template=template)
            self.slice_mode, self.default_use_image_id = images.slice_mode, images.use_image_id
            for name in _sibling().NAMED:
                setattr(self, name, getattr(tokenizer, name))
            self.image_token_id, self.video_token_id = tokenizer.image_token_id, tokenizer.video_token_id

    kind = settings.pop("image_processor_type")
    assert kind == "MiniCPMOcrImageProcessor"
    return StillProcessor(OcrImages(**settings), AutoTokenizer.from_pretrained(folder))
