from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from bundle.directory import open_bundle
from bundle.errors import QuantizationError
from bundle.golden import canary_image
from quant.calibration import calibrator
from quant.calibration.calibrator import Calibrator, calibrate
from quant.calibration.feeds import FeedSource
from quant.calibration.statistics import InputStatistics
from quant.quality.evaluation import Evaluation
from runtime.settings import RuntimeSettings

if TYPE_CHECKING:
    import torch

SHARED, ALONE = "w_shared", "w_alone"


@pytest.fixture
def source(model_of: Callable[..., ir.Model], rng: np.random.Generator, array_source: Callable[..., Any]) -> Any:
    """Two layers that read x, and one that reads the Relu of their product."""
    weights = {name: rng.standard_normal((6, 6)).astype(np.float32) for name in (SHARED, "w_other", ALONE)}
    nodes = [
        ("MatMul", ["x", SHARED], "a", {}),
        ("MatMul", ["x", "w_other"], "b", {}),
        ("Mul", ["a", "b"], "c", {}),
        ("Relu", ["c"], "d", {}),
        ("MatMul", ["d", ALONE], "y", {}),
    ]
    model = model_of({"x": (ir.DataType.FLOAT, ["B", "T", 6])}, nodes, weights, ["y"])
    samples = [rng.standard_normal((2, length, 6)).astype(np.float32) for length in (1, 4, 7)]
    samples[1][0, 2, 3] = -40.0
    return array_source(model, samples)


def expected_of(rows: np.ndarray) -> InputStatistics:
    exact = rows.astype(np.float64)
    return InputStatistics(len(rows), np.abs(exact).max(axis=0), exact.T @ exact / len(rows))


def assert_same(found: InputStatistics, expected: InputStatistics, tolerance: float) -> None:
    """Compare with a tolerance relative to the largest number: rows are summed in another order, in float32."""
    assert found.num_rows == expected.num_rows
    np.testing.assert_allclose(found.peaks, expected.peaks, rtol=0, atol=tolerance * expected.peaks.max())
    np.testing.assert_allclose(found.gram, expected.gram, rtol=0, atol=tolerance * expected.gram.max())


