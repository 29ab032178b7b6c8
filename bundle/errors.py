"""Every error PocketVLM raises on purpose.

    PocketVLMError
    ├── BundleError                a directory that is not a usable bundle
    │   ├── BundleFormatError      manifest missing, unreadable, or of another format version
    │   ├── BundleFileError        a file missing, or not the one the manifest recorded
    │   ├── SignatureError         a graph's inputs or outputs are not what the manifest says
    │   ├── GoldenError            the canary run does not reproduce the recorded outputs
    │   └── GateError              the variant failed its quality gate, or was never gated
    ├── CheckpointError            a checkpoint that cannot be exported
    │   ├── UnknownArchitectureError
    │   ├── MissingWeightError
    │   ├── SurplusWeightError
    │   └── UnsupportedConfigError
    ├── QuantizationError          a scheme that is unknown, or not for this component
    ├── MachineError               something this machine lacks: an operator, a provider, a package
    │   ├── OutOfMemoryError       memory, for now: the same may work after a while
    │   └── MissingExtraError      an optional package that one kind of request needs
    ├── SettingsError              a configuration file, environment variable or flag that cannot be used
    ├── RequestError               what a caller sent cannot be served as asked
    │   ├── ImageError             bytes that are not an image, or one that is too large
    │   ├── PromptError            messages that do not form a prompt
    │   ├── ContextLengthError     more tokens than the model holds
    │   ├── ParameterError         a field unknown, unsupported or out of range
    │   ├── BodySizeError          a request body over the byte limit
    │   ├── SlowBodyError          a request body that did not arrive in time
    │   ├── ModelNotFoundError
    │   ├── PrefixNotFoundError
    │   └── TaskError              the model cannot do this task
    ├── AccessError                whoever asks may not, or not now
    │   ├── KeyRefusedError        no key, or one that is wrong, revoked or expired
    │   ├── AdminKeyError          a key that is no administrator's
    │   └── RateLimitError         the key took what it may; retry after a while
    ├── OverloadedError            the queue is full; retry after a while
    ├── DeadlineError              a request took longer than it may
    ├── ModelStartingError         nothing of the model runs yet, and enough requests wait for it; retry after a while
    └── EngineDeadError            a worker died, hangs or was stopped; its requests fail
        └── StartingError          it does not work yet

A message says what was wrong (the value), the limit, and what to do. HTTP status codes live in `serving/api`.
"""

from __future__ import annotations


class PocketVLMError(Exception):
    """The base of every error raised on purpose; its text is fit to show to a user."""


class BundleError(PocketVLMError):
    """A directory that is not a usable bundle."""


class BundleFormatError(BundleError):
    """The manifest is missing, unreadable, or of another format version."""


class BundleFileError(BundleError):
    """A file is missing, or is not the one that the manifest recorded."""


class SignatureError(BundleError):
    """A graph's inputs or outputs differ from the manifest."""


class GoldenError(BundleError):
    """The canary run does not reproduce the outputs recorded at export."""


class GateError(BundleError):
    """The variant failed its quality gate, or was never gated."""


class CheckpointError(PocketVLMError):
    """A checkpoint that cannot be exported."""


class UnknownArchitectureError(CheckpointError):
    """The config names a model type that no exporter knows."""


class MissingWeightError(CheckpointError):
    """The graph wants a weight that the checkpoint lacks."""


class SurplusWeightError(CheckpointError):
    """The checkpoint holds a weight that the graph does not use."""


class UnsupportedConfigError(CheckpointError):
    """The config asks for something that the exporter does not build."""


class QuantizationError(PocketVLMError):
    """A weight scheme is unknown, or cannot be applied to this component."""


class MachineError(PocketVLMError):
    """This machine lacks something: an operator, a provider, a package."""


class OutOfMemoryError(MachineError):
    """This machine lacks memory for what was asked, or for what runs beside it; nothing is wrong with the request."""


class MissingExtraError(MachineError):
    """An optional package that one kind of request needs is not installed; others are served."""


class SettingsError(PocketVLMError):
    """A configuration file, environment variable or flag cannot be used."""


def is_lack_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python's own tells of too little memory, as that of a thread which cannot begin."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    )


class RequestError(PocketVLMError):
    """What a caller sent cannot be served as asked.

    Args:
        message: The text for the caller.
        param: The request field at fault, dotted, where there is one.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, str | None]]:
        """Keep `param` when the error crosses a process boundary."""
        return type(self), (self.message, self.param)


class ImageError(RequestError):
    """Bytes that are not an image, or an image over the limits."""


class PromptError(RequestError):
    """Messages that do not form a prompt."""


class ContextLengthError(RequestError):
    """More tokens than the model or its cache holds."""


class ParameterError(RequestError):
    """A field that is unknown, unsupported or out of range."""


class BodySizeError(RequestError):
    """A request body over the byte limit."""


class SlowBodyError(RequestError):
    """A request body that did not arrive in time."""


class ModelNotFoundError(RequestError):
    """No served model has that name."""


class PrefixNotFoundError(RequestError):
    """No beginning of a conversation is stored under that name."""


class TaskError(RequestError):
    """The model does not do what was asked of it."""


class AccessError(PocketVLMError):
    """Whoever asks may not, or not now."""


class KeyRefusedError(AccessError):
    """A request came without a key, or with one that is wrong, revoked or expired."""


class AdminKeyError(AccessError):
    """What was asked for needs an administrator's key."""


class RateLimitError(AccessError):
    """A key took what it may.

    Args:
        message: The text for the caller.
        retry_after_s: When the same request may be taken.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[RateLimitError], tuple[str, float]]:
        """Keep the wait when the error crosses a process boundary."""
        return type(self), (self.message, self.retry_after_s)


class OverloadedError(PocketVLMError):
    """The queue is full; the caller may retry after a while."""


class ModelStartingError(PocketVLMError):
    """Nothing of the model runs yet, and as many requests wait for it as may; the caller may retry after a while."""


class DeadlineError(PocketVLMError):
    """A request took longer than the server or its caller allows; its work was stopped."""


class EngineDeadError(PocketVLMError):
    """A worker died, hangs or was stopped; its requests fail and readiness turns red."""


class StartingError(EngineDeadError):
    """Models are still being loaded; the same request is answered later."""
