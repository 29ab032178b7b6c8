"""Requests whose image tokens skip feed-forwards, through a whole model."""

import asyncio
import dataclasses
import io
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from bundle.directory import Bundle, open_bundle
from bundle.errors import ParameterError, SettingsError
from bundle.turn import Placeholder, Turn
from export.exporter import export_checkpoint
from runtime.one_request import VisionLanguageRunner
from serving.models.generative import GenerativeModel
from serving.protocol import VisionReduction
from serving.settings import EngineSettings

SETTINGS = EngineSettings(max_sequences=3, max_waiting=8, intra_threads=1, prefill_chunk_tokens=32)
QUESTION = "What is it?"


@pytest.fixture(scope="module")
def skipping(smolvlm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of three layers, whose first two image tokens may skip."""
    folder = tmp_path_factory.mktemp("skipping") / "tiny-smolvlm"
    export_checkpoint(smolvlm_checkpoint, folder, skip_visual=[0, 1])
    return open_bundle(folder)


@pytest.fixture
def model(skipping: Bundle, pool):
    model = GenerativeModel(skipping, SETTINGS, pool)
    model.start()
    yield model
    model.close()


@pytest.fixture
def asked(ask, image_bytes):
    def make(keep: float, **sampling):
        request = ask(image_bytes(0), QUESTION, max_tokens=8, ignores_eos=True, temperature=0, **sampling)
        return dataclasses.replace(request, vision=VisionReduction("ima", keep))

    return make


def run(main) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_chat_answers_as_one_request_alone_and_shares_rows_of_the_same_share(
    model, skipping, asked, answer, image_bytes
) -> None:
    runner = VisionLanguageRunner(skipping, SETTINGS)
    image = Image.open(io.BytesIO(image_bytes(0))).convert("RGB")
    prompt = runner.prompt([Turn("user", (Placeholder.IMAGE, QUESTION))], [image])

    def alone(num_layers: int) -> list[int]:
        prefilled = runner.prefill(prompt.skipping(num_layers), 9)
        return list(islice(runner.greedy_tokens(prefilled), 8))

    async def main() -> None:
        found = {keep: await answer(model, asked(keep)) for keep in (1.0, 0.5, 0.01)}
        again = {keep: await answer(model, asked(keep)) for keep in found}
        told = [list(each.token_ids) for each in found.values()]
        assert told == [list(each.token_ids) for each in again.values()] == [alone(num) for num in (0, 1, 2)]
        assert len({each.token_ids for each in found.values()}) == 3
        # text before the image is any request's; the image's rows are those of a share
        first, second, _ = (each.finished.usage for each in found.values())
        assert first.cached_tokens == 0
        assert second.cached_tokens < second.prompt_tokens - second.image_tokens
        assert all(each.finished.usage.cached_tokens > second.image_tokens for each in again.values())
        assert second.kept_image_tokens == second.image_tokens > 0

    run(main)


def test_together_each_request_skips_its_own(model, asked, answer) -> None:
    requests = [asked(keep, seed=seed) for seed, keep in enumerate((1.0, 0.5, 0.01, 0.5))]

    async def main() -> None:
        alone = [(await answer(model, request)).token_ids for request in requests]
        model.clear_prefixes()
        together = await asyncio.gather(*(answer(model, request) for request in requests))
        assert [each.token_ids for each in together] == alone

    run(main)


def test_a_share_that_is_none_is_named(model, asked, answer) -> None:
    async def main() -> None:
        with pytest.raises(ParameterError, match=r"vision\.keep is -1"):
            await answer(model, asked(-1.0))

    run(main)


def test_a_bundle_whose_layers_cannot_be_skipped_says_how_to_make_one(smolvlm_bundle, pool) -> None:
    refused = EngineSettings(intra_threads=1, vision_method="ima", vision_keep=0.5)
    with pytest.raises(
        SettingsError, match=r"exported without layers where they may: pocketvlm export .* --skip-visual"
    ):
        GenerativeModel(open_bundle(smolvlm_bundle), refused, pool)
