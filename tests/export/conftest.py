"""The graphs of a bundle run by ONNX Runtime, as an engine would, and transformers' own models of checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from bundle.directory import read_manifest

Array = npt.NDArray[np.generic]


class Bundle:
    """A bundle's graphs, opened when first used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def run(self, component: str, **feeds: Array) -> list[Array]:
        session = self._session(component)
        optional = {spec.name for spec in self.manifest.components[component].optional_outputs}
        return session.run([port.name for port in session.get_outputs() if port.name not in optional], feeds)

    def run_optional(self, component: str, **feeds: Array) -> list[Array]:
        names = [spec.name for spec in self.manifest.components[component].optional_outputs]
        return self._session(component).run(names, feeds)

    def _session(self, component: str) -> onnxruntime.InferenceSession:
        if component not in self._sessions:
            path = self.folder / f"{component}.onnx"
            self._sessions[component] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return self._sessions[component]

    def embed(self, ids: Array, features: Array | None = None) -> Array:
        """[B, T, D] embeddings, image placeholders replaced by `features` in order."""
        (embeds,) = self.run("embed_tokens", input_ids=ids)
        if features is not None:
            assert self.manifest.image_prompt is not None
            embeds[ids == self.manifest.image_prompt.image_token_id] = features.reshape(-1, embeds.shape[-1])
        return embeds

    def decoder(self, batch: int, capacity: int) -> Decoder:
        return Decoder(self, batch, capacity)


class Decoder:
    """A decoder with its cache; `step` appends."""

    def __init__(self, bundle: Bundle, batch: int, capacity: int) -> None:
        self.bundle = bundle
        self.capacity = capacity
        sizes = {"B": batch, "S": capacity}
        # filled with rubbish: rows beyond the valid ones must never be read
        self.cache = {
            state.input: np.full([sizes.get(str(size), size) for size in state.shape], 7.0, np.float32)
            for state in bundle.manifest.states
        }
        self.lengths = np.zeros(batch, np.int64)

    def step(self, embeds: Array, lengths: Array | None = None, positions: Array | None = None) -> Array:
        """Append `embeds` [B, T, D], of which `lengths` [B] are real, and return all logits [B, T, V]."""
        batch, new = embeds.shape[:2]
        real = np.full(batch, new) if lengths is None else lengths
        places = np.broadcast_to(np.arange(new), (batch, new))
        logits, *others = self.bundle.run(
            "decoder",
            inputs_embeds=embeds,
            position_ids=self.lengths[:, None] + places if positions is None else positions,
            past_lengths=self.lengths[None],
            logits_indices=np.ascontiguousarray(places),
            **self.cache,
        )
        self.cache = dict(zip(self.cache, others[-len(self.cache) :], strict=True))
        self.lengths = self.lengths + real
        return logits


@pytest.fixture(scope="session")
def open_graphs() -> Callable[[Path], Bundle]:
    return Bundle


@pytest.fixture(scope="session")
def load_reference() -> Callable[[Path], Any]:
    """Load a checkpoint with transformers, ready to answer; a key that is missing or left over is a ValueError."""
    import transformers

    def load(folder: Path) -> Any:
        (name,) = json.loads((folder / "config.json").read_text())["architectures"]
        model, found = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
        if any(found.values()):
            raise ValueError(f"{folder} is not what {name} wants: {found}")
        return model.eval()

    return load
