"""A small JSON file of a bundle, read into the model that describes it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from bundle.errors import BundleFileError

_MOST_BYTES = 1 << 20

Model = TypeVar("Model", bound=BaseModel)


def read_json(model: type[Model], path: Path) -> Model:
    """Return what a JSON file holds.

    Raises:
        BundleFileError: It is missing, too large, not JSON, or something in it is out of range; in one line.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise BundleFileError(f"{path} holds {path.stat().st_size} bytes; at most {_MOST_BYTES} are read")
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BundleFileError(
            f"{path} is missing or damaged: {first_problem(error)}. Export the checkpoint again."
        ) from error
    except OSError as error:
        raise BundleFileError(
            f"{path} is missing or damaged: {error.strerror}. Export the checkpoint again."
        ) from error


def first_problem(error: ValidationError) -> str:
    """Return where and what the first of the problems is, and how many there are."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    return printable(f"{where}: {first['msg']} ({error.error_count()} problems)")


def printable(text: str) -> str:
    """Return a text in one line that a terminal shows as it is: part of it may be a stranger's."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:1000]
