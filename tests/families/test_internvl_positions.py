"""InternVL with NVLM's tags of tiles, and with V2PE's positions in between, against transformers told the same."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from io import BytesIO
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from bundle.directory import Bundle, open_bundle
from bundle.errors import UnsupportedConfigError
from bundle.image import PREPROCESSOR, ImageSpec
from bundle.prompt import Placeholder, Turn
from export.exporter import export_checkpoint
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from serving.models.generative import GenerativeModel
from serving.models.pool import PreprocessPool
from serving.protocol import FinishedEvent, GenerateRequest, ImagePart, Message, SamplingParams, TextPart
from serving.settings import EngineSettings

SETTINGS = RuntimeSettings(intra_threads=1)
IMAGE = "<IMG_CONTEXT>"
TURNS = [Turn("user", ("Compare ", Placeholder.IMAGE, " and ", Placeholder.IMAGE, " please."))]


def exported(sample: Any, folder: Path, dialect: str, **config: Any) -> Bundle:
    """Return a bundle of the sample's checkpoint with other settings."""
    checkpoint = Path(shutil.copytree(sample.checkpoint, folder / "checkpoint"))
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    export_checkpoint(checkpoint, folder / "bundle", name="tiny", dialect=dialect)
    return open_bundle(folder / "bundle")


def images_of(conversations: dict[str, Any]) -> list[Image.Image]:
    return [part for part in conversations["two images"] if isinstance(part, Image.Image)]


def answered(bundle: Bundle, images: list[Image.Image]) -> tuple[Any, list[int], np.ndarray]:
    """Return a prompt, 24 greedy tokens about two images, and the logits that they are of."""
    runner = VisionLanguageRunner(bundle, SETTINGS)
    prompt = runner.prompt(TURNS, images)
    prefilled = runner.prefill(prompt, 24)
    tokens = list(islice(runner.greedy_tokens(prefilled), 24))
    return prompt.prompt, tokens, runner.forced_logits(prefilled, tokens)


@pytest.mark.parametrize(("number", "dialect"), [(0, "contrib"), (1, "contrib"), (0, "portable")])
def test_tags_stand_before_tiles_as_the_authors_write_them(
    number: int, dialect: str, sample_of: Any, conversations: dict[str, Any], tmp_path: Path
) -> None:
    """NVLM 1.0 (arXiv 2409.11402, section 4.2): <tile_1> to <tile_n>, then <tile_global_thumbnail>, as words."""
    sample, images = sample_of("internvl", number), images_of(conversations)
    bundle = exported(sample, tmp_path, dialect, tile_tags=True)
    found, tokens, logits = answered(bundle, images)
    plain = sample.inputs(conversations["two images"])
    text = sample.processor.tokenizer.decode(plain["input_ids"][0])
    first, *rest = text.split("<img>")
    per_tile, num_tiles = bundle.manifest.image_prompt.tokens_per_tile, list[int]()
    for at, piece in enumerate(rest):
        inside, behind = piece.split("</img>")
        num_tiles.append(inside.count(IMAGE) // per_tile)
        tags = [f"<tile_{tile}>" for tile in range(1, num_tiles[-1])] + ["<tile_global_thumbnail>"]
        rest[at] = "".join(tag + IMAGE * per_tile for tag in tags) + "</img>" + behind
    assert max(num_tiles) > 2
    tagged = sample.processor.tokenizer("<img>".join([first, *rest]), return_tensors="pt")["input_ids"]
    assert found.token_ids.tolist() == tagged[0].tolist()
    expected = sample.logits({"input_ids": tagged, "pixel_values": plain["pixel_values"]}, tokens[:-1])
    assert_allclose(logits, expected, atol=1e-3)


def places_of(ids: list[int], spans: list[tuple[int, int]], step: float) -> list[float]:
    """Return where tokens stand: one farther each, those of images by a step, words behind them at the next whole one.

    V2PE (arXiv 2412.09616, section 3.2); the authors' code rounds up behind an image.
    """
    places, last = list[float](), -1.0
    for at in range(len(ids)):
        is_image = any(start <= at < end for start, end in spans)
        was_image = any(start <= at - 1 < end for start, end in spans)
        last = last + step if is_image else (math.ceil(last) if was_image else last) + 1
        places.append(last)
    return places


@pytest.mark.parametrize(
    ("number", "dialect", "positions"), [(0, "contrib", 1), (1, "contrib", 3), (0, "portable", 2), (0, "contrib", 4)]
)
def test_tokens_of_images_stand_in_between(
    number: int, dialect: str, positions: int, sample_of: Any, conversations: dict[str, Any], tmp_path: Path
) -> None:
    import torch

    sample, images = sample_of("internvl", number), images_of(conversations)
    told = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": positions}
    bundle = exported(sample, tmp_path, dialect, **told)
    found, tokens, logits = answered(bundle, images)
    plain = sample.inputs(conversations["two images"])
    ids = plain["input_ids"][0].tolist()
    assert found.token_ids.tolist() == ids
    per_tile = bundle.manifest.image_prompt.tokens_per_tile
    places = places_of(ids, [(span.start, span.end) for span in found.spans], positions / per_tile)
    assert found.next_position == places[-1] + 1
    told_tokens = tokens[:-1]
    places += [places[-1] + 1 + at for at in range(len(told_tokens))]
    assert all(behind > before for before, behind in pairwise(places))
    with torch.no_grad():
        expected = sample.model(
            input_ids=torch.tensor([[*ids, *told_tokens]]),
            pixel_values=plain["pixel_values"],
            position_ids=torch.tensor([places], dtype=torch.float32),
        ).logits[0, -len(tokens) :]
    assert_allclose(logits, expected.numpy(), atol=1e-3)


def test_a_served_chat_stands_where_one_request_does(
    sample_of: Any, conversations: dict[str, Any], tmp_path: Path
) -> None:
    told = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 1, "tile_tags": True}
    bundle, images = exported(sample_of("internvl", 0), tmp_path, "contrib", **told), images_of(conversations)
    _, tokens, _ = answered(bundle, images)
    shown = (TextPart("Compare "), ImagePart(_png(images[0])), TextPart(" and "), ImagePart(_png(images[1])))
    message = Message("user", (*shown, TextPart(" please.")))

    async def main() -> list[Any]:
        settings = EngineSettings(max_sequences=2, intra_threads=1)
        pool = PreprocessPool(settings)
        model = GenerativeModel(bundle, settings, pool)
        model.start()
        try:
            asked = GenerateRequest("r", "tiny", (message,), SamplingParams(max_tokens=24, temperature=0.0))
            return [event async for event in model.generate(asked)]
        finally:
            model.close()
            pool.close()

    *answer, finished = asyncio.run(main())
    assert isinstance(finished, FinishedEvent)
    said = [token for event in answer for token in event.token_ids]
    assert said
    assert said == tokens[: len(said)]


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"rope_pos_id_version": "v2pe_rnd"}, "rope_pos_id_version 'v2pe_rnd': built are default and v2pe_fix"),
        ({"rope_pos_id_version": "v2pe_fix"}, "rope_pos_id_stride None"),
    ],
)
def test_positions_that_are_not_built_are_refused(
    told: dict[str, Any], named: str, sample_of: Any, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedConfigError, match=named):
        exported(sample_of("internvl", 0), tmp_path, "contrib", **told)


def test_the_images_of_these_tests_are_cut(conversations: dict[str, Any], sample_of: Any) -> None:
    spec = ImageSpec.read(sample_of("internvl", 0).bundle().path(PREPROCESSOR))
    assert any(spec.layout(*image.size).rows for image in images_of(conversations))
