"""Vision and text towers against transformers, in both dialects."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose

from bundle.errors import UnsupportedConfigError
from export.exporter import export_checkpoint
from export.towers.idefics3 import position_rows

# of the largest output: float32 sums in another order; an error in a graph makes 1e-2 and more
TOLERANCE = 2e-5
MAX_COSINE_DISTANCE = 1e-4

DIALECTS = ("contrib", "portable")


@pytest.fixture(scope="module", autouse=True)
def _torch() -> None:
    """Import torch here, so that collecting takes none."""
    global torch
    import torch


def assert_same_embeddings(found: np.ndarray, expected: torch.Tensor) -> None:
    wanted = expected.detach().numpy().reshape(found.shape)
    assert_allclose(found, wanted, atol=TOLERANCE * np.abs(wanted).max())
    cosine = (found * wanted).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert (1 - cosine).max() < MAX_COSINE_DISTANCE


@pytest.fixture
def export_both(tmp_path: Path, load_reference: Callable[[Path], Any], open_graphs: Any) -> Callable[..., Any]:
    """Save a checkpoint, export it, return the model and its graphs."""

    def run(save: Callable[..., None], config: Any = None, dialect: Any = "contrib") -> tuple[Any, Any]:
        save(tmp_path / "checkpoint", config)
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", dialect=dialect)
        return load_reference(tmp_path / "checkpoint"), open_graphs(tmp_path / "bundle")

    return run


def random_pixels(count: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, side, side)).astype(np.float32)


def operator_domains(bundle: Path) -> set[str]:
    return {
        node.domain for path in bundle.glob("*.onnx") for node in onnx.load(path, load_external_data=False).graph.node
    }


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_dual_encoder_embeds_images_as_the_reference(
    family: str, dialect: str, export_both: Callable[..., Any], checkpoints: ModuleType
) -> None:
    model, graphs = export_both(getattr(checkpoints, f"save_{family}"), dialect=dialect)
    pixels = random_pixels(3)
    with torch.no_grad():
        expected = model.get_image_features(torch.from_numpy(pixels)).pooler_output
    (found,) = graphs.run("vision_encoder", pixel_values=pixels)
    assert_same_embeddings(found, expected)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_dual_encoder_embeds_padded_texts_as_the_reference(
    family: str, dialect: str, export_both: Callable[..., Any], checkpoints: ModuleType
) -> None:
    model, graphs = export_both(getattr(checkpoints, f"save_{family}"), dialect=dialect)
    ids = np.random.default_rng(1).integers(0, 200, (4, 20))
    lengths = [20, 3, 11, 1]
    mask = (np.arange(20) < np.array(lengths)[:, None]).astype(np.int64)
    eos = model.config.text_config.eos_token_id
    for row, length in enumerate(lengths):
        ids[row, length - 1] = eos
        ids[row, length:] = model.config.text_config.pad_token_id
    with torch.no_grad():
        expected = model.get_text_features(torch.from_numpy(ids), torch.from_numpy(mask)).pooler_output
    (found,) = graphs.run("text_encoder", input_ids=ids, attention_mask=mask)
    assert_same_embeddings(found, expected)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_portable_encoders_use_standard_operators_only(
    family: str, export_both: Callable[..., Any], checkpoints: ModuleType
) -> None:
    _, graphs = export_both(getattr(checkpoints, f"save_{family}"), dialect="portable")
    assert operator_domains(graphs.folder) == {""}


def test_old_clip_configs_pool_at_the_highest_id(export_both: Callable[..., Any], checkpoints: ModuleType) -> None:
    config = checkpoints.clip_config({"eos_token_id": 2, "pad_token_id": 1})
    model, graphs = export_both(checkpoints.save_clip, config)
    ids = np.random.default_rng(2).integers(3, 500, (3, 9))
    ids[[0, 1, 2], [8, 4, 0]] = 513
    with torch.no_grad():
        expected = model.get_text_features(torch.from_numpy(ids)).pooler_output
    (found,) = graphs.run("text_encoder", input_ids=ids, attention_mask=np.ones_like(ids))
    assert_same_embeddings(found, expected)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "silu"])
def test_towers_apply_the_activation_of_the_config(
    activation: str, dialect: str, export_both: Callable[..., Any], checkpoints: ModuleType
) -> None:
    config = checkpoints.clip_config(vision={"hidden_act": activation, "num_hidden_layers": 1})
    model, graphs = export_both(checkpoints.save_clip, config, dialect)
    pixels = random_pixels(1)
    with torch.no_grad():
        expected = model.get_image_features(torch.from_numpy(pixels)).pooler_output
    assert_same_embeddings(graphs.run("vision_encoder", pixel_values=pixels)[0], expected)


def test_unknown_activation_is_refused_by_name(tmp_path: Path, checkpoints: ModuleType) -> None:
    config = checkpoints.clip_config(vision={"hidden_act": "mish"})
    checkpoints.save_clip(tmp_path / "checkpoint", config)
    with pytest.raises(UnsupportedConfigError, match="'mish'"):
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle")


# with 31 patches a side some positions round into the bucket below
@pytest.mark.parametrize(("side", "patch", "factor"), [(32, 8, 2), (32, 8, 4), (48, 8, 3), (62, 2, 1)])
def test_idefics3_features_equal_the_reference(
    side: int, patch: int, factor: int, export_both: Callable[..., Any], checkpoints: ModuleType
) -> None:
    config = checkpoints.smolvlm_config(vision={"image_size": side, "patch_size": patch}, scale_factor=factor)
    model, graphs = export_both(checkpoints.save_smolvlm, config)
    pixels = random_pixels(3, side)
    with torch.no_grad():
        expected = torch.cat(model.model.get_image_features(torch.from_numpy(pixels)[None]).pooler_output)
    assert_same_embeddings(graphs.run("vision_encoder", pixel_values=pixels)[0], expected)


def torch_buckets(grid: int) -> np.ndarray:
    boundaries = torch.arange(1 / grid, 1.0, 1 / grid)
    coordinates = torch.arange(grid, dtype=torch.float32) * (1.0 / torch.tensor(grid))
    return torch.bucketize(torch.clamp(coordinates, max=1.0 - 1e-6), boundaries, right=True).numpy()


# 16, 26, 27 and 32 are those of published Idefics3 and SmolVLM checkpoints
@pytest.mark.parametrize("grid", [4, 9, 16, 24, 26, 27, 31, 32, 48, 64])
def test_idefics3_positions_are_bucketed_as_torch_does(grid: int) -> None:
    buckets = torch_buckets(grid)
    assert position_rows(grid).tolist() == (buckets[:, None] * grid + buckets[None, :]).flatten().tolist()


@pytest.mark.parametrize("grid", range(1, 65))
def test_idefics3_positions_are_at_most_a_rounding_from_torch(grid: int) -> None:
    found = position_rows(grid)[:grid]
    assert np.abs(found - torch_buckets(grid)).max() <= 1


def test_some_grid_is_bucketed_out_of_order() -> None:
    """Otherwise the test above could not tell bucketing from counting."""
    assert any(position_rows(grid).tolist() != list(range(grid * grid)) for grid in range(1, 65))


@pytest.mark.parametrize("dialect", ["contrib"])
@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("layer", [-2, -1, -5, 2, [-3, -1], [1, 3, -1]])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_llava_reads_the_hidden_states_that_the_config_names(
    tower: str,
    layer: int | list[int],
    strategy: str,
    dialect: str,
    export_both: Callable[..., Any],
    checkpoints: ModuleType,
) -> None:
    config = checkpoints.llava_config(tower, vision_feature_layer=layer, vision_feature_select_strategy=strategy)
    model, graphs = export_both(checkpoints.save_llava, config, dialect)
    pixels = random_pixels(2)
    with torch.no_grad():
        expected = torch.stack(list(model.model.get_image_features(torch.from_numpy(pixels)).pooler_output))
    found, *_ = graphs.run("vision_encoder", pixel_values=pixels)
    assert found.shape == expected.shape
    assert_same_embeddings(found, expected)


class Heard:
    """What the projections of one attention gave, by name."""

    def __init__(self, attention: Any) -> None:
        self.values: dict[str, torch.Tensor] = {}
        for name in ("q_proj", "k_proj"):
            getattr(attention, name).register_forward_hook(
                lambda _, __, given, name=name: self.values.__setitem__(name, given.detach())
            )

    def looked(self, num_heads: int, *, has_class_token: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the attention that each patch receives [I, T], and its key [I, T, C]; means over heads."""
        query, key = (self.values[name].unflatten(-1, (num_heads, -1)).transpose(1, 2) for name in ("q_proj", "k_proj"))
        weights = (query @ key.transpose(2, 3) / key.shape[-1] ** 0.5).softmax(dim=-1)
        first = int(has_class_token)
        of_whom = weights[:, :, :1] if has_class_token else weights
        return of_whom.mean(dim=(1, 2))[:, first:], key.mean(dim=1)[:, first:]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_idefics3_tells_what_the_last_layer_looked_at_summed_over_the_shuffle(
    factor: int, dialect: str, export_both: Callable[..., Any], checkpoints: ModuleType
) -> None:
    config = checkpoints.smolvlm_config(vision={"image_size": 32, "patch_size": 8}, scale_factor=factor)
    model, graphs = export_both(checkpoints.save_smolvlm, config, dialect)
    tower = model.model.vision_model
    heard, pixels = Heard(tower.encoder.layers[-1].self_attn), random_pixels(3)
    with torch.no_grad():
        model.model.get_image_features(torch.from_numpy(pixels)[None])
    received, keys = heard.looked(tower.config.num_attention_heads, has_class_token=False)
    side, summed, means = 4 // factor, [], []
    for row in range(side):
        for col in range(side):
            patches = [(row * factor + y) * 4 + col * factor + x for y in range(factor) for x in range(factor)]
            summed.append(received[:, patches].sum(dim=1))
            means.append(keys[:, patches].mean(dim=1))
    found = graphs.run_optional("vision_encoder", pixel_values=pixels)
    assert_allclose(found[0], torch.stack(summed, dim=1).numpy(), atol=1e-5)
    assert_allclose(found[0].sum(axis=1), 1, atol=1e-5)
    assert_allclose(found[1], torch.stack(means, dim=1).numpy(), atol=1e-4)


