"""Engines of every portable recipe are built here, on a CPU, by TensorRT-RTX's own parser and builder. None is run."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundle.directory import Bundle, open_bundle
from bundle.engines import read_engines, require_fresh
from bundle.errors import BundleFileError, SettingsError
from runtime.tensorrt.compiler import Form, Job, compile_bundle
from runtime.tensorrt.library import Library
from runtime.tensorrt.profiles import Limits

CARDS = (86, 89, 120)
"""Ampere, Ada and Blackwell of desktops: one engine holds code for all three."""
RECIPES = ("fp32", "fp16", "int8-static", "int8", "int4")
CASES = [
    *(("vlm", recipe) for recipe in RECIPES),
    *(("clip", recipe) for recipe in RECIPES if recipe != "int4"),  # encoders have int8 under it
    ("siglip", "fp16"),  # texts padded to the longest
    ("llava-clip-llama", "fp16"),  # biased projections
]


@pytest.fixture
def job_of(
    rtx: Library, portable_of: Callable[..., Bundle], standard: Form, limits: Limits, tmp_path: Path
) -> Callable[..., Job]:
    def job(family: str = "vlm", recipe: str = "fp16", **changes: Any) -> Job:
        bundle = portable_of(family, recipe)
        return replace(Job(bundle, tmp_path / "engines", "tensorrt-rtx", standard, limits, CARDS), **changes)

    return job


@pytest.mark.parametrize(("family", "recipe"), CASES)
def test_every_graph_of_every_recipe_is_built(job_of: Callable[..., Job], family: str, recipe: str) -> None:
    job = job_of(family, recipe)
    index = compile_bundle(job, lambda line: None)
    assert index.engines.keys() == job.bundle.manifest.components.keys()
    for name, record in index.engines.items():
        assert (job.folder / record.file).stat().st_size == record.contents.size_bytes > 10_000
        assert record.key.capabilities == ("8.6", "8.9", "12.0")
        require_fresh(job.bundle, job.folder, name, record)
    if family == "vlm":
        prompts, steps = index.engines["decoder"].key.profiles
        assert prompts["inputs_embeds"] == ((1, 1, 64), (1, 32, 64), (2, 32, 64))
        assert steps["inputs_embeds"] == ((1, 1, 64), (1, 1, 64), (2, 1, 64))
        assert steps["past_key_values.0.key"][2] == (2, 2, 64, 16)
    assert read_engines(job.folder) == index


@pytest.mark.parametrize(
    ("family", "recipe"),
    [(family, recipe) for family, recipe in CASES if recipe != "int4" and family in ("vlm", "clip")],
)
def test_every_graph_is_built_in_the_plain_form_too(
    job_of: Callable[..., Job], plain: Form, family: str, recipe: str
) -> None:
    index = compile_bundle(job_of(family, recipe, form=plain), lambda line: None)
    assert {record.key.form for record in index.engines.values()} == {plain.name}
    assert all(record.contents.size_bytes > 10_000 for record in index.engines.values())


def test_the_plain_form_and_other_limits_are_other_engines(job_of: Callable[..., Job], plain: Form) -> None:
    compile_bundle(job_of("clip", "fp16", form=plain), lambda line: None)
    again: list[str] = []
    compile_bundle(job_of("clip", "fp16"), again.append)
    compile_bundle(replace(job_of("clip", "fp16"), limits=Limits(64, 1, 16, 1)), again.append)
    assert not [line for line in again if "kept" in line]


def test_what_is_built_already_is_kept_and_what_changed_is_built_again(job_of: Callable[..., Job]) -> None:
    job = job_of("clip")
    compile_bundle(job, lambda line: None)
    before = {path.name: path.stat().st_mtime_ns for path in job.folder.iterdir()}
    told: list[str] = []
    compile_bundle(job, told.append)
    assert told == ["vision_encoder: built already, kept", "text_encoder: built already, kept"]
    assert {path.name: path.stat().st_mtime_ns for path in job.folder.iterdir()} == before
    (job.folder / "text_encoder.engine").write_bytes(b"cut short")
    told.clear()
    compile_bundle(job, told.append)
    assert told[0] == "vision_encoder: built already, kept"
    assert told[-1].startswith("text_encoder: ")
    assert told[-1].endswith(" MB")
    other = replace(job, limits=replace(job.limits, max_images=3))
    told.clear()
    compile_bundle(other, told.append)
    assert told[-1] == "text_encoder: built already, kept"
    assert told[0].startswith("vision_encoder: ")
    assert "kept" not in told[0]


def test_an_engine_of_another_graph_is_refused(job_of: Callable[..., Job], portable_of: Callable[..., Bundle]) -> None:
    job = job_of("clip")
    record = compile_bundle(job, lambda line: None).engines["text_encoder"]
    with pytest.raises(BundleFileError, match=r"text_encoder\.engine is stale.*pocketvlm compile"):
        require_fresh(portable_of("clip", "int8"), job.folder, "text_encoder", record)
    (job.folder / record.file).write_bytes(b"cut short")
    with pytest.raises(BundleFileError, match="holds 9 bytes that are not those"):
        require_fresh(job.bundle, job.folder, "text_encoder", record)


def test_a_signal_ends_a_build_and_what_was_built_before_stays(job_of: Callable[..., Job]) -> None:
    job = job_of("clip")

    def interrupt(line: str) -> None:
        if line.startswith("text_encoder: "):
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            compile_bundle(job, interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert read_engines(job.folder).engines.keys() == {"vision_encoder"}
    assert {path.name for path in job.folder.iterdir()} == {"engines.json", "vision_encoder.engine"}


def test_progress_names_graphs_and_phases(job_of: Callable[..., Job]) -> None:
    told: list[str] = []
    compile_bundle(job_of("clip"), told.append)
    assert {line.partition(":")[0] for line in told} == {"vision_encoder", "text_encoder"}
    assert len(told) > 4


@pytest.mark.parametrize(
    ("capability", "card"), [(87, "8.7 (Jetson Orin)"), (90, "9.0 (Hopper)"), (110, "11.0 (Jetson Thor)"), (61, "6.1")]
)
def test_a_card_that_the_builder_lacks_is_refused_with_those_it_has(
    job_of: Callable[..., Job], capability: int, card: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        compile_bundle(job_of(capabilities=(capability,)), lambda line: None)
    assert card in str(refused.value)
    assert "builds for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1" in str(refused.value)


@pytest.mark.parametrize(
    ("family", "recipe", "words"),
    [("vlm", "int4", "weights of 4 bits"), ("vlm", "fp32", "float32 products"), ("clip", "fp32", "float32 products")],
)
def test_what_turing_has_no_products_for_is_refused_before_a_graph_is_read(
    job_of: Callable[..., Job], family: str, recipe: str, words: str
) -> None:
    job = job_of(family, recipe, capabilities=(86, 75))
    with pytest.raises(SettingsError, match=rf"--compute-capability 7\.5: .*\.onnx has {words}.*--weights fp16"):
        compile_bundle(job, lambda line: None)
    assert not job.folder.exists()


@pytest.mark.parametrize(("recipe", "capability"), [("fp16", 75), ("int8", 75), ("fp16", 80), ("int4", 121)])
def test_the_oldest_and_the_newest_card_are_built_for(job_of: Callable[..., Job], recipe: str, capability: int) -> None:
    index = compile_bundle(job_of("vlm", recipe, capabilities=(capability,)), lambda line: None)
    assert index.engines.keys() == {"vision_encoder", "embed_tokens", "decoder"}


def test_a_cache_beyond_the_models_context_is_refused(job_of: Callable[..., Job], limits: Limits) -> None:
    with pytest.raises(SettingsError, match=r"--cache-rows 513: .* takes 16 to 512"):
        compile_bundle(job_of(limits=replace(limits, cache_rows=513)), lambda line: None)
    with pytest.raises(SettingsError, match="--max-prompt-tokens 65 do not fit --cache-rows 64"):
        compile_bundle(job_of(limits=replace(limits, max_prompt_tokens=65)), lambda line: None)


def test_limits_that_the_recorded_run_does_not_fit_are_refused_before_anything_is_built(
    job_of: Callable[..., Job], limits: Limits
) -> None:
    job = job_of(limits=replace(limits, max_prompt_tokens=11))
    with pytest.raises(SettingsError, match=r"--max-prompt-tokens 11: .*recorded at export, which has 12; take 12"):
        compile_bundle(job, lambda line: None)
    assert not job.folder.exists()


def test_the_order_of_cards_makes_no_other_engine(job_of: Callable[..., Job]) -> None:
    compile_bundle(job_of("clip", capabilities=(89, 86)), lambda line: None)
    told: list[str] = []
    index = compile_bundle(job_of("clip", capabilities=(86, 89, 86)), told.append)
    assert {line.partition(": ")[2] for line in told} == {"built already, kept"}
    assert index.engines["text_encoder"].key.capabilities == ("8.6", "8.9")


def test_the_contrib_dialect_is_refused(job_of: Callable[..., Job], clip_bundle: Path) -> None:
    with pytest.raises(SettingsError, match="--dialect portable"):
        compile_bundle(job_of(bundle=open_bundle(clip_bundle)), lambda line: None)


def test_a_folder_of_something_else_is_left_alone(job_of: Callable[..., Job]) -> None:
    job = job_of("clip")
    job.folder.mkdir()
    (job.folder / "thesis.txt").write_text("mine")
    with pytest.raises(SettingsError, match="choose another -o"):
        compile_bundle(job, lambda line: None)
    assert [path.name for path in job.folder.iterdir()] == ["thesis.txt"]


def test_engines_of_another_bundle_are_left_alone(job_of: Callable[..., Job]) -> None:
    compile_bundle(job_of("clip"), lambda line: None)
    with pytest.raises(SettingsError, match="holds engines of tiny-clip-fp16, not of"):
        compile_bundle(job_of("vlm"), lambda line: None)


def test_a_damaged_index_is_told_in_one_line(job_of: Callable[..., Job]) -> None:
    job = job_of("clip")
    compile_bundle(job, lambda line: None)
    index = json.loads((job.folder / "engines.json").read_text())
    (job.folder / "engines.json").write_text(json.dumps({**index, "cache_rows": 0}))
    with pytest.raises(BundleFileError, match=r"engines\.json is missing or damaged: cache_rows"):
        read_engines(job.folder)
