"""A checkpoint's settings files: JSON objects, some of which may be absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bundle.errors import CheckpointError
from export.lfs import require_content


def read_settings(path: Path, *, required: bool = True) -> dict[str, Any]:
    """Return what a file holds; nothing where it is absent and not required.

    Raises:
        CheckpointError: It is required and absent, or not a JSON object.
    """
    if not path.is_file():
        if required:
            raise CheckpointError(f"{path} is missing; the checkpoint is incomplete, download it again")
        return {}
    require_content(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__} where an object is expected")
    return content
