from __future__ import annotations

from collections.abc import Iterator

import pytest

from bundle import errors
from bundle.errors import OverloadedError, ParameterError, PocketVLMError
from serving.api.errors import HTTP_ERRORS, UNEXPECTED, error_body, http_error


def leaves(root: type[PocketVLMError]) -> Iterator[type[PocketVLMError]]:
    children = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    for child in children:
        yield from leaves(child)
    if not children:
        yield root


@pytest.mark.parametrize("leaf", sorted(leaves(PocketVLMError), key=lambda kind: kind.__name__))
def test_every_kind_of_error_has_a_status_of_its_own(leaf: type[PocketVLMError]) -> None:
    assert leaf in HTTP_ERRORS


def test_the_callers_mistakes_are_4xx_and_ours_5xx() -> None:
    for kind, looks in HTTP_ERRORS.items():
        # What a server has no reader for is refused like a wrong format: clients send again what ended in a 5xx.
        is_callers = issubclass(
            kind, (errors.RequestError, errors.AccessError, errors.OverloadedError, errors.MissingExtraError)
        )
        assert looks.status // 100 == (4 if is_callers else 5), kind


def test_statuses_are_those_that_clients_retry_or_fix_by() -> None:
    kinds = (errors.BodySizeError, errors.OverloadedError, errors.EngineDeadError, errors.ModelNotFoundError)
    assert [HTTP_ERRORS[kind].status for kind in kinds] == [413, 429, 503, 404]


def test_an_unlisted_kind_takes_its_ancestors_status() -> None:
    class PickyError(OverloadedError):
        pass

    assert http_error(PickyError("x")) == HTTP_ERRORS[OverloadedError]


def test_a_body_names_the_field_and_hides_what_was_not_meant_for_callers() -> None:
    assert error_body(ParameterError("bad", "top_k"))["error"] == {
        "message": "bad",
        "type": "invalid_request_error",
        "param": "top_k",
        "code": "invalid_parameter",
    }
    hidden = error_body(RuntimeError("/secret"))["error"]
    assert (hidden["type"], hidden["code"]) == (UNEXPECTED.type, UNEXPECTED.code)
    assert "/secret" not in hidden["message"]
