from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from transformers import SmolVLMForConditionalGeneration

# fp32 sums in another order, on logits of size ~10: far below what an error in a graph makes
LOGIT_TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def model(smolvlm_checkpoint: Path) -> Any:
    return SmolVLMForConditionalGeneration.from_pretrained(smolvlm_checkpoint).eval()


@pytest.fixture(scope="module")
def graphs(smolvlm_bundle: Path, open_graphs: Any) -> Any:
    return open_graphs(smolvlm_bundle)


def prompt(rng: np.random.Generator, length: int, image_token_id: int | None = None, images: int = 0) -> np.ndarray:
    ids = rng.integers(0, 256, (1, length))
    if images:
        ids[0, 3 : 3 + 4 * images] = image_token_id
    return ids


def reference_logits(model: Any, ids: np.ndarray, pixels: np.ndarray | None = None) -> np.ndarray:
    with torch.no_grad():
        images = None if pixels is None else torch.from_numpy(pixels)[None]
        return model(input_ids=torch.from_numpy(ids), pixel_values=images).logits.numpy()


def test_vision_features_equal_the_reference(model: Any, graphs: Any) -> None:
    pixels = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = torch.cat(model.model.get_image_features(torch.from_numpy(pixels)[None]).pooler_output).numpy()
    (found,) = graphs.run("vision_encoder", pixel_values=pixels)
    assert_allclose(found.reshape(expected.shape), expected, atol=1e-4)


def test_prefill_with_images_gives_the_reference_logits(model: Any, graphs: Any) -> None:
    rng = np.random.default_rng(1)
    ids = prompt(rng, 40, 260, images=2)
    pixels = rng.standard_normal((2, 3, 32, 32)).astype(np.float32)
    (features,) = graphs.run("vision_encoder", pixel_values=pixels)
    found = graphs.decoder(1, 64).step(graphs.embed(ids, features))
    assert_allclose(found, reference_logits(model, ids, pixels), atol=LOGIT_TOLERANCE)
