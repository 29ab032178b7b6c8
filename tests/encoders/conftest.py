"""Families of dual encoders: their tiny checkpoints, and transformers' model of the same weights."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
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


STORED = ("images", "texts", "logits")


@dataclass(frozen=True)
class Stored:
    """An array that is asked for as a tensor is."""

    array: np.ndarray

    def numpy(self) -> np.ndarray:
        return self.array


@dataclass(frozen=True)
class Expected:
    """What transformers makes of images and texts.

    Attributes:
        inputs: By its processor.
        images: [I, E] unit vectors.
        texts: [B, E] unit vectors.
        logits: [I, B].
    """

    inputs: Any
    images: np.ndarray
    texts: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class Sample:
    """A tiny model of a family: its checkpoint, its bundles, and transformers' model and processor.

    Attributes:
        family: The module of this folder that wrote it.
        config: Of the checkpoint.
        checkpoint: Folder.
        made: Where bundles go.
    """

    family: ModuleType
    config: dict[str, Any]
    checkpoint: Path
    made: Path

    @property
    def texts(self) -> list[str]:
        """What is embedded: the usual texts, or the family's for this config."""
        of_family = getattr(self.family, "texts", lambda config: None)
        return of_family(self.config) or sys.modules["encoder_files"].TEXTS

    @cached_property
    def model(self) -> Any:
        """Transformers' model, or the family's own; a weight that is missing or left over is a ValueError."""
        import transformers

        if hasattr(self.family, "model"):
            return self.family.model(self.checkpoint)

        (name,) = self.config["architectures"]
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

    def expected(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Expected:
        """Return what transformers makes of them, by the family's own way or by processor and model.

        Of a family that is no model of transformers', what its own library made of `pictures` and `TEXTS` is stored.
        """
        if hasattr(self.family, "stored"):
            with np.load(self.family.stored(self.config)) as stored:
                return Expected({key: Stored(stored[key]) for key in stored}, *map(stored.get, STORED))
        import torch

        padding = getattr(self.family, "PADDING", True)
        seen = [image.convert("RGB") for image in images]  # as some classes leave to their callers
        inputs = self.processor(images=seen, text=list(texts), padding=padding, return_tensors="pt")
        with torch.no_grad():
            if hasattr(self.family, "expected"):
                found = self.family.expected(self.model, inputs)
            else:
                given = self.model(**inputs)
                found = given.image_embeds, given.text_embeds, given.logits_per_image
        of_images, of_texts, logits = (each.numpy() for each in found)
        return Expected(inputs, unit(of_images), unit(of_texts), logits)

    def bundle(self, dialect: str = "contrib") -> Bundle:
        """Return the bundle in a dialect, exported once."""
        folder = self.made / dialect
        if not folder.exists():
            with pytest.MonkeyPatch.context() as patch:
                getattr(self.family, "patches", lambda _: None)(patch)
                export_checkpoint(self.checkpoint, folder, name="tiny", dialect=dialect)
        return open_bundle(folder)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def module_at(path: Path, name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def encoder_files(checkpoints: ModuleType) -> ModuleType:
    """The functions of tests/encoder_files.py, which import what `checkpoints` imported."""
    return module_at(FOLDER.parent / "encoder_files.py", "encoder_files")


@pytest.fixture(scope="session")
def family_of(encoder_files: ModuleType) -> Any:
    """Return the module of this folder of a family; open_clip's may be imported by others."""
    module_at(FOLDER / "open_clip.py", "encoder_open_clip")
    return lambda family: module_at(FOLDER / f"{family}.py", f"encoder_{family}")


@pytest.fixture(scope="session")
def sample_of(family_of: Any, encoder_files: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the sample of a family in a geometry, counted from 0; made once."""
    made: dict[tuple[str, int], Sample] = {}

    def sample(family: str, number: int) -> Sample:
        if (family, number) not in made:
            folder = tmp_path_factory.mktemp(family)
            module = family_of(family)
            config = module.geometries()[number]
            write_checkpoint(encoder_files, module, folder / "checkpoint", config)
            made[family, number] = Sample(module, config, folder / "checkpoint", folder)
        return made[family, number]

    return sample


def write_checkpoint(files: ModuleType, family: ModuleType, folder: Path, config: dict[str, Any]) -> None:
    save = getattr(family, "save_model", files.save_model)
    save(folder, json.loads(json.dumps(config)))
    family.save_processor(folder, config)
