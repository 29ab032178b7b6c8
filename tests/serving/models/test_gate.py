"""What a gate measures is what is served: its runner gives the engine's tokens, one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from bundle.decode import decode_image
from bundle.directory import Bundle, open_bundle
from bundle.prompt import Placeholder, Turn
from export.exporter import export_checkpoint
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.settings import EngineSettings

NUM_TOKENS = 10
VARIANTS = {
    "contrib fp32": ("contrib", None, None),
    "portable fp32": ("portable", None, None),
    "contrib int8 latency": ("contrib", "int8", None),
    "contrib int4 memory": ("contrib", "int4", "memory"),
    "contrib int4 dual": ("contrib", "int4", "dual"),
    "portable int8": ("portable", "int8", None),
    "portable int4": ("portable", "int4", None),
}


@pytest.fixture(scope="module")
def variant(smolvlm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """The function that returns a variant of the tiny model, made once."""
    folder, made = tmp_path_factory.mktemp("variants"), dict[str, Bundle]()

    def make(name: str) -> Bundle:
        if name not in made:
            dialect, weights, profile = VARIANTS[name]
            parent, path = folder / dialect, folder / name.replace(" ", "-")
            if not parent.exists():
                export_checkpoint(smolvlm_checkpoint, parent, dialect=dialect)
            if weights is not None:
                quantize_bundle(parent, path, weights=weights, options=Options(profile=profile))
            made[name] = open_bundle(path if weights else parent, allow_ungated=True)
        return made[name]

    return make


@pytest.fixture(scope="module")
def both(variant: Callable[[str], Bundle]) -> Any:
    """The function that returns a variant's gate runner and its served model, opened once."""
    opened: dict[str, tuple[VisionLanguageRunner, GenerativeModel]] = {}
    pool = PreprocessPool(EngineSettings(preprocess_threads=1))

    def open_both(name: str) -> tuple[VisionLanguageRunner, GenerativeModel]:
        if name not in opened:
            bundle = variant(name)
            model = GenerativeModel(bundle, EngineSettings(max_sequences=2, intra_threads=1), pool)
            model.start()
            opened[name] = VisionLanguageRunner(bundle, RuntimeSettings(intra_threads=1)), model
        return opened[name]

    yield open_both
    for _, model in opened.values():
        model.close()
    pool.close()


def picture(seed: int, width_px: int, height_px: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


IMAGES = st.lists(st.builds(picture, st.integers(0, 99), st.integers(8, 60), st.integers(8, 60)), max_size=2)
TEXTS = st.text("abcdefghij klm?.", min_size=1, max_size=60).filter(str.strip)


@pytest.mark.parametrize("name", VARIANTS)
@given(images=IMAGES, text=TEXTS)
@hypothesis_settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_the_gates_runner_gives_the_engines_tokens(
    both, variant, ask, answer, name: str, images: list[bytes], text: str
) -> None:
    runner, model = both(name)
    ends = variant(name).manifest.eos_token_ids
    turns = [Turn("user", (*[Placeholder.IMAGE] * len(images), text))]
    prompt = runner.prefill(runner.prompt(turns, [decode_image(image) for image in images]), NUM_TOKENS)
    measured = [token for token, _ in zip(runner.greedy_tokens(prompt), range(NUM_TOKENS), strict=False)]
    served = asyncio.run(answer(model, ask(*images, text, max_tokens=NUM_TOKENS, temperature=0.0))).token_ids
    assert list(served) == measured[: len(served)]
    assert len(served) == NUM_TOKENS or served[-1] in ends
