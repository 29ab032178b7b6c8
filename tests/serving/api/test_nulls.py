"""Fields that clients write null for are fields that they leave open."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest
from pydantic import ValidationError

import serving.api
from bundle.errors import ParameterError
from serving.api.fields import Strict
from serving.fake import FakeClient
from serving.settings import ApiSettings

CHAT = "/v1/chat/completions"


def schemas() -> list[type[Strict]]:
    """Return the schemas of all bodies, and of the objects within them."""
    for module in pkgutil.iter_modules(serving.api.__path__, "serving.api."):
        importlib.import_module(module.name)
    found: list[type[Strict]] = [Strict]
    for each in found:
        found += [inner for inner in each.__subclasses__() if inner not in found]
    return found[1:]


def test_null_is_taken_for_every_field_that_may_be_left_out() -> None:
    tried = 0
    for schema in schemas():
        for name, field in schema.model_fields.items():
            if field.is_required():
                continue
            told, tried = field.alias or name, tried + 1
            try:
                schema.model_validate({told: None}, context=ApiSettings())
            except ParameterError:
                pass  # two fields that do not go together: each alone was taken
            except ValidationError as error:
                wrong = [problem for problem in error.errors() if problem["loc"][:1] == (told,)]
                assert not wrong, (schema.__name__, wrong)
    assert tried > 150


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_null_priority_is_the_default(api: Any, engine: FakeClient, path: str) -> None:
    asked = {"messages": [{"role": "user", "content": "a"}]} if path == CHAT else {"prompt": "a"}
    assert api.post(path, {"model": "fake-vlm", **asked, "priority": None}).status_code == 200
    assert engine.generations[-1].priority == 0
