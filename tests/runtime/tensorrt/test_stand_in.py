"""The stand-in has no call that the real module lacks; the real one refuses an engine where there is no card."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from bundle.directory import Bundle
from bundle.errors import MachineError
from runtime.tensorrt.compiler import Form, Job, compile_bundle
from runtime.tensorrt.engine import Engine
from runtime.tensorrt.library import Library
from runtime.tensorrt.profiles import Limits

OWN = {"profiles", "shapes", "session", "values", "content", "cache", "model", "path"}
"""Of the stand-in's insides."""


def test_every_name_of_the_stand_in_is_one_of_the_real_module(stand_in: ModuleType, rtx: Library) -> None:
    classes = {
        name: each
        for name, each in vars(stand_in).items()
        if inspect.isclass(each) and each.__module__ == stand_in.__name__
    }
    assert len(classes) > 15
    for name, each in classes.items():
        real = getattr(rtx.module, name)
        members = {member for member in vars(each) if not member.startswith("_")} - OWN - {"OTHER"}
        assert members <= set(dir(real)), name
    assert callable(rtx.module.nptype)


def test_the_real_library_says_in_one_line_that_an_engine_cannot_be_loaded_here(
    rtx: Library, portable_of: Callable[..., Bundle], standard: Form, limits: Limits, tmp_path: Path
) -> None:
    job = Job(portable_of("vlm", "fp16"), tmp_path / "engines", "tensorrt-rtx", standard, limits, (86,))
    record = compile_bundle(job, lambda line: None).engines["embed_tokens"]
    with pytest.raises(MachineError, match=r"cannot be loaded here: .*It was built for 8\.6") as refused:
        Engine(rtx, job.folder / record.file, record)
    assert "\n" not in str(refused.value)
