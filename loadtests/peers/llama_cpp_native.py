"""llama.cpp at the measures of a comparison: `python -m loadtests.peers.llama_cpp_native FILE`.

Prompts and steps run in llama-cpp-python, built on this machine for its instructions; chats go to a `llama-server` on
the path, or else to xllamacpp's wheel, which is llama-server's code built for any x86-64 with AVX2.

    python -m loadtests.peers.llama_cpp_native FLOAT32_FILE OUTPUT --type Q4_0
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from loadtests.llama_binding import NativeLlama
from loadtests.peers.chats import Chats
from loadtests.peers.measures import LONGEST_TOKENS, SEQUENCES, STEPS, Measure
from loadtests.peers.worker import Prepare, Work, serve

_PACKAGES = ("llama-cpp-python", "xllamacpp")
_SERVED_TOKENS = 1024
"""Of each chat's slot."""


class Decoder:
    """One file.

    Args:
        file: A GGUF.
        threads: Of prompts and of single tokens.
    """

    def __init__(self, file: Path, threads: int) -> None:
        self._alone = NativeLlama().open(file, LONGEST_TOKENS, threads)
        self._together = NativeLlama().open(file, LONGEST_TOKENS, threads, SEQUENCES)
        self._ids: list[int] = np.random.default_rng(0).integers(0, 256, LONGEST_TOKENS).tolist()
        self._chats = Chats(_server(file, threads))

    @property
    def prepared(self) -> Mapping[str, Prepare]:
        """What it does."""
        return {"prefill": self._prefill, "decode": self._decode, "chats": self._chats.prepare}

    def _prefill(self, measure: Measure) -> Work:
        prompt = self._ids[: measure.size]
        return (lambda: self._alone.run(prompt, 0)), 1

    def _decode(self, measure: Measure) -> Work:
        session = self._alone if measure.size == 1 else self._together
        session.run(self._ids[: measure.cached_tokens], 0)
        if measure.size > 1:
            session.share()
        tokens = self._ids[: measure.size]

        def steps() -> None:
            for _ in range(STEPS):  # each forgets the one before: all run behind as many rows, as a bundle's do
                session.step(tokens, measure.cached_tokens)

        return steps, STEPS


def _server(file: Path, threads: int) -> list[str]:
    """Return what serves a file, but for the port: a llama-server on the path, or else the wheel's."""
    native = shutil.which("llama-server")
    if native is None:
        own = [sys.executable, "-m", "loadtests.peers.llama_cpp_native", str(file), "--threads", str(threads)]
        return [*own, "--serve"]
    sizes = ["-np", str(SEQUENCES), "-c", str(_SERVED_TOKENS * SEQUENCES), "-t", str(threads)]
    return [native, "-m", str(file), *sizes, "--host", "127.0.0.1", "--jinja", "--port"]


def serve_chats(file: Path, threads: int, port: int) -> None:
    """Serve a file by llama-server's code until the process ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_parallel = SEQUENCES
    params.n_ctx = _SERVED_TOKENS * SEQUENCES
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.hostnames, params.port = ["127.0.0.1"], port
    params.warmup = True
    server = xllamacpp.Server(params)
    print(f"serving at {server.listening_address}", file=sys.stderr)
    threading.Event().wait()


def main() -> None:
    """Answer the comparison's questions, quantize a file, or serve one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--type")
    parser.add_argument("--serve", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.type:
        NativeLlama().quantize(options.file, options.output, options.type, options.threads)
    elif options.serve:
        serve_chats(options.file, options.threads, options.serve)
    else:
        serve(lambda: Decoder(options.file, options.threads).prepared, _PACKAGES)


if __name__ == "__main__":
    main()