@pytest.mark.parametrize("most_bytes", [calibrator.MOST_BYTES, 1])
def test_statistics_are_those_of_all_rows_of_all_samples(
    source: Any, monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    monkeypatch.setattr(calibrator, "MOST_BYTES", most_bytes)
    groups = list(Calibrator(source).groups("decoder", grams=True))
    assert [set(group) for group in groups] == (
        [{SHARED, "w_other"}, {ALONE}] if most_bytes == 1 else [{SHARED, "w_other", ALONE}]
    )
    found = {name: each for group in groups for name, each in group.items()}
    x = np.concatenate([each["x"].reshape(-1, 6) for each in source.of("decoder")])
    weights = {name: value.const_value.numpy() for name, value in _initializers(source).items()}
    d = np.maximum((x @ weights[SHARED]) * (x @ weights["w_other"]), 0)
    assert_same(found[SHARED], expected_of(x), 1e-6)
    assert_same(found[ALONE], expected_of(d), 1e-6)
    assert found[SHARED].peaks[3] == 40.0
    assert found[SHARED] is found["w_other"]


def _initializers(source: Any) -> dict[str, ir.Value]:
    return dict(ir.load(source.bundle.graph_path("decoder")).graph.initializers)


def test_a_gram_is_kept_only_where_it_is_asked_for(source: Any) -> None:
    found = calibrate(source, {"decoder": {ALONE}})
    assert set(found["decoder"]) == {ALONE}
    assert found["decoder"][ALONE].gram is None


def test_each_group_is_announced(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrator, "MOST_BYTES", 1)
    lines: list[str] = []
    calibrate(source, {"decoder": None}, progress=lines.append)
    assert lines == [f"decoder: calibrating on 3 runs, group {at} of 2" for at in (1, 2)]


def test_an_unknown_layer_is_named(source: Any) -> None:
    with pytest.raises(QuantizationError, match="decoder: the graph has no linear layer named nowhere"):
        list(Calibrator(source).groups("decoder", layers={ALONE, "nowhere"}))


def test_a_graph_without_linear_layers_is_refused(
    source: Any, model_of: Callable[..., ir.Model], array_source: Callable[..., Any]
) -> None:
    model = model_of({"x": (ir.DataType.FLOAT, ["B", "T", 6])}, [("Relu", ["x"], "y", {})], {}, ["y"])
    source = array_source(model, source.samples)
    with pytest.raises(QuantizationError, match="no linear layer at all"):
        list(Calibrator(source).groups("decoder"))


def test_a_weight_that_meets_two_inputs_is_refused(
    source: Any, model_of: Callable[..., ir.Model], array_source: Callable[..., Any]
) -> None:
    nodes = [("MatMul", ["x", "w"], "a", {}), ("MatMul", ["a", "w"], "y", {})]
    model = model_of({"x": (ir.DataType.FLOAT, ["B", "T", 6])}, nodes, {"w": np.eye(6, dtype=np.float32)}, ["y"])
    source = array_source(model, source.samples)
    with pytest.raises(QuantizationError, match="a weight meets two inputs"):
        list(Calibrator(source).groups("decoder"))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_refused(source: Any, wrong: float) -> None:
    source.samples[2][0, 0, 0] = wrong
    with pytest.raises(QuantizationError, match=r"w_\w+ meets inputs that are not finite"):
        calibrate(source, {"decoder": None})


@contextmanager
def watched(model: torch.nn.Module, names: list[str]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Record what enters modules whose weights have these names."""
    import torch

    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    modules = dict(model.named_modules())
    hooks = [
        modules[name.removesuffix(".weight")].register_forward_pre_hook(
            lambda module, inputs, name=name: seen[name].append(inputs[0].detach())
        )
        for name in names
    ]
    try:
        with torch.no_grad():
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


def rows_of(tensors: list[torch.Tensor]) -> np.ndarray:
    return np.concatenate([each.reshape(-1, each.shape[-1]).numpy() for each in tensors])


@pytest.fixture
def questions(asked: type) -> Evaluation:
    image = canary_image()
    return Evaluation(questions=[asked("yes", (image,)), asked("a red circle"), asked("7", (image,))])


def test_a_decoder_meets_what_transformers_meets_on_prompts_and_right_answers(
    smolvlm_bundle: Path, smolvlm_checkpoint: Path, questions: Evaluation, one_thread: RuntimeSettings
) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(smolvlm_checkpoint).eval()
    source = FeedSource(open_bundle(smolvlm_bundle), questions, settings=one_thread)
    found = calibrate(source, {"decoder": None}, grams=True)["decoder"]
    names = [name for name in found if "layers" in name]
    assert len(names) == 3 * 7
    with watched(model, names) as seen:
        for feeds in source.of("decoder"):
            model.model.text_model(inputs_embeds=torch.from_numpy(feeds["inputs_embeds"]))
    for name in names:
        assert_same(found[name], expected_of(rows_of(seen[name])), 1e-4)  # float32 through three layers of gain 2


def test_a_vision_encoder_meets_what_transformers_meets(
    smolvlm_bundle: Path, smolvlm_checkpoint: Path, questions: Evaluation, one_thread: RuntimeSettings
) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(smolvlm_checkpoint).eval()
    source = FeedSource(open_bundle(smolvlm_bundle), questions, settings=one_thread)
    found = calibrate(source, {"vision_encoder": None}, grams=True)["vision_encoder"]
    with watched(model, list(found)) as seen:
        for feeds in source.of("vision_encoder"):
            model.model.get_image_features(torch.from_numpy(feeds["pixel_values"][None]))
    for name, each in found.items():
        assert_same(each, expected_of(rows_of(seen[name])), 1e-4)


def test_padding_does_not_count(
    clip_bundle: Path, clip_checkpoint: Path, captioned: type, one_thread: RuntimeSettings
) -> None:
    import torch
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(clip_checkpoint).eval()
    bundle = open_bundle(clip_bundle)
    captions = [captioned(canary_image(), text) for text in ("a", "a photo of a rather long thing", "two words")]
    source = FeedSource(bundle, Evaluation(captions=captions), settings=one_thread)
    found = calibrate(source, {"text_encoder": None}, grams=True)["text_encoder"]
    # transformers runs the three as one padded batch; of what its layers meet, the padding is taken out.
    ids = [feeds["input_ids"][0] for feeds in source.of("text_encoder")]
    width = max(map(len, ids))
    assert len({len(each) for each in ids}) == 3
    assert bundle.manifest.dual is not None
    padded = torch.full((3, width), bundle.manifest.dual.pad_token_id)
    mask = torch.zeros((3, width), dtype=torch.long)
    for row, each in enumerate(ids):
        padded[row, : len(each)] = torch.from_numpy(each)
        mask[row, : len(each)] = 1
    names = [name for name in found if "layers" in name]
    with watched(model, names) as seen:
        model.get_text_features(input_ids=padded, attention_mask=mask)
    for name in names:
        rows = seen[name][0].reshape(3, width, -1)[mask.bool()]
        assert_same(found[name], expected_of(rows.numpy()), 1e-4)
