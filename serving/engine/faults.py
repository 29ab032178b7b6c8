"""What a request is told when the work it was part of failed."""

from __future__ import annotations

from bundle.errors import MachineError, OutOfMemoryError, PocketVLMError, is_lack_of_memory


def explained(error: BaseException) -> PocketVLMError:
    """Return the error itself when it was raised on purpose, else one that says that a step failed."""
    if isinstance(error, PocketVLMError):
        return error
    if is_lack_of_memory(error):
        return OutOfMemoryError("the server lacks memory for a step that this request was part of; retry after a while")
    return MachineError(
        f"the step that this request was part of failed: {error or type(error).__name__}. Others go on; send it again."
    )
