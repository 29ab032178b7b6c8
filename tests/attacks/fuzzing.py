"""Mutated requests against the application in this process: statuses, forms of errors, time and memory.

    python tests/attacks/fuzzing.py --inputs 100000 [--engine shipped] [--seed 7]

Everything is drawn from the seed. The fake engine decodes images for real; `shipped` is the engine of the shipped
models in int8, with its tokenizer, template and preprocessing.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import logging
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from payloads import encoded, frames_part, image_part, mp4, small_png, text_part, video_part
from PIL import Image
from wire import CHAT, CLASSIFY, EMBEDDINGS, stream_ending

from serving.api.app import create_app
from serving.fake import FakeClient
from serving.protocol import EngineClient
from serving.settings import ApiSettings

HUNG_S = 30.0
"""After which an input counts as hung; the machine's other work is in it."""
TEXTS = (
    *("", "a", "\0", "\x1b[31m", "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<|im_start|>system"),
    *("\ud800", "\udfff x", "\U0001f600" * 50, "\u202e", "a" * 3000, "{{7*7}}", "{% raw %}", "\ufeff", "\r\n\r\n"),
    *("data: [DONE]", "e\u0301" * 100, "\ufdfa" * 300, "%s%n", "../../etc/passwd", "http://169.254.169.254/"),
    *("data:image/png;base64,", "data:image/png;base64,%%%", "data:,", "file:///etc/passwd", "{}", "{0.__class__}"),
)
NUMBERS = (0, 1, -1, 2**31, 2**63, 2**64, 10**400, 1e308, -0.0, 0.5, float("nan"), float("inf"), True, 5e-324, 256)
WORDS = ("type", "text", "image_url", "url", "role", "content", "user", "assistant", "system", "\ud800", "detail")
FIELDS = (
    *("stream", "stream_options", "n", "frequency_penalty", "presence_penalty", "logprobs", "response_format", "user"),
    *("video", "media_io_kwargs", "mm_processor_kwargs"),
    *("max_completion_tokens", "temperature", "top_p", "top_k", "seed", "stop", "tools", "logit_bias", "\ud800"),
)
LAYOUTS = ("uniform", "image-grid", "thumbnail-and-sampling", "progressive-pooling", "spiral")
BRACKETS = (10, 100, 500, 900, 960, 1000, 5000)


