"""Variants that are broken on purpose, on real graphs: the gate must catch them with few samples and no labels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from bundle.directory import open_bundle, seal
from graphs.store import open_graph, save_graph
from quant.quality.evaluation import Evaluation, Measured
from quant.quality.gate import judge_all, measure
from runtime.settings import RuntimeSettings

Damage = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Asked:
    images: tuple[Image.Image, ...]
    task: str = "any"
    answer: str = "no"

    def messages(self) -> list[dict[str, object]]:
        return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]

    def is_right(self, reply: str) -> bool:
        return False  # nobody knows the answers: accuracy sees nothing


@dataclass(frozen=True)
class Captioned:
    image: Image.Image
    caption: str


def pictures(num: int) -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(num)]


QUESTIONS = Evaluation(questions=[Asked((image,)) for image in pictures(4)])
CAPTIONS = Evaluation(captions=[Captioned(image, f"picture {at}") for at, image in enumerate(pictures(4))])


def results(
    folder: Path, scratch: Path, evaluation: Evaluation, component: str, weight: str, damage: Damage
) -> Measured:
    """Return what is measured after one weight of one graph was damaged."""
    parent, copied = open_bundle(folder), Path(shutil.copytree(folder, scratch / "variant"))
    model = open_graph(parent.graph_path(component))
    value = model.graph.initializers[weight]
    value.const_value = ir.tensor(damage(value.const_value.numpy()).astype(np.float32), name=weight)
    save_graph(model, copied / parent.graph_path(component).name)
    variant = seal(copied, parent.manifest)
    return measure(parent, variant, evaluation, lambda _: None, RuntimeSettings(intra_threads=1))


def failed(measured: Measured) -> set[str]:
    """Return the gates that fail, those of accuracy left out: four samples never pass them."""
    gates = judge_all({}, measured, "ternary")  # the widest limits
    return {gate.name for gate in gates if not gate.passed and "accuracy" not in gate.name}


def zeros(weight: np.ndarray) -> np.ndarray:
    """The patches' weights without their bias: the tower runs, and sees every image alike."""
    return np.zeros_like(weight)


def shuffled(weight: np.ndarray) -> np.ndarray:
    """Outputs in another order: what a wrong layout of codes does."""
    return weight[:, np.random.default_rng(1).permutation(weight.shape[1])]


def nearly(weight: np.ndarray) -> np.ndarray:
    """An error as of 10 bits: random weights multiply one of 8 until one of these twelve clear choices falls."""
    return weight * (1 + 0.001 * np.random.default_rng(2).standard_normal(weight.shape))


PATCHES, CONNECTOR = (
    "model.vision_model.embeddings.patch_embedding.weight",
    "model.connector.modality_projection.proj.weight",
)


def test_a_vision_tower_that_sees_every_image_alike_fails(smolvlm_bundle: Path, tmp_path: Path) -> None:
    found = failed(results(smolvlm_bundle, tmp_path, QUESTIONS, "vision_encoder", PATCHES, zeros))
    assert {"correlation/image_features", "spread/image_features", "image_sensitivity"} <= found


def test_image_features_in_another_order_fail(smolvlm_bundle: Path, tmp_path: Path) -> None:
    found = failed(results(smolvlm_bundle, tmp_path, QUESTIONS, "vision_encoder", CONNECTOR, shuffled))
    assert "correlation/image_features" in found


def test_an_image_tower_that_embeds_every_image_alike_fails(clip_bundle: Path, tmp_path: Path) -> None:
    name = "vision_model.embeddings.patch_embedding.weight"
    found = failed(results(clip_bundle, tmp_path, CAPTIONS, "vision_encoder", name, zeros))
    assert {"correlation/image", "spread/image"} <= found
    assert not any(gate.endswith("/text") for gate in found)


@pytest.mark.parametrize(
    ("component", "weight", "kind"),
    [
        ("vision_encoder", "visual_projection.weight", "image"),
        ("text_encoder", "text_projection.weight", "text"),
    ],
)
def test_embeddings_in_another_order_fail(
    clip_bundle: Path, tmp_path: Path, component: str, weight: str, kind: str
) -> None:
    measured = results(clip_bundle, tmp_path, CAPTIONS, component, weight, shuffled)
    assert abs(measured.likenesses[kind].cosine_mean) < 0.5
    assert {f"cosine_mean/{kind}", f"cosine_p1/{kind}", f"correlation/{kind}"} <= failed(measured)


def test_small_errors_pass_the_same_gates(smolvlm_bundle: Path, clip_bundle: Path, tmp_path: Path) -> None:
    vlm = results(smolvlm_bundle, tmp_path / "vlm", QUESTIONS, "vision_encoder", CONNECTOR, nearly)
    clip = results(clip_bundle, tmp_path / "clip", CAPTIONS, "vision_encoder", "visual_projection.weight", nearly)
    assert failed(vlm) == failed(clip) == set()
    assert vlm.likenesses["image_features"].correlation < 1  # they are errors
