"""The shipped reference models, really trained: exported, they answer as transformers does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from bundle.golden import canary_image
from bundle.image import ImageSpec
from export.exporter import export_checkpoint

CHECKPOINTS = Path(__file__).parents[2] / "reference" / "checkpoints"


@pytest.fixture(scope="module", autouse=True)
def _torch() -> None:
    """Import torch here, so that collecting takes none."""
    global torch, ternary
    import torch

    from reference import ternary


def exported(kind: str, folder: Path, open_graphs: Any) -> Any:
    if not (CHECKPOINTS / kind / "config.json").is_file():
        pytest.skip(f"reference/checkpoints/{kind} is not there; train it as reference/README.md says")
    export_checkpoint(CHECKPOINTS / kind, folder / kind)
    return open_graphs(folder / kind)


def canary_pixels(graphs: Any) -> np.ndarray:
    spec = ImageSpec.model_validate_json((graphs.folder / "preprocessor.json").read_bytes())
    return spec.preprocess([canary_image()]).pixel_values[:1]


def loaded(name: str) -> Any:
    from transformers import SmolVLMForConditionalGeneration

    from reference.bitnet import load_bitnet
    from reference.mote import load_mote

    if name in ("vlm", "vlm-wide"):
        return SmolVLMForConditionalGeneration.from_pretrained(CHECKPOINTS / name, dtype=torch.float32).eval()
    return {"vlm-ternary": load_bitnet, "vlm-mote": load_mote}[name](CHECKPOINTS / name).eval()


@pytest.mark.parametrize("name", ["vlm", "vlm-wide", "vlm-ternary", "vlm-mote"])
def test_reference_vlm_gives_the_reference_logits_and_tokens(
    name: str, tmp_path: Path, open_graphs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ternary layers without their rounding of inputs to int8, which the float32 graph does not have."""
    monkeypatch.setattr(ternary, "int8_per_token", lambda values: values)
    graphs = exported(name, tmp_path, open_graphs)
    model = loaded(name)
    prompt = graphs.manifest.image_prompt
    pixels = canary_pixels(graphs)
    (features,) = graphs.run("vision_encoder", pixel_values=pixels)
    ids = np.random.default_rng(0).integers(300, 500, (1, prompt.tokens_per_tile + 12))
    ids[0, 2 : 2 + prompt.tokens_per_tile] = prompt.image_token_id
    decoder = graphs.decoder(1, ids.shape[1] + 16)
    logits = decoder.step(graphs.embed(ids, features))
    for _ in range(16):
        with torch.no_grad():
            expected = model(input_ids=torch.from_numpy(ids), pixel_values=torch.from_numpy(pixels)[None]).logits
        # float32 sums in another order, as in test_decoders.py
        assert_allclose(logits[:, -1], expected[:, -1].numpy(), atol=1e-3)
        token = logits[:, -1].argmax(axis=1)[:, None]
        ids = np.append(ids, token, axis=1)
        if ids.shape[1] < decoder.capacity:
            logits = decoder.step(graphs.embed(token))


def test_reference_clip_gives_the_reference_embeddings(tmp_path: Path, open_graphs: Any) -> None:
    from transformers import CLIPModel

    graphs = exported("clip", tmp_path, open_graphs)
    model = CLIPModel.from_pretrained(CHECKPOINTS / "clip", dtype=torch.float32).eval()
    pixels = canary_pixels(graphs)
    ids = np.random.default_rng(0).integers(3, 100, (2, 10))
    ids[:, -1] = model.config.text_config.eos_token_id
    with torch.no_grad():
        image = model.get_image_features(torch.from_numpy(pixels)).pooler_output.numpy()
        text = model.get_text_features(torch.from_numpy(ids)).pooler_output.numpy()
    found_image = graphs.run("vision_encoder", pixel_values=pixels)[0]
    found_text = graphs.run("text_encoder", input_ids=ids, attention_mask=np.ones_like(ids))[0]
    for found, expected in ((found_image, image), (found_text, text)):
        assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
