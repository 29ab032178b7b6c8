"""Families of vision-language models: their tiny checkpoints, and transformers' model of the same weights."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.directory import Bundle, open_bundle
from export.exporter import export_checkpoint

FOLDER = Path(__file__).parent
FAMILIES = tuple(
    sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "conftest" and not path.stem.startswith("test_"))
)


@dataclass(frozen=True)
class Sample:
    """A tiny model of a family: its checkpoint, its bundles, and transformers' model and processor.

    Attributes:
        checkpoint: Folder.
        made: Where bundles go.
        family: The module of this folder that wrote it.
    """

    family: ModuleType
    checkpoint: Path
    made: Path

    @cached_property
    def model(self) -> Any:
        """Transformers' model, or the family's own way to it; a weight missing or left over is a ValueError."""
        import transformers

        if hasattr(self.family, "model"):
            return self.family.model(self.checkpoint)

        (name,) = json.loads((self.checkpoint / "config.json").read_text())["architectures"]
        model, found = getattr(transformers, name).from_pretrained(self.checkpoint, output_loading_info=True)
        if any(found.values()):
            raise ValueError(f"{self.checkpoint} is not what {name} wants: {found}")
        return model.eval()

    @cached_property
    def processor(self) -> Any:
        """Transformers' processor, on Pillow: the family's own way to it, or the usual one."""
        from transformers import AutoProcessor

        if hasattr(self.family, "processor"):
            return self.family.processor(self.checkpoint)
        return AutoProcessor.from_pretrained(self.checkpoint, backend="pil")

    def conversations(self, given: dict[str, Any]) -> dict[str, list[str | Image.Image]]:
        """Return messages that the family takes: those given, or its own in their place."""
        own = getattr(self.family, "conversations", None)
        return given if own is None else own(given)

    @property
    def takes_videos(self) -> bool:
        """Whether a prompt may have several images."""
        return getattr(self.family, "TAKES_VIDEOS", True)

    def bundle(self, dialect: str = "contrib") -> Bundle:
        """Return the bundle in a dialect, exported once."""
        folder = self.made / dialect
        if not folder.exists():
            export_checkpoint(self.checkpoint, folder, name="tiny", dialect=dialect)
        return open_bundle(folder)

    def inputs(self, parts: list[str | Image.Image], **options: Any) -> Any:
        """Return what transformers makes of one message, by the family's own way or the usual one."""
        if hasattr(self.family, "inputs"):
            return self.family.inputs(self.processor, parts)
        images = [part for part in parts if isinstance(part, Image.Image)]
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in parts
        ]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return self.processor(text=text, images=images or None, return_tensors="pt", **options)

    def logits(self, inputs: Any, answer: list[int]) -> np.ndarray:
        """Return [n + 1, V]: what transformers expects behind a prompt, and behind each token of an answer."""
        import torch

        ids = torch.cat([inputs["input_ids"], torch.tensor([answer], dtype=torch.long)], dim=1)
        more = {"attention_mask": torch.ones_like(ids)}
        for name in {"mm_token_type_ids", "token_type_ids", "image_embeds_position_mask"} & set(inputs):
            kind = getattr(self.family, "ANSWER_TYPE", 0)
            answered = torch.full((1, len(answer)), kind, dtype=inputs[name].dtype)
            more[name] = torch.cat([inputs[name], answered], dim=1)
        if hasattr(self.family, "attention_mask"):
            more["attention_mask"] = self.family.attention_mask(ids, len(answer))
        if (seen := inputs.get("cross_attention_mask")) is not None:  # an answer sees what the prompt's last token does
            more["cross_attention_mask"] = torch.cat([seen, seen[:, -1:].repeat(1, len(answer), 1, 1)], dim=1)
        with torch.no_grad():
            logits = self.model(**{**inputs, "input_ids": ids, **more}).logits
        found: np.ndarray = logits[0, -len(answer) - 1 :].float().numpy()
        return found


def module_of(family: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"family_{family}", FOLDER / f"{family}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def families(checkpoints: ModuleType) -> dict[str, ModuleType]:
    """The modules of this folder by family; `checkpoints` is what they import."""
    return {family: module_of(family) for family in FAMILIES}


@pytest.fixture(scope="session")
def sample_of(families: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the sample of a family in a geometry, counted from 0; made once."""
    made: dict[tuple[str, int], Sample] = {}

    def sample(family: str, number: int) -> Sample:
        if (family, number) not in made:
            folder = tmp_path_factory.mktemp(family)
            module = families[family]
            module.save(folder / "checkpoint", list(module.geometries().values())[number])
            made[family, number] = Sample(module, folder / "checkpoint", folder)
        return made[family, number]

    return sample


def picture(seed: int, width_px: int, height_px: int) -> Image.Image:
    """Return an image of smooth colours and some noise, so that places differ."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((width_px, height_px))
    noise = rng.integers(-20, 20, (height_px, width_px, 3))
    return Image.fromarray(np.clip(np.asarray(small).astype(int) + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def conversations() -> dict[str, list[str | Image.Image]]:
    """Messages about images of several shapes."""
    wide, tall, large = picture(1, 70, 37), picture(2, 33, 90), picture(3, 300, 260)
    return {
        "text": ["What is 2 + 2?"],
        "one image": [wide, "What is in it?"],
        "two images": ["Compare ", tall, " and ", large, " please."],
    }