@pytest.mark.parametrize("layer", [-2, -1, [1, 3, -1]])
@pytest.mark.parametrize(("tower", "strategy"), [("clip", "default"), ("siglip", "full")])
def test_llava_tells_what_the_deepest_layer_looked_at(
    tower: str, strategy: str, layer: int | list[int], export_both: Callable[..., Any], checkpoints: ModuleType
) -> None:
    config = checkpoints.llava_config(tower, vision_feature_layer=layer, vision_feature_select_strategy=strategy)
    model, graphs = export_both(checkpoints.save_llava, config)
    whole = model.model.vision_tower
    whole = getattr(whole, "vision_model", whole)
    deepest = max(at % (len(whole.encoder.layers) + 1) for at in ([layer] if isinstance(layer, int) else layer))
    heard, pixels = Heard(whole.encoder.layers[deepest - 1].self_attn), random_pixels(2)
    with torch.no_grad():
        model.model.get_image_features(torch.from_numpy(pixels))
    received, keys = heard.looked(whole.config.num_attention_heads, has_class_token=tower == "clip")
    found = graphs.run_optional("vision_encoder", pixel_values=pixels)
    assert_allclose(found[0], received.numpy(), atol=1e-5)
    assert_allclose(found[1], keys.numpy(), atol=1e-4)


