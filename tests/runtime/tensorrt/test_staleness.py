"""What `compile` keeps and what a load opens are the same engines; the stand-in builds and runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

import runtime.tensorrt.compiler as compiler_module
import runtime.tensorrt.engine_graph as engine_graph_module
import runtime.tensorrt.library as library_module
from bundle.directory import Bundle
from bundle.engines import read_engines, require_fresh, write_engines
from bundle.errors import BundleFileError
from runtime.fixed_run import device_value
from runtime.session import Session
from runtime.settings import RuntimeSettings
from runtime.tensorrt.card import Card
from runtime.tensorrt.compiler import Form, Job, compile_bundle
from runtime.tensorrt.profiles import Limits

KEPT = "built already, kept"


@pytest.fixture(autouse=True)
def _no_device(monkeypatch: pytest.MonkeyPatch, stand_in: ModuleType, tmp_path: Path) -> None:
    monkeypatch.setattr(library_module, "_proper", lambda: stand_in)
    monkeypatch.setattr(library_module, "_rtx", lambda: stand_in)
    monkeypatch.setattr(engine_graph_module, "device_value", lambda array, device: device_value(array, "cpu"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def job_of(portable_of: Callable[..., Bundle], standard: Form, limits: Limits, tmp_path: Path) -> Callable[..., Job]:
    return lambda family="clip": Job(portable_of(family), tmp_path / "engines", "tensorrt", standard, limits)


def told_by(job: Job) -> list[str]:
    told: list[str] = []
    compile_bundle(job, told.append)
    return [line for line in told if line.endswith((KEPT, " MB"))]


def on_device(job: Job) -> RuntimeSettings:
    return RuntimeSettings(provider="cuda", intra_threads=1, engines=(job.folder,))


def ended_at(name: str) -> Callable[[str], None]:
    def say(line: str) -> None:
        if line.startswith(f"{name}: "):
            raise KeyboardInterrupt

    return say


def test_an_engine_of_tensorrt_is_of_the_card_that_built_it(job_of: Callable[..., Job], monkeypatch) -> None:
    job = job_of()
    for card in (Card("Orin", "8.7"), Card("Orin", "8.7", "another driver"), Card("Thor", "11.0")):
        monkeypatch.setattr(compiler_module, "card_here", lambda card=card: card)
        lines = told_by(job)
        assert [line.endswith(KEPT) for line in lines] == [card.driver == "another driver"] * 2, card
        assert {record.key.card for record in read_engines(job.folder).engines.values()} == {str(card)}


def test_a_damaged_engine_of_the_same_size_is_built_again(job_of: Callable[..., Job]) -> None:
    job = job_of()
    compile_bundle(job, lambda line: None)
    record = read_engines(job.folder).engines["text_encoder"]
    path = job.folder / record.file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(BundleFileError, match="not those which were built"):
        require_fresh(job.bundle, job.folder, "text_encoder", record)
    assert [line.endswith(KEPT) for line in told_by(job)] == [True, False]
    require_fresh(job.bundle, job.folder, "text_encoder", record)


def test_a_build_for_other_limits_that_was_ended_leaves_no_engine_that_its_index_belies(
    job_of: Callable[..., Job],
) -> None:
    job = job_of("vlm")
    compile_bundle(job, lambda line: None)
    before = read_engines(job.folder)
    larger = replace(job, limits=replace(job.limits, cache_rows=128, max_batch=8))
    with pytest.raises(KeyboardInterrupt):
        compile_bundle(larger, ended_at("vision_encoder"))
    assert read_engines(job.folder) == before  # nothing was built: all is as it was
    with pytest.raises(KeyboardInterrupt):
        compile_bundle(larger, ended_at("decoder"))
    index = read_engines(job.folder)
    assert (index.cache_rows, index.max_batch) == (128, 8)
    assert "decoder" not in index.engines
    with pytest.raises(BundleFileError, match=r"holds no engine of decoder.*Go on with: pocketvlm compile"):
        Session(job.bundle, "decoder", on_device(job))
    assert [line.endswith(KEPT) for line in told_by(larger)] == [True, True, False]
    Session(job.bundle, "decoder", on_device(job))


def test_an_engine_for_other_sizes_than_its_index_tells_is_refused(job_of: Callable[..., Job]) -> None:
    job = job_of("vlm")
    index = compile_bundle(job, lambda line: None)
    write_engines(job.folder, index.model_copy(update={"max_batch": 8}))
    with pytest.raises(BundleFileError, match=r"decoder\.engine was built for other sizes.*pocketvlm compile"):
        Session(job.bundle, "decoder", on_device(job))
    write_engines(job.folder, index.model_copy(update={"max_batch": None}))  # of before it was told
    Session(job.bundle, "decoder", on_device(job))


def test_an_engine_of_a_graph_that_was_written_otherwise_is_refused(job_of: Callable[..., Job]) -> None:
    job = job_of()
    record = compile_bundle(job, lambda line: None).engines["text_encoder"]
    older = record.model_copy(update={"key": record.key.model_copy(update={"form": "standard-1"})})
    with pytest.raises(BundleFileError, match=r"written as standard-1, and is standard-.*pocketvlm compile"):
        require_fresh(job.bundle, job.folder, "text_encoder", older)


def test_limits_that_change_no_engine_are_told_by_the_index_all_the_same(job_of: Callable[..., Job]) -> None:
    job = job_of()
    compile_bundle(job, lambda line: None)
    other = replace(job, limits=replace(job.limits, max_prompt_tokens=24))
    assert [line.endswith(KEPT) for line in told_by(other)] == [True, True]
    assert read_engines(job.folder).max_prompt_tokens == 24
