"""dots.ocr: the published config's sizes, the authors' template, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from bundle.errors import UnsupportedConfigError
from bundle.prompt import PromptBuilder, Turn
from export.architectures import load_family


def _config(sample_of: Any) -> dict[str, Any]:
    found: dict[str, Any] = copy.deepcopy(next(iter(sample_of("dots_ocr", 0).family.geometries().values())))
    return found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_channels": 1}, "num_channels"),
        ({"temporal_patch_size": 2}, "temporal_patch_size"),
        ({"is_causal": True}, "is_causal"),
        ({"hidden_size": 40}, "features of width 40"),
    ],
)
def test_what_is_not_built_is_refused_by_name(sample_of: Any, change: dict[str, Any], words: str) -> None:
    config = _config(sample_of)
    config["vision_config"].update(change)
    with pytest.raises(UnsupportedConfigError, match=words):
        load_family(config).tower  # type: ignore[attr-defined]  # noqa: B018


def test_quantized_checkpoints_are_refused_by_name(sample_of: Any) -> None:
    with pytest.raises(UnsupportedConfigError, match="quantization_config"):
        load_family({**_config(sample_of), "quantization_config": {"quant_method": "awq"}})


def test_conversations_have_marks_behind_each_turn(sample_of: Any) -> None:
    builder = PromptBuilder.from_bundle(sample_of("dots_ocr", 0).bundle())
    turns = [Turn("system", ("Be brief.",)), Turn("user", ("a",)), Turn("assistant", ("b",)), Turn("user", ("c",))]
    said = builder.tokenizer.decode(builder.build(turns, []).token_ids.tolist(), skip_special_tokens=False)
    assert said == (
        "<|system|>Be brief.<|endofsystem|>\n<|user|>a<|endofuser|><|assistant|>b<|endofassistant|>"
        "<|user|>c<|endofuser|><|assistant|>"
    )
