"""What a request is told when the work it was part of failed."""

from __future__ import annotations

from bundle.errors import MachineError, PocketVLMError


def explained(error: Exception) -> PocketVLMError:
    """Return the error itself when it was raised on purpose, else one that says that a step failed."""
    if isinstance(error, PocketVLMError):
        return error
    return MachineError(f"the step that this request was part of failed: {error}. Others go on; send it again.")
