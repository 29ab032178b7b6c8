"""Unlimited-OCR: the prompt that stays in sight of an answer, published configs, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle.errors import QuantizationError, SettingsError, UnsupportedConfigError
from bundle.prompt import Placeholder, Turn
from bundle.reduced_prompt import reduced
from export.architectures import load_family
from export.cuda_bundle import export_for_cuda
from export.exporter import export_checkpoint
from export.processor import read_image_spec
from quant.kv.needs import offered_policies
from quant.kv_cache.refusals import coded_states
from quant.planning.cliffs import refuse_target
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from runtime.tensorrt.profiles import Limits, profiles_of

SETTINGS = RuntimeSettings(intra_threads=1)
TEXT = [Turn("user", ("A question that is longer than the window is, so that some of it is far behind.",))]


def _config(sample_of: Any) -> dict[str, Any]:
    found: dict[str, Any] = copy.deepcopy(next(iter(sample_of("unlimited_ocr", 0).family.geometries().values())))
    return found


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
def test_answers_read_at_once_and_token_by_token_see_the_same(sample_of: Any, dialect: str) -> None:
    """Of two lengths of prompts, in batches of one, in runs of many tokens and in one with the prompt."""
    runner = VisionLanguageRunner(sample_of("unlimited_ocr", 0).bundle(dialect), SETTINGS)
    for turns in (TEXT, [Turn("user", ("Short?",))]):
        prompt = runner.prompt(turns, [])
        prefilled = runner.prefill(prompt, 40)
        answer = [token for token, _ in zip(runner.greedy_tokens(prefilled), range(40), strict=False)]
        expected = runner.forced_logits(prefilled, answer)
        np.testing.assert_allclose(runner.answer_logits(prompt, answer), expected, atol=1e-4)


def test_an_image_with_fewer_tokens_stays_in_sight(sample_of: Any, conversations: dict[str, Any]) -> None:
    runner = VisionLanguageRunner(sample_of("unlimited_ocr", 0).bundle(), SETTINGS)
    image, text = conversations["one image"]
    prompt = runner.prompt([Turn("user", (Placeholder.IMAGE, text))], [image]).prompt
    assert prompt.memory is not None
    assert prompt.memory.seen.tolist() == [[0, prompt.num_tokens, 1]] * prompt.num_tokens
    fewer = reduced(prompt, [np.array([0, 3, 7])])
    assert fewer.memory is not None
    assert fewer.memory.seen.tolist() == [[0, fewer.num_tokens, 1]] * (prompt.num_tokens - prompt.num_image_tokens + 3)


def test_what_no_config_says_is_as_transformers_has_it() -> None:
    from transformers import UnlimitedOcrConfig

    config = UnlimitedOcrConfig().to_dict()
    stated = {"model_type": "unlimited_ocr", "language_config": {}, "sliding_window": 128, "vision_config": {}}
    family, whole = load_family(stated), load_family(config)
    assert family.decoder.config == whole.decoder.config  # type: ignore[attr-defined]
    assert family.decoder.windows == whole.decoder.windows == (128,) * 12  # type: ignore[attr-defined]
    assert family._tower == whole._tower  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"sliding_window": None}, "sliding_window None"),
        ({"n_routed_experts": 1}, "experts are chosen"),
    ],
)
def test_what_is_not_built_is_refused_by_name(sample_of: Any, change: dict[str, Any], words: str) -> None:
    config = _config(sample_of)
    config["text_config"].update(change)
    with pytest.raises(UnsupportedConfigError, match=words):
        load_family(config).decoder  # type: ignore[attr-defined]  # noqa: B018


def test_images_that_are_never_cut_are_padded_or_refused() -> None:
    settings = {"image_processor_type": "UnlimitedOcrImageProcessor", "crop_to_patches": False}
    geometry = read_image_spec(settings, "x").geometry
    assert geometry.layout(3000, 2000).rows == 0
    assert geometry.tile_size_px == (1024, 1024)
    with pytest.raises(UnsupportedConfigError, match="maximum_pad_value"):
        read_image_spec({**settings, "size": {"height": 640, "width": 640}}, "x")


def test_what_would_lose_sight_of_the_prompt_is_refused(sample_of: Any, tmp_path: Path) -> None:
    sample = sample_of("unlimited_ocr", 0)
    bundle = sample.bundle()
    assert offered_policies(bundle.manifest) == ()
    with pytest.raises(QuantizationError, match="kv-cache int8: tokens of tiny's answers"):
        coded_states(bundle.manifest, "int8", "cpu")
    with pytest.raises(QuantizationError, match="target cuda: tokens of tiny's answers"):
        refuse_target(bundle.manifest, "cuda")
    with pytest.raises(UnsupportedConfigError, match="task-vectors"):
        export_checkpoint(sample.checkpoint, tmp_path / "tasks", name="tiny", task_vectors=True)
    portable = sample.bundle("portable").manifest
    with pytest.raises(SettingsError, match="beyond their windows"):
        profiles_of(portable, portable.components["decoder"], Limits(32, 2, 16, 2))


def test_that_cuda_has_no_form_for_it_is_told_before_a_weight_is_read(sample_of: Any, tmp_path: Path) -> None:
    told: list[str] = []
    checkpoint = sample_of("unlimited_ocr", 0).checkpoint
    with pytest.raises(QuantizationError, match="target cuda: tokens of tiny's answers"):
        export_for_cuda(checkpoint, tmp_path / "cuda", name="tiny", progress=told.append)
    assert told == ["building 3 graphs for unlimited_ocr"]
