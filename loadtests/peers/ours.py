"""PocketVLM at the measures of a comparison: `python -m loadtests.peers.ours BUNDLE`.

Towers, prompts and steps run through the engine's own stations; first tokens and vectors of images through a whole
client, with template, image decoding and tokenizer; chats through `pocketvlm serve` with its defaults.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundle.directory import Bundle, open_bundle
from bundle.image import PREPROCESSOR, ImageSpec
from loadtests.contestants import Bench, Station, StationBench
from loadtests.images import draw_image
from loadtests.peers.chats import Chats
from loadtests.peers.measures import LONGEST_TOKENS, SEQUENCES, STEPS, Measure
from loadtests.peers.photographs import Photographs
from loadtests.peers.worker import Prepare, Work, serve
from loadtests.stations import open_vision
from serving.models.client import LocalClient
from serving.protocol import EmbedRequest, GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

_IMAGE_PX = 512
_QUESTION = "What is in the image"
_LONGEST = (Station("prefill", LONGEST_TOKENS), Station("decode", SEQUENCES, LONGEST_TOKENS - 1))
_PACKAGES = ("pocketvlm", "onnxruntime")


class Generative:
    """A vision-language bundle, whose client and server start when they are first asked.

    Args:
        bundle: Its folder.
        threads: Of every operator.
        engine: Settings that are not the defaults.
    """

    def __init__(self, bundle: Path, threads: int, engine: Mapping[str, str]) -> None:
        self._bundle, self._threads, self._engine = bundle, threads, engine
        self._bench = StationBench(Bench(bundle, _LONGEST, threads, STEPS, engine))
        self._client: ClientThread | None = None
        self._seeds = itertools.count(1)
        self._chats = Chats([sys.executable, "-m", "pocketvlm", "serve", str(bundle), "--allow-ungated", "--port"])

    @property
    def prepared(self) -> Mapping[str, Prepare]:
        """What it does."""
        stations = dict.fromkeys(("vision", "prefill", "decode"), self._at_station)
        return {**stations, "first_token": self._to_first_token, "chats": self._chats.prepare}

    def close(self) -> None:
        """End the client; a server of chats ends with its measure."""
        if self._client is not None:
            self._client.close()

    def _at_station(self, measure: Measure) -> Work:
        once, times = self._bench.work(Station(measure.kind, measure.size, measure.cached_tokens))  # type: ignore[arg-type]

        def work() -> None:
            for _ in range(times):
                once()

        return work, times

    def _to_first_token(self, measure: Measure) -> Work:
        if self._client is None:
            self._client = ClientThread(self._bundle, self._threads, self._engine)
        client, image = self._client, draw_image(0 if measure.is_repeated else next(self._seeds), _IMAGE_PX)
        return (lambda: client.ask(image)), 1


class ClientThread:
    """A client of the engine in this process, whose event loop has a thread of its own."""

    def __init__(self, bundle: Path, threads: int, engine: Mapping[str, Any]) -> None:
        settings = EngineSettings(intra_threads=threads, allow_ungated=True, verify_digests=False, **engine)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = LocalClient([bundle], settings)
        self._wait(self._client.start())
        self._model = self._wait(self._client.models())[0].name

    def ask(self, image: bytes) -> None:
        """Ask about an image and wait for one token."""
        self._wait(self._answer(image))

    def embed(self, images: Sequence[bytes]) -> None:
        """Make vectors of images, all of one request."""
        self._wait(self._client.embed(EmbedRequest("embed", self._model, tuple(map(ImagePart, images)))))

    def close(self) -> None:
        """End the client and its event loop."""
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _answer(self, image: bytes) -> None:
        message = Message("user", (ImagePart(image), TextPart(_QUESTION)))
        sampling = SamplingParams(max_tokens=1, temperature=0.0)
        async for _ in self._client.generate(GenerateRequest("first", self._model, (message,), sampling)):
            pass

    def _wait(self, told: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(told, self._loop).result()


def open_encoder(bundle: Bundle, threads: int, engine: Mapping[str, Any]) -> Mapping[str, Prepare]:
    """Return what prepares the images of a dual encoder."""
    stage = open_vision(bundle, EngineSettings(intra_threads=threads, vision_batch_tiles=SEQUENCES, **engine))
    height_px, width_px = ImageSpec.read(bundle.path(PREPROCESSOR)).tile_size_px

    def encode(measure: Measure) -> Work:
        shape = measure.size, 3, height_px, width_px
        images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        return (lambda: stage.run([images])), 1

    return {"encode": encode}


class Embedder:
    """A dual encoder, whose client starts when it is first asked.

    Args:
        bundle: Its folder.
        threads: Of every operator.
        engine: Settings that are not the defaults.
    """

    def __init__(self, bundle: Path, threads: int, engine: Mapping[str, str]) -> None:
        self._told = bundle, threads, engine
        self._client: ClientThread | None = None
        self._photographs = Photographs()

    def embed(self, measure: Measure) -> Work:
        """Return what makes vectors of new JPEGs, all of one request."""
        client = self._client = self._client or ClientThread(*self._told)
        files = self._photographs.take(measure.size)
        return (lambda: client.embed(files)), 1

    def close(self) -> None:
        """End the client."""
        if self._client is not None:
            self._client.close()


def open_bundle_of(folder: Path, threads: int, engine: Mapping[str, str]) -> Mapping[str, Prepare]:
    """Return what prepares the measures that a bundle does."""
    bundle = open_bundle(folder, verify=False, allow_ungated=True)
    is_encoder = bundle.manifest.decoder is None
    if not is_encoder:
        return Generative(folder, threads, engine).prepared
    return {**open_encoder(bundle, threads, engine), "embed": Embedder(folder, threads, engine).embed}


def main() -> None:
    """Answer the comparison's questions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--engine", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the engine")
    options = parser.parse_args()
    engine = dict(setting.split("=", 1) for setting in options.engine)
    serve(lambda: open_bundle_of(options.bundle, options.threads, engine), _PACKAGES)


if __name__ == "__main__":
    main()
