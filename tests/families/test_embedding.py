"""Decoders that embed, against the last hidden states of transformers' model of the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bundle.directory import Bundle, open_bundle
from bundle.prompt import Placeholder, Turn
from export.embedding import EmbeddingOptions
from export.exporter import export_checkpoint
from runtime.embedder_runner import EmbedderRunner
from runtime.settings import RuntimeSettings

FAMILIES = ("internvl", "llava_gemma", "qwen2_5_vl", "qwen2_vl", "qwen3_vl")
SETTINGS = RuntimeSettings(intra_threads=1)


def turns_of(parts: list[str | Image.Image]) -> list[Turn]:
    return [Turn("user", tuple(part if isinstance(part, str) else Placeholder.IMAGE for part in parts))]


def states_of(sample: Any, parts: list[str | Image.Image]) -> np.ndarray:
    """Return [T, D]: what transformers' decoder makes of a prompt, normed."""
    import torch

    with torch.no_grad():
        found = sample.model(**sample.inputs(parts), output_hidden_states=True).hidden_states[-1]
    return np.asarray(found[0].float().numpy())


def embedding_bundle(sample: Any, folder: Path, **options: Any) -> Bundle:
    dialect = options.pop("dialect", "contrib")
    export_checkpoint(sample.checkpoint, folder, name="tiny", dialect=dialect, embedding=EmbeddingOptions(**options))
    return open_bundle(folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("pooling", "dialect"), [("last", "contrib"), ("mean", "portable")])
def test_vectors_are_the_references_pooled_states(
    family: str, pooling: str, dialect: str, sample_of: Any, conversations: dict[str, Any], tmp_path: Path
) -> None:
    sample = sample_of(family, 0)
    bundle = embedding_bundle(sample, tmp_path / "bundle", pooling=pooling, dialect=dialect)
    runner = EmbedderRunner(bundle, SETTINGS)
    found = runner.embed_turns(
        [(turns_of(parts), [p for p in parts if not isinstance(p, str)]) for parts in conversations.values()]
    )
    for parts, vectors in zip(conversations.values(), found, strict=True):
        states = states_of(sample, parts)
        expected = states[-1] if pooling == "last" else states.mean(axis=0)
        (vector,) = vectors
        assert 1 - vector @ expected / np.linalg.norm(expected) < 1e-4
        np.testing.assert_allclose(np.linalg.norm(vector), 1, atol=1e-5)