@pytest.mark.parametrize(("tower", "strategy"), [("clip", "full"), ("siglip", "default")])
def test_llava_that_reads_other_rows_than_the_patches_tells_nothing(
    tower: str, strategy: str, export_both: Callable[..., Any], checkpoints: ModuleType
) -> None:
    config = checkpoints.llava_config(tower, vision_feature_select_strategy=strategy)
    _, graphs = export_both(checkpoints.save_llava, config)
    assert graphs.manifest.components["vision_encoder"].optional_outputs == ()
    assert len(graphs.run("vision_encoder", pixel_values=random_pixels(1))) == 1


@pytest.mark.parametrize(("sizes", "kept"), [([8, 4, 8], (8, 4)), (None, ())])
def test_sizes_to_which_vectors_may_be_cut_come_with_the_config(
    clip_checkpoint: Path, tmp_path: Path, sizes: object, kept: tuple[int, ...]
) -> None:
    manifest = export_checkpoint(with_cuts(clip_checkpoint, tmp_path, sizes), tmp_path / "bundle")
    assert manifest.dual is not None
    assert manifest.dual.matryoshka == kept
    assert manifest.dual.sizes == (manifest.dual.embedding_size, *kept)


@pytest.mark.parametrize("sizes", [[0], [1 << 20], "8", [True], [4.0]])
def test_sizes_that_cannot_be_are_refused(clip_checkpoint: Path, tmp_path: Path, sizes: object) -> None:
    with pytest.raises(UnsupportedConfigError, match=r"matryoshka_dimensions is .*; vectors have"):
        export_checkpoint(with_cuts(clip_checkpoint, tmp_path, sizes), tmp_path / "bundle")


def with_cuts(checkpoint: Path, folder: Path, sizes: object) -> Path:
    """Return a copy of a checkpoint whose config says to which sizes vectors may be cut."""
    copy = folder / "checkpoint"
    shutil.copytree(checkpoint, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"matryoshka_dimensions": sizes}))
    return copy