@dataclass
class Tally:
    """What came of the inputs.

    Attributes:
        statuses: Of the answers.
        bad: Inputs that found a fault: what, and how it began.
        longest_s: Of one input.
        slowest: That input, as it began.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    slowest: str = ""


class Inputs:
    """Draws requests, sound ones spoilt in a few places.

    Args:
        seed: Of everything.
        chat_model: Served.
        embedding_model: Served.
    """

    def __init__(self, seed: int, chat_model: str, embedding_model: str) -> None:
        self._random = random.Random(seed)
        self._chat_model, self._embedding_model = chat_model, embedding_model
        self._files = image_files()
        self._videos = video_files()

    def next(self) -> tuple[str, bytes]:
        """Return path and body of a request."""
        draw = self._random.random()
        if draw < 0.45:
            return self._picture()
        if draw < 0.95:
            return self._fields()
        return self._bytes()

    def _picture(self) -> tuple[str, bytes]:
        """Return a sound request with a spoilt image."""
        if self._random.random() < 0.3:
            return self._video()
        part = image_part(self._spoilt(self._random.choice(self._files)))
        if self._random.random() < 0.5:
            return EMBEDDINGS, json.dumps({"model": self._embedding_model, "input": [part]}).encode()
        return CHAT, json.dumps({**self._chat([part, text_part("x")]), "max_tokens": 1}).encode()

    def _video(self) -> tuple[str, bytes]:
        """Return a sound request with a spoilt video, or a spoilt list of frames."""
        if self._random.random() < 0.7:
            part = video_part(self._spoilt(self._random.choice(self._videos)))
        else:
            part = frames_part([self._spoilt(self._files[0]), *self._files[: self._random.randrange(3)]])
        options = {"layout": self._random.choice(LAYOUTS), "num_frames": self._random.choice((1, 3, 8, -1, None))}
        body = {**self._chat([part, text_part("x")]), "max_tokens": 1, "video": options}
        if self._random.random() < 0.2:
            self._spoil(body)
        return CHAT, json.dumps(body).encode()

    def _fields(self) -> tuple[str, bytes]:
        """Return a request whose fields are spoilt."""
        path, body = self._sound()
        for _ in range(self._random.choice((1, 1, 2, 3))):
            self._spoil(body)
        if self._random.random() < 0.3:
            body[self._random.choice(FIELDS)] = self._value()
        return path, json.dumps(body).encode()

    def _bytes(self) -> tuple[str, bytes]:
        """Return a request that is hardly JSON."""
        path, body = self._sound()
        data = json.dumps(body).encode()
        depth = self._random.choice(BRACKETS)
        brackets = b"[" * depth + b"]" * depth
        nested = data[:-1] + b',"zzz":' + brackets + b"}"
        return path, self._random.choice((self._spoilt(data), brackets, nested, data * 2, b"", b"null", b"\xff\xfe"))

    def _sound(self) -> tuple[str, dict[str, Any]]:
        path = self._random.choice((CHAT, CHAT, CHAT, EMBEDDINGS, CLASSIFY))
        text = self._random.choice(TEXTS) or "x"
        part = image_part(self._files[0])
        if path == CHAT:
            video = video_part(self._videos[0])
            content = self._random.choice(
                (text, [text_part(text)], [part, text_part("x")], [video, part, text_part("x")])
            )
            return path, {**self._chat(content), "stream": self._random.random() < 0.3}
        if path == EMBEDDINGS:
            return path, {"model": self._embedding_model, "input": [text, part]}
        body = {"model": self._embedding_model, "images": [part], "labels": ["a", text, "b"]}
        return path, {**body, "prompt_template": self._random.choice(("a {}", "{}{}", "{} \ud800", text))}

    def _chat(self, content: Any) -> dict[str, Any]:
        message = {"role": "user", "content": content}
        return {"model": self._chat_model, "messages": [message], "max_tokens": self._random.choice((1, 2, 4))}

    def _value(self, depth: int = 0) -> Any:
        """Return some value of JSON."""
        draw = self._random.randrange(8)
        if depth > 2 or draw < 5:
            return copy.deepcopy(self._random.choice((*TEXTS, *NUMBERS, None, {}, [])))
        if draw < 7:
            return [self._value(depth + 1) for _ in range(self._random.randrange(4))]
        return {self._random.choice(WORDS): self._value(depth + 1) for _ in range(self._random.randrange(3))}

    def _spoil(self, value: Any) -> None:
        """Change one place of a tree of JSON, in place."""
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not places:
            return
        place = self._random.choice(places)
        if isinstance(value[place], dict | list) and value[place] and self._random.random() < 0.7:
            self._spoil(value[place])
        elif self._random.random() < 0.2:
            del value[place]
        else:
            value[place] = self._value()

    def _spoilt(self, data: bytes) -> bytes:
        """Return bytes with a few of them changed, lost, repeated or taken from another file."""
        spoilt = bytearray(data)
        for _ in range(self._random.choice((1, 1, 2, 4, 16))):
            at = self._random.randrange(len(spoilt) + 1)
            self._random.choice(self._changes)(self, spoilt, at)
        return bytes(spoilt)

    def _set_byte(self, data: bytearray, at: int) -> None:
        data[at : at + 1] = bytes([self._random.randrange(256)])

    def _set_number(self, data: bytearray, at: int) -> None:
        data[at : at + 4] = self._random.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"))

    def _set_marker(self, data: bytearray, at: int) -> None:
        data[at : at + 2] = self._random.choice((b"\xff\xda", b"\xff\xd8", b"\xff\xc4", b"\xff\xd9", b"II", b"MM"))

    def _drop(self, data: bytearray, at: int) -> None:
        del data[at : at + self._random.randrange(1, 50)]

    def _repeat(self, data: bytearray, at: int) -> None:
        data[at:at] = data[self._random.randrange(len(data) + 1) :][: self._random.randrange(1, 200)]

    def _cut(self, data: bytearray, at: int) -> None:
        del data[at:]

    def _splice(self, data: bytearray, at: int) -> None:
        data[at : at + 20] = self._random.choice(self._files)[:20]

    _changes = (_set_byte, _set_number, _set_marker, _drop, _repeat, _cut, _splice)


@lru_cache
def image_files() -> tuple[bytes, ...]:
    """Return small images of every kind and mode that Pillow writes, and files that only claim to be some."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        *(("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("GIF", {}), ("WEBP", {}), ("BMP", {})),
        *(("TIFF", {"compression": name}) for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")),
    ]
    files = [small_png(), encoded(Image.new("RGB", (61, 33)), "TIFF", compression="jpeg")]
    for mode in ("RGB", "RGBA", "L", "P", "1", "CMYK", "I;16", "F", "LA"):
        for kind, options in kinds:
            try:
                files.append(encoded(Image.new(mode, (61, 33)), kind, **options))
            except (OSError, ValueError):  # a kind that has no such mode
                continue
    frames = [Image.new("RGB", (20, 20), (index, 0, 0)) for index in range(5)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        files.append(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    foreign = (b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4 x", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"PK\x03\x04")
    return (*files, *foreign, b"\0\0\1\0\1\0", b"\0\0\0\x0cjP  \r\n\x87\n", b"SIMPLE  =                    T")


@lru_cache
def video_files() -> tuple[bytes, ...]:
    """Return small videos of every kind that is read."""
    frames = [Image.new("RGB", (32, 16), (index, 200, 0)) for index in range(6)]
    animated = [encoded(frames[0], kind, save_all=True, append_images=frames[1:]) for kind in ("GIF", "WEBP")]
    return (*animated, *(mp4(frames, codec) for codec in ("mpeg4", "libx264")))


App = Callable[..., Any]


async def ask_app(app: App, path: str, body: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """Return status, headers and body of the application's answer, without a socket between."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    inbox = [{"type": "http.request", "body": body, "more_body": False}]
    outbox: list[dict[str, Any]] = []
    is_left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if inbox:
            return inbox.pop()
        await is_left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        outbox.append(message)

    await app(scope, receive, send)
    is_left.set()
    answer = b"".join(message.get("body", b"") for message in outbox)
    return outbox[0]["status"], dict(outbox[0]["headers"]), answer


def fault_of(status: int, headers: dict[bytes, bytes], answer: bytes) -> str:
    """Return what is wrong with an answer; empty where nothing is."""
    if status >= 500:
        return f"status {status}"
    if headers.get(b"content-type", b"").startswith(b"text/event-stream"):
        return "" if stream_ending(answer) != "lost" else "a stream without its end"
    try:
        told = json.loads(answer)
    except ValueError:
        return "no JSON"
    has_error = isinstance(told, dict) and isinstance(told.get("error"), dict)
    return "" if has_error == (status >= 400) else f"status {status}, error body {has_error}"


async def fuzz(app: App, inputs: Inputs, count: int, progress: Callable[[str], None] = print) -> Tally:
    """Ask the application so many times, one after another."""
    tally = Tally()
    for turn in range(count):
        path, body = inputs.next()
        started_s = time.perf_counter()
        try:
            answer = await asyncio.wait_for(ask_app(app, path, body), HUNG_S)
        except TimeoutError:
            tally.bad.append(f"hung: {path} {body[:300]!r}")
            continue
        except Exception as error:  # what the server's own last layer would have to answer
            tally.bad.append(f"{type(error).__name__}: {error}: {path} {body[:300]!r}")
            continue
        if (took_s := time.perf_counter() - started_s) > tally.longest_s:
            tally.longest_s, tally.slowest = took_s, f"{answer[0]} to {path}, {len(body)} bytes, {body[:120]!r}"
        tally.statuses[answer[0]] += 1
        if fault := fault_of(*answer):
            tally.bad.append(f"{fault}: {path} {body[:300]!r} -> {answer[2][:200]!r}")
        if (turn + 1) % 10_000 == 0:
            progress(f"{turn + 1} inputs, {dict(tally.statuses)}, {len(tally.bad)} bad, {peak_mb():.0f} MB")
    return tally


def peak_mb() -> float:
    """Return this process's largest resident set."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


async def fuzz_fake(count: int, seed: int) -> Tally:
    """Fuzz the application over the fake engine."""
    client = FakeClient()
    return await fuzz(create_app(client, ApiSettings()), Inputs(seed, "fake-vlm", "fake-clip"), count)


async def fuzz_shipped(count: int, seed: int) -> Tally:
    """Fuzz the application over the shipped models in int8, in this process."""
    from attack_bundles import int8_bundle

    from serving.models.client import LocalClient
    from serving.settings import EngineSettings

    bundles = [int8_bundle("vlm"), int8_bundle("clip")]
    async with LocalClient(bundles, EngineSettings(intra_threads=1)) as client:
        engine: EngineClient = client
        return await fuzz(create_app(engine, ApiSettings()), Inputs(seed, "vlm-int8", "clip-int8"), count)


ENGINES = {"fake": fuzz_fake, "shipped": fuzz_shipped}


def main() -> int:
    """Fuzz, print what came of it, and return 1 where an input found a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--engine", choices=ENGINES, default="fake")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    before_mb, started_s = peak_mb(), time.monotonic()
    tally = asyncio.run(ENGINES[options.engine](options.inputs, options.seed))
    num_5xx = sum(count for status, count in tally.statuses.items() if status >= 500)
    for line in tally.bad[:40]:
        print(f"BAD {line}")
    grown_mb, took_s = peak_mb() - before_mb, time.monotonic() - started_s
    print(f"{options.inputs} inputs of seed {options.seed}, {options.engine} engine: {sorted(tally.statuses.items())}")
    print(f"{len(tally.bad)} bad, {num_5xx} of 5xx; longest {tally.longest_s:.2f} s ({tally.slowest})")
    print(f"peak {peak_mb():.0f} MB (+{grown_mb:.0f}); {took_s:.0f} s in all")
    return 1 if tally.bad else 0


if __name__ == "__main__":
    sys.exit(main())
