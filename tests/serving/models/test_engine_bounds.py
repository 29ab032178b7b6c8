"""A server stays within what its engines were built for, and says so; it changes nobody's setting in silence."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from bundle.directory import Bundle, open_bundle
from bundle.engines import EngineIndex, write_engines
from bundle.errors import BundleFileError, SettingsError
from serving.models.engine_bounds import within_engines
from serving.settings import EngineSettings


@pytest.fixture
def bundle(smolvlm_bundle: Path) -> Bundle:
    return open_bundle(smolvlm_bundle, verify=False, allow_ungated=True)


def folder(bundle: Bundle, tmp_path: Path, **limits: int) -> Path:
    write_engines(tmp_path, EngineIndex(bundle=bundle.name, licence="theirs", cache_rows=48, **limits))
    return tmp_path


LIMITS = {"max_batch": 2, "max_prompt_tokens": 32, "max_images": 3}


def test_what_nobody_set_is_lowered_and_told(bundle: Bundle, tmp_path: Path, caplog) -> None:
    settings = EngineSettings(provider="cuda", engines=(folder(bundle, tmp_path, **LIMITS),))
    with caplog.at_level(logging.INFO):
        lowered = within_engines(bundle, settings)
    assert (lowered.max_sequences, lowered.context_tokens, lowered.chunk_tokens) == (2, 48, 32)
    assert lowered.vision_batch_tiles == 3
    assert "48 tokens a sequence, 2 sequences at once, 32 tokens of a prompt in one run, 3 images" in caplog.text
    assert "; max_sequences is 2" in caplog.text


@pytest.mark.parametrize(
    ("setting", "value", "advice"),
    [
        ("max_sequences", 3, "--max-batch 3"),
        ("prefill_chunk_tokens", 33, "--max-prompt-tokens 33"),
        ("vision_batch_tiles", 4, "--max-images 4"),
        ("context_tokens", 47, "--cache-rows 47"),
        ("context_tokens", 49, "--cache-rows 49"),
    ],
)
def test_what_somebody_set_beyond_them_is_refused_with_what_would_build_it(
    bundle: Bundle, tmp_path: Path, setting: str, value: int, advice: str
) -> None:
    given: dict[str, Any] = {setting: value}
    settings = EngineSettings(provider="cuda", engines=(folder(bundle, tmp_path, **LIMITS),), **given)
    with pytest.raises(SettingsError, match=f"engine.{setting} {value} .*{advice}"):
        within_engines(bundle, settings)


def test_settings_within_them_stay(bundle: Bundle, tmp_path: Path) -> None:
    settings = EngineSettings(
        provider="cuda",
        engines=(folder(bundle, tmp_path, **LIMITS),),
        max_sequences=1,
        context_tokens=48,
        prefill_chunk_tokens=16,
        vision_batch_tiles=1,
    )
    assert within_engines(bundle, settings) == settings


def test_a_folder_of_before_tells_its_cache_alone(bundle: Bundle, tmp_path: Path) -> None:
    lowered = within_engines(bundle, EngineSettings(provider="cuda", engines=(folder(bundle, tmp_path),)))
    assert (lowered.context_tokens, lowered.max_sequences) == (48, EngineSettings().max_sequences)


def test_engines_of_another_bundle_change_nothing_of_one_that_has_a_form_for_cuda(
    bundle: Bundle, tmp_path: Path, caplog
) -> None:
    other = Bundle(bundle.directory, bundle.manifest.model_copy(update={"name": "another"}))
    elsewhere = EngineSettings(provider="cuda", engines=(folder(bundle, tmp_path, **LIMITS),))
    assert within_engines(other, elsewhere) is elsewhere
    assert "another runs without engines" in caplog.text


def test_a_bundle_for_engines_is_not_served_without_them(bundle: Bundle, tmp_path: Path) -> None:
    changes = {"name": "another", "dialect": "portable"}
    other = Bundle(bundle.directory, bundle.manifest.model_copy(update=changes))
    settings = EngineSettings(provider="cuda", engines=(folder(bundle, tmp_path, **LIMITS),))
    with pytest.raises(BundleFileError, match=rf"engine\.engines: .*\(of {bundle.name}\): none of another.*compile"):
        within_engines(other, settings)
    assert within_engines(other, settings.model_copy(update={"device_runtime": "tensorrt"})) is not None


@pytest.mark.parametrize(
    ("given", "words"),
    [({"engines": ("e",)}, "engines beside"), ({"device_runtime": "tensorrt"}, "device_runtime beside")],
)
def test_what_is_of_a_device_is_refused_on_a_cpu(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"{words} provider cpu"):
        EngineSettings(**given)
