"""onnxruntime-genai's decoder at the measures of a comparison: `python -m loadtests.peers.genai FOLDER`.

The folder is what its own model builder writes of the decoder alone. In an environment of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtests.peers.measures import LONGEST_TOKENS, STEPS, Measure
from loadtests.peers.worker import Prepare, Work, serve

_VOCABULARY = 49_000
_PACKAGES = ("onnxruntime-genai", "onnxruntime")


class Decoder:
    """A decoder, open.

    Args:
        folder: Of the model builder.
        threads: Of every operator; the builder's own default is one.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        import numpy as np
        import onnxruntime_genai

        self._np, self._genai = np, onnxruntime_genai
        config = onnxruntime_genai.Config(str(folder))
        config.overlay(_session_options(threads))
        self._model = onnxruntime_genai.Model(config)
        self._ids = np.random.default_rng(0).integers(0, _VOCABULARY, LONGEST_TOKENS).astype(np.int32)

    @property
    def prepared(self) -> Mapping[str, Prepare]:
        """What it does."""
        return {"prefill": self._prefill, "decode": self._decode}

    def _generator(self, num_tokens: int, batch: int) -> Any:
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(
            max_length=num_tokens + 1, min_length=num_tokens + 1, batch_size=batch, do_sample=False
        )
        return self._genai.Generator(self._model, params)

    def _prefill(self, measure: Measure) -> Work:
        generator, prompt = self._generator(measure.size + 1, 1), self._ids[: measure.size]

        def answer() -> None:
            generator.append_tokens(prompt)
            generator.generate_next_token()

        return answer, 1

    def _decode(self, measure: Measure) -> Work:
        generator = self._generator(measure.cached_tokens + STEPS + 1, measure.size)
        prompt = self._ids[: measure.cached_tokens]
        generator.append_tokens(self._np.repeat(prompt[None], measure.size, 0) if measure.size > 1 else prompt)
        generator.generate_next_token()

        def step() -> None:
            for _ in range(STEPS):
                generator.generate_next_token()

        return step, STEPS


def _session_options(threads: int) -> str:
    return f'{{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {threads}}}}}}}}}'


def main() -> None:
    """Answer the comparison's questions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    serve(lambda: Decoder(options.folder, options.threads).prepared, _PACKAGES)


if __name__ == "__main__":
    main()
