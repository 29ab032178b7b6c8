"""Locust users that chat, embed and classify over HTTP, one request in flight each.

Every user is a closed loop: it sends its next request when it has the answer to the last. Timing is taken around the
socket with `time.perf_counter`; drawing images and building bodies happens before the clock starts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import locust  # before requests: it replaces blocking calls, and warns where TLS was loaded first
import requests

from loadtests.images import ImagePool
from loadtests.questions import QUESTIONS
from loadtests.samples import Kind, RequestSample
from loadtests.sse import SSEParser, error_message, read_delta

Task = Callable[[Any], None]

_READ_BYTES = 1 << 16
_ERROR_CHARACTERS = 200

CAPTIONS = ("a red circle", "a blue square", "a green triangle", "two grey dots")
LABELS = ("circle", "square", "triangle", "digit")


class RequestFailedError(Exception):
    """The server answered with an error, or with something that is not a whole answer."""


@dataclass(frozen=True)
class Load:
    """What the users send; filled from Locust's options when the test starts.

    Attributes:
        models: Served model by user kind.
        images: Shared by all users, handed out in turn.
        random: Chooses questions, captions and labels.
        max_tokens: Of a chat answer.
        timeout_s: Longest silence of the server within one request.
    """

    models: dict[str, str]
    images: ImagePool
    random: random.Random
    max_tokens: int
    timeout_s: float


@dataclass
class Clock:
    """The running measurement of one request; filled while the answer is read."""

    started_s: float
    last_text_s: float | None = None
    ttft_ms: float | None = None
    gaps_ms: tuple[float, ...] = ()
    output_tokens: int = 0
    bytes_read: int = 0

    def text_came(self, now_s: float) -> None:
        """Note an event with text."""
        if self.last_text_s is None:
            self.ttft_ms = (now_s - self.started_s) * 1e3
        else:
            self.gaps_ms += ((now_s - self.last_text_s) * 1e3,)
        self.last_text_s = now_s


def tagged_task(*tags: str) -> Callable[[Task], Task]:
    """Return a decorator that makes a method a Locust task, chosen with `--tags` and left out with `--exclude-tags`."""

    def decorate(method: Task) -> Task:
        decorated: Task = locust.tag(*tags)(locust.task(method))
        return decorated

    return decorate


class ApiUser(locust.User):  # type: ignore[misc]
    """A user with one kept-alive connection to the server under test."""

    abstract = True
    wait_time = locust.constant(0)

    def on_start(self) -> None:
        """Open the session; proxies and redirects are off, so that the load reaches the stated host or nothing."""
        self.load: Load = self.environment.load
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Accept-Encoding"] = "identity"

    def on_stop(self) -> None:
        """Close the connection."""
        self.session.close()

    @contextmanager
    def post(self, path: str, body: dict[str, Any], clock: Clock) -> Iterator[Iterator[bytes]]:
        """Send a request and yield the pieces of its answer as they arrive.

        Raises:
            RequestFailedError: The status is not 200.
        """
        url = self.host.rstrip("/") + path
        timeout_s = self.load.timeout_s
        with self.session.post(url, json=body, stream=True, timeout=timeout_s, allow_redirects=False) as response:
            if response.status_code != 200:
                raise RequestFailedError(_refusal(response))
            yield _pieces(response, clock)

    def measure(self, kind: Kind, path: str, body: dict[str, Any]) -> None:
        """Send one request, read its answer and report it to Locust, whether it failed or not."""
        clock, error = Clock(time.perf_counter()), None
        try:
            with self.post(path, body, clock) as pieces:
                self.read_answer(pieces, clock)
        except (RequestFailedError, requests.RequestException, OSError) as failure:
            error = failure
        ended_s = time.perf_counter()
        sample = RequestSample(
            kind=kind,
            started_s=clock.started_s,
            total_ms=(ended_s - clock.started_s) * 1e3,
            ttft_ms=clock.ttft_ms,
            gaps_ms=clock.gaps_ms,
            output_tokens=clock.output_tokens,
            bytes_read=clock.bytes_read,
            error=None if error is None else _error_text(error),
        )
        self.report(sample, path, error)

    def read_answer(self, pieces: Iterator[bytes], clock: Clock) -> None:
        """Read the answer to its end."""
        for _ in pieces:
            pass

    def report(self, sample: RequestSample, path: str, error: Exception | None) -> None:
        """Fire Locust's entries: the request's total, and for a chat its first token and each gap after it."""
        name = sample.kind.replace("_", " ")
        self._fire("POST", f"{path} ({name})", sample.total_ms, sample, error)
        if error is not None:
            return
        if sample.ttft_ms is not None:
            self._fire("SSE", "time to first token", sample.ttft_ms)
        for gap_ms in sample.gaps_ms:
            self._fire("SSE", "inter-token latency", gap_ms)

    def _fire(
        self,
        request_type: str,
        name: str,
        milliseconds: float,
        sample: RequestSample | None = None,
        error: Exception | None = None,
    ) -> None:
        self.environment.events.request.fire(
            request_type=request_type,
            name=name,
            response_time=milliseconds,
            response_length=sample.bytes_read if sample else 0,
            exception=error,
            context={"sample": sample},
        )


def _pieces(response: requests.Response, clock: Clock) -> Iterator[bytes]:
    """Yield what one read of the socket gives, whatever the transfer encoding."""
    while piece := response.raw.read1(_READ_BYTES):
        clock.bytes_read += len(piece)
        yield piece


def _refusal(response: requests.Response) -> str:
    """Return the status and the server's message, or the body's first characters where it holds none."""
    try:
        told = error_message(response.json())
    except ValueError:
        told = response.text
    return f"{response.status_code}: {told[:_ERROR_CHARACTERS]}"


def _error_text(error: Exception) -> str:
    """Return a line that is the same for the same fault, fit to be counted."""
    if isinstance(error, RequestFailedError):
        return str(error)
    return type(error).__name__


class ChatUser(ApiUser):
    """Asks about an image and reads the streamed answer."""

    kind = "chat"

    @tagged_task("chat")
    def ask(self) -> None:
        """Send one question with one image."""
        question = {"type": "text", "text": self.load.random.choice(QUESTIONS)}
        body = {
            "model": self.load.models[self.kind],
            "messages": [{"role": "user", "content": [self.load.images.take(), question]}],
            "max_tokens": self.load.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        self.measure("chat", "/v1/chat/completions", body)

    def read_answer(self, pieces: Iterator[bytes], clock: Clock) -> None:
        """Time each event with text as it arrives.

        Raises:
            RequestFailedError: The stream reports an error, or ends before its finish reason and its last event.
        """
        parser, num_texts, tokens, is_finished, is_done = SSEParser(), 0, None, False, False
        for piece in pieces:
            now_s = time.perf_counter()
            for delta in map(read_delta, parser.feed(piece)):
                if delta.error is not None:
                    raise RequestFailedError(f"in the stream: {delta.error[:_ERROR_CHARACTERS]}")
                if delta.text:
                    clock.text_came(now_s)
                    num_texts += 1
                tokens = delta.output_tokens if delta.output_tokens is not None else tokens
                is_finished = is_finished or delta.finish_reason is not None
                is_done = is_done or delta.is_done
        if not (is_finished and is_done):
            raise RequestFailedError("the stream ended before its last event")
        clock.output_tokens = num_texts if tokens is None else tokens


class EmbedUser(ApiUser):
    """Embeds texts and images, as many of the one as of the other."""

    kind = "embed"

    @tagged_task("embed", "embed-text")
    def embed_texts(self) -> None:
        """Embed two captions."""
        body = {"model": self.load.models[self.kind], "input": self.load.random.sample(CAPTIONS, 2)}
        self.measure("embed_text", "/v1/embeddings", body)

    @tagged_task("embed", "embed-image")
    def embed_image(self) -> None:
        """Embed one image."""
        body = {"model": self.load.models[self.kind], "input": [self.load.images.take()]}
        self.measure("embed_image", "/v1/embeddings", body)


class ClassifyUser(ApiUser):
    """Scores an image against candidate labels."""

    kind = "classify"

    @tagged_task("classify")
    def classify(self) -> None:
        """Classify one image."""
        body = {
            "model": self.load.models[self.kind],
            "images": [self.load.images.take()],
            "labels": list(LABELS),
        }
        self.measure("classify", "/v1/classify", body)


USER_CLASSES: tuple[type[ApiUser], ...] = (ChatUser, EmbedUser, ClassifyUser)
