"""An export of Optimum's or of transformers.js's layout becomes a bundle that says what torch says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bundle.directory import Bundle, open_bundle
from bundle.errors import BundleError, CheckpointError, UnsupportedConfigError
from export.adopted.adopter import adopt_export
from export.adopted.adoption import Said
from export.adopted.tower import Pooling
from graphs.dialect import portable_where_standard
from graphs.labels import Label, unlabelled
from graphs.layers import find_linears
from graphs.store import open_graph
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from quant.samples.built_in import built_in_samples
from runtime.one_embedding import DualEncoderRunner
from runtime.settings import RuntimeSettings

EXPORTS = Path(__file__).parents[2] / "data" / "optimum"
TEXTS = ["a cat", "the hat on", "x"]
"""As make.py has them."""


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("adopted")
    for name in ("clip", "chinese_clip", "siglip"):
        adopt_export(EXPORTS / name, folder / name)
    for pooling in get_args(Pooling):
        adopt_export(EXPORTS / "bert", folder / pooling, said=Said(pooling=pooling))
    adopt_export(EXPORTS / "transformers_js", folder / "transformers_js", said=Said(logit_scale=np.exp(3.25)))
    return {path.name: open_bundle(path) for path in folder.iterdir()}


def _expected(name: str) -> dict[str, NDArray[np.float32]]:
    with np.load(EXPORTS / name / "expected.npz") as arrays:
        return dict(arrays)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", ["clip", "chinese_clip", "siglip", "transformers_js"])
def test_images_and_texts_have_the_vectors_that_torch_gives_them(adopted: dict[str, Bundle], name: str) -> None:
    expected, runner = _expected(name), DualEncoderRunner(adopted[name], RuntimeSettings(intra_threads=1))
    images = runner.embed_images([Image.open(EXPORTS / "picture.png")])
    texts = runner.embed_texts(TEXTS)
    assert 1 - (images * _unit(expected["image_embeds"])).sum(-1).min() < 1e-5
    assert 1 - (texts * _unit(expected["text_embeds"])).sum(-1).min() < 1e-5


@pytest.mark.parametrize("name", ["clip", "chinese_clip", "siglip", "transformers_js"])
def test_cosines_become_the_logits_that_torch_gives(adopted: dict[str, Bundle], name: str) -> None:
    expected, dims = _expected(name), adopted[name].manifest.dual
    assert dims is not None
    cosines = _unit(expected["image_embeds"]) @ _unit(expected["text_embeds"]).T
    np.testing.assert_allclose(cosines * dims.logit_scale + dims.logit_bias, expected["logits_per_image"], rtol=1e-3)
    assert dims.scoring == ("sigmoid" if name == "siglip" else "softmax")
    assert dims.pads_to_max is (name in ("siglip", "transformers_js"))


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_texts_have_the_vectors_that_torchs_hidden_states_pool_to(adopted: dict[str, Bundle], pooling: Pooling) -> None:
    expected = _expected("bert")
    states, mask = expected["last_hidden_state"], expected["attention_mask"].astype(bool)
    pool = {"mean": lambda rows: rows.mean(axis=0), "cls": lambda rows: rows[0], "last": lambda rows: rows[-1]}[pooling]
    vectors = np.stack([pool(states[at][mask[at]]) for at in range(len(TEXTS))])
    found = DualEncoderRunner(adopted[pooling], RuntimeSettings(intra_threads=1)).embed_texts(TEXTS)
    assert 1 - (found * _unit(vectors)).sum(-1).min() < 1e-5


def test_sentence_transformers_pooling_is_read_from_its_file(tmp_path: Path) -> None:
    folder = _copy("bert", tmp_path)
    (folder / "1_Pooling").mkdir()
    settings = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    manifest = adopt_export(folder, tmp_path / "out")
    assert manifest.task == "text-embedding"
    assert set(manifest.components) == {"text_encoder"}


def test_tokens_without_a_mask_are_not_pooled(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedConfigError, match="--pooling mean wants a graph that takes attention_mask"):
        adopt_export(EXPORTS / "transformers_js", tmp_path / "out", said=Said(pooling="mean"))


def test_a_text_encoder_asks_how_its_tokens_are_pooled(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedConfigError, match="--pooling mean, cls or last"):
        adopt_export(EXPORTS / "bert", tmp_path / "out")


def test_a_text_encoder_is_made_smaller_and_measured_on_texts_alone(adopted: dict[str, Bundle], tmp_path: Path) -> None:
    parent = adopted["mean"]
    samples = built_in_samples(parent, "evaluation")
    manifest = quantize_bundle(parent.directory, tmp_path / "int8", weights="int8-rtn", evaluation=samples)
    assert any(gate.n == len(samples.texts) for gate in manifest.gates)


def test_layers_bear_the_names_of_the_checkpoint_and_the_rows_that_meet_them(adopted: dict[str, Bundle]) -> None:
    graph = open_graph(adopted["clip"].graph_path("vision_encoder")).graph
    rows = {linear.name: Label.read(linear.weight).rows for linear in find_linears(graph)}
    assert rows["vision_model.encoder.layers.1.mlp.fc1.weight"] == 17
    assert rows["visual_projection.weight"] == 1
    assert not unlabelled(graph)


def test_an_adopted_bundle_is_made_smaller_like_any_other(adopted: dict[str, Bundle], tmp_path: Path) -> None:
    parent = adopted["chinese_clip"]
    manifest = quantize_bundle(parent.directory, tmp_path / "int8", weights="int8-rtn")
    assert {part.scheme for part in manifest.components.values()} == {"int8"}
    images = [Image.open(EXPORTS / "picture.png")]
    before, after = (
        DualEncoderRunner(open_bundle(folder, allow_ungated=True), RuntimeSettings(intra_threads=1)).embed_images(
            images
        )
        for folder in (parent.directory, tmp_path / "int8")
    )
    assert 0.99 < (before * after).sum() < 1


def test_an_adopted_bundle_becomes_one_for_tensorrt_and_one_for_cuda(
    adopted: dict[str, Bundle], tmp_path: Path
) -> None:
    """Its operators are ONNX's own, as TensorRT's have to be; nobody who adopts has a checkpoint to export anew."""
    parent = adopted["clip"]
    assert parent.manifest.dialect == "contrib"
    assert portable_where_standard(parent).manifest.dialect == "portable"
    for target, dialect in (("tensorrt", "portable"), ("cuda", "contrib")):
        made = quantize_bundle(parent.directory, tmp_path / target, weights="fp16", options=Options(target=target))
        assert (made.target, made.dialect) == (target, dialect)
    images = [Image.open(EXPORTS / "picture.png")]
    before, after = (
        DualEncoderRunner(open_bundle(folder, allow_ungated=True), RuntimeSettings(intra_threads=1)).embed_images(
            images
        )
        for folder in (parent.directory, tmp_path / "tensorrt")
    )
    assert (before * after).sum() > 0.999


def test_operators_of_onnx_runtimes_own_are_of_the_contrib_dialect(smolvlm_bundle: Path) -> None:
    bundle = open_bundle(smolvlm_bundle)
    assert portable_where_standard(bundle) is bundle


def _copy(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(EXPORTS / name, folder / name))


def test_a_model_that_generates_is_refused_by_its_decoder(tmp_path: Path) -> None:
    folder = _copy("transformers_js", tmp_path)
    (folder / "onnx" / "text_model.onnx").rename(folder / "onnx" / "decoder_model_merged.onnx")
    with pytest.raises(UnsupportedConfigError, match="pocketvlm export"):
        adopt_export(folder, tmp_path / "out")


@pytest.mark.parametrize("file", ["onnx/decoder_model_merged.onnx", "onnx/embed_tokens.onnx", "decoder_model.onnx"])
def test_a_hubs_model_that_generates_is_refused_before_any_of_it_is_fetched(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["config.json", "onnx/vision_encoder.onnx", file]
    monkeypatch.setattr("export.exporter.list_repo_files", lambda repository: names)
    monkeypatch.setattr("export.exporter.snapshot_download", lambda *_, **__: pytest.fail("something was fetched"))
    with pytest.raises(UnsupportedConfigError, match=rf"some/vlm holds a model that generates \({file}\)"):
        adopt_export("some/vlm", tmp_path / "out")


def test_a_hub_that_lists_nothing_leaves_the_word_to_what_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(_: str) -> list[str]:
        raise ConnectionError

    monkeypatch.setattr("export.exporter.list_repo_files", silent)
    monkeypatch.setattr("export.exporter.snapshot_download", lambda *_, **__: str(EXPORTS / "clip"))
    assert adopt_export("some/clip", tmp_path / "out").source == "some/clip"


def test_an_encoder_of_images_alone_is_refused_by_what_it_takes(tmp_path: Path) -> None:
    folder = _copy("transformers_js", tmp_path)
    (folder / "onnx" / "text_model.onnx").unlink()
    (folder / "onnx" / "vision_model.onnx").rename(folder / "onnx" / "model.onnx")
    with pytest.raises(UnsupportedConfigError, match="takes pixel_values and no input_ids: encoders of images alone"):
        adopt_export(folder, tmp_path / "out")


def test_quantized_graphs_alone_are_refused_by_name(tmp_path: Path) -> None:
    folder = _copy("clip", tmp_path)
    (folder / "model.onnx").rename(folder / "model_quantized.onnx")
    with pytest.raises(CheckpointError, match=r"found model_quantized\.onnx"):
        adopt_export(folder, tmp_path / "out")


def test_towers_without_logits_ask_for_their_scale(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedConfigError, match="--logit-scale"):
        adopt_export(EXPORTS / "transformers_js", tmp_path / "out")


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    folder = _copy("chinese_clip", tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    size = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"]["more"] = size
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UnsupportedConfigError, match=f"'more' the id {size}"):
        adopt_export(folder, tmp_path / "out")


def test_a_file_that_is_no_graph_is_named(tmp_path: Path) -> None:
    folder = _copy("clip", tmp_path)
    (folder / "model.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        adopt_export(folder, tmp_path / "out")


def test_a_failed_adoption_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedConfigError):
        adopt_export(EXPORTS / "transformers_js", tmp_path / "out")
    assert not list(tmp_path.iterdir())
