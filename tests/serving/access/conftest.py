from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.access.key_file import add_key
from serving.access.keys import ApiKey, digest_of, new_key


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.jsonl"


@pytest.fixture
def make_key(file: Path) -> Callable[..., str]:
    """Write a key into the file, and return it."""

    def make(name: str = "ci", **fields: Any) -> str:
        key = new_key()
        add_key(file, ApiKey(name=name, sha256=digest_of(key.encode()), **fields))
        return key

    return make
