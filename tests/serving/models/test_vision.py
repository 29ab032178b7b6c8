import asyncio
import threading
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from bundle.directory import open_bundle
from bundle.image import PREPROCESSOR, ImageSpec, TileLayout
from runtime import encoders
from serving.models import vision
from serving.models.cut_image import CutImage
from serving.models.images import DecodedImage
from serving.models.vision import VisionStage, encoder_identity
from serving.settings import EngineSettings

SETTINGS = EngineSettings(intra_threads=1, vision_batch_tiles=3)


@pytest.fixture
def stage(smolvlm_bundle, pool):
    stage = VisionStage(open_bundle(smolvlm_bundle), SETTINGS, pool)
    stage.worker.start()
    yield stage
    stage.worker.close()


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)


def test_the_key_is_the_content_not_the_file(stage) -> None:
    changed = PIXELS.copy()
    changed[20, 30, 1] ^= 1

    async def main() -> None:
        png, bmp = await stage.decode("r", encoded(PIXELS)), await stage.decode("r", encoded(PIXELS, "BMP"))
        assert png.key == bmp.key
        others = [changed, PIXELS[:, :-1], PIXELS.reshape(90, 40, 3)]
        keys = {png.key, *[(await stage.decode("r", encoded(other))).key for other in others]}
        assert len(keys) == 4

    asyncio.run(main())


@pytest.fixture
def spec(smolvlm_bundle) -> ImageSpec:
    return ImageSpec.read(smolvlm_bundle / PREPROCESSOR)


def test_another_preprocessing_or_encoder_is_another_identity(smolvlm_bundle, spec) -> None:
    manifest = open_bundle(smolvlm_bundle).manifest
    name = "vision_encoder.onnx.data"
    record = manifest.files[name].model_copy(update={"sha256": "0" * 64})
    retrained = manifest.model_copy(update={"files": {**manifest.files, name: record}})
    shifted = spec.model_copy(update={"mean": (0.4, 0.5, 0.5)})
    identities = {
        encoder_identity(manifest, spec),
        encoder_identity(retrained, spec),
        encoder_identity(manifest, shifted),
    }
    assert len(identities) == 3
    assert encoder_identity(open_bundle(smolvlm_bundle).manifest, spec) in identities


def test_features_are_those_of_the_tiles_however_they_are_batched(stage, spec) -> None:
    images = [spec.preprocess([Image.fromarray(PIXELS[:, :width])]).pixel_values for width in (90, 30, 64)]
    together = stage.run(images)
    assert [len(features) for features in together] == [len(image) for image in images]
    for image, features in zip(images, together, strict=True):
        alone = np.concatenate([stage.run([tile[None]])[0] for tile in image])
        # Other batch sizes round float32 sums differently.
        np.testing.assert_allclose(features, alone, atol=1e-4 * np.abs(alone).max())


def test_a_caller_that_leaves_takes_nothing_from_the_others(stage) -> None:
    async def main() -> None:
        image = await stage.decode("r", encoded(PIXELS))
        first, second = (asyncio.create_task(stage.encode("r", image)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        features = (await asyncio.wait_for(second, 20)).features
        assert first.cancelled()
        np.testing.assert_array_equal((await stage.encode("r", image)).features, features)
        assert stage.cache.num_hits == 1

    asyncio.run(main())


def stage_of(directory, pool) -> VisionStage:
    stage = VisionStage(open_bundle(directory), SETTINGS, pool)
    stage.worker.start()
    return stage


def test_models_of_one_tower_encode_an_image_once_and_one_of_another_tower_again(
    stage, smolvlm_bundle, clip_bundle, pool
) -> None:
    twin, other = stage_of(smolvlm_bundle, pool), stage_of(clip_bundle, pool)

    async def main() -> None:
        first = await stage.encode("r", await stage.decode("r", encoded(PIXELS)))
        second = await twin.encode("r", await twin.decode("r", encoded(PIXELS)))
        assert (first.is_kept, second.is_kept) == (False, True)
        np.testing.assert_array_equal(first.features, second.features)
        third = await other.encode("r", await other.decode("r", encoded(PIXELS)))
        assert not third.is_kept
        assert third.features.shape != first.features.shape
        assert (stage.gauges["image_cache_misses"], twin.gauges["image_cache_hits"]) == (1, 1)
        assert twin.gauges["image_cache_bytes"] == 0
        pool.features.clear()
        assert not (await stage.encode("r", await stage.decode("r", encoded(PIXELS)))).is_kept

    try:
        asyncio.run(main())
    finally:
        twin.worker.close()
        other.worker.close()


def test_an_encoded_image_carries_its_key_new_or_kept(stage) -> None:
    async def main() -> None:
        image = await stage.decode("r", encoded(PIXELS))
        new, kept = await stage.encode("r", image), await stage.encode("r", image)
        assert new.key == kept.key == image.key
        np.testing.assert_array_equal(new.features, kept.features)

    asyncio.run(main())


@pytest.fixture
def held(monkeypatch) -> tuple[threading.Event, list[int]]:
    """Make the encoder wait; the event that lets it go, and the tiles of its runs."""
    go, runs, encode = threading.Event(), [], encoders.encode_tiles

    def wait(session: object, tiles: np.ndarray, most_tiles: int, *question: None) -> np.ndarray:
        go.wait(20)
        runs.append(len(tiles))
        return encode(session, tiles, most_tiles, *question)

    monkeypatch.setattr(encoders, "encode_tiles", wait)
    return go, runs


def test_images_that_nobody_waits_for_any_more_are_not_encoded(stage, held) -> None:
    go, runs = held

    async def main() -> None:
        images = [await stage.decode("r", encoded(PIXELS[:, :width])) for width in range(40, 60)]
        tasks = [asyncio.create_task(stage.encode("r", image)) for image in images]
        await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        go.set()
        await asyncio.wait_for(stage.encode("r", await stage.decode("r", encoded(PIXELS))), 20)
        again = await asyncio.wait_for(
            stage.encode("r", images[0]), 20
        )  # who comes back is not told of the cancellation
        assert len(again.features) == images[0].layout.num_tiles

    asyncio.run(main())
    assert len(runs) <= 4  # those that ran when their callers left, and the two wanted since


def test_pixels_are_made_for_few_more_images_than_one_batch(stage, held, monkeypatch) -> None:
    go, _ = held
    pixels, made = ImageSpec.pixels, []
    monkeypatch.setattr(ImageSpec, "pixels", lambda spec, tiles: made.append(tiles) or pixels(spec, tiles))

    async def main() -> None:
        sizes = range(40, 60)
        cuts = [CutImage(bytes([n]), n, 40, (Image.fromarray(PIXELS[:, :n]),), is_cut=False) for n in sizes]
        images = [DecodedImage(cut.digest, cut, TileLayout()) for cut in cuts]
        tasks = [asyncio.create_task(stage.encode("r", image)) for image in images]
        while not made:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert len(made) <= 2 * SETTINGS.vision_batch_tiles
        go.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        assert len(made) == len(images)

    asyncio.run(main())


@pytest.mark.parametrize("size_px", [(40, 30), (900, 700), (3000, 2000)])
def test_an_image_that_waits_takes_no_more_memory_than_its_tiles_and_encodes_the_same(stage, spec, size_px) -> None:
    image = Image.fromarray(PIXELS).resize(size_px)

    async def main() -> None:
        decoded = await stage.decode("r", encoded(np.asarray(image)))
        height, width = spec.tile_size_px
        held_pixels = sum(each.width * each.height for each in decoded.cut.images)
        assert held_pixels <= max(decoded.layout.num_tiles * height * width, 1)
        found = (await stage.encode("r", decoded)).features
        (expected,) = stage.run([spec.preprocess([image]).pixel_values])
        np.testing.assert_array_equal(found, expected)

    asyncio.run(main())


def test_a_file_whose_features_are_kept_is_not_decoded_and_one_whose_were_dropped_is(stage, pool, monkeypatch) -> None:
    decoded = []
    cut = pool.cut

    async def counted(*args):
        decoded.append(args)
        return await cut(*args)

    monkeypatch.setattr(pool, "cut", counted)

    async def ask(data: bytes):
        image = await stage.decode("r", data)
        return image.layout, await stage.encode("r", image)

    async def main() -> None:
        layout, first = await ask(encoded(PIXELS))
        kept_layout, kept = await ask(encoded(PIXELS))
        assert (len(decoded), first.is_kept, kept.is_kept, kept.key) == (1, False, True, first.key)
        assert kept_layout == layout
        np.testing.assert_array_equal(kept.features, first.features)
        assert (stage.cache.num_hits, stage.cache.num_misses) == (1, 1)
        other = PIXELS.copy()
        other[0, 0, 0] ^= 1
        assert not (await ask(encoded(other)))[1].is_kept
        assert len(decoded) == 2
        pool.features.clear()
        again = (await ask(encoded(PIXELS)))[1]
        assert (len(decoded), again.is_kept) == (3, False)

    asyncio.run(main())


def test_features_that_are_dropped_between_the_looks_are_still_the_answers(stage, pool) -> None:
    async def main() -> None:
        first = await stage.encode("r", await stage.decode("r", encoded(PIXELS)))
        image = await stage.decode("r", encoded(PIXELS))
        pool.features.clear()
        np.testing.assert_array_equal((await stage.encode("r", image)).features, first.features)

    asyncio.run(main())


def test_images_whose_tower_is_asked_run_apart_from_all_others(stage, monkeypatch) -> None:
    images = [PIXELS, PIXELS[:, :30], PIXELS[:, ::-1], PIXELS[::-1]]
    batches, encode = [], vision.encode_images

    def noted(session: object, images: list, most_tiles: int, *, with_tower: bool = False, **more) -> list[np.ndarray]:
        batches.append((len(images), with_tower))
        return encode(session, images, most_tiles, with_tower=with_tower, **more)

    async def main() -> list[vision.EncodedImage]:
        decoded = [
            await stage.decode("r", encoded(image), with_tower=with_tower)
            for image, with_tower in zip(images, (False, True, False, True), strict=True)
        ]
        with monkeypatch.context() as patch:
            patch.setattr(vision, "encode_images", noted)
            return await asyncio.gather(*(stage.encode("r", each) for each in decoded))

    found = asyncio.run(main())
    assert [num for num, with_tower in batches if with_tower] == [1, 1]
    assert [image.tower is not None for image in found] == [False, True, False, True]
    for image in (found[1], found[3]):
        assert image.tower.shape == (*image.features.shape[:2], 1 + 8)
        np.testing.assert_allclose(image.tower[..., 0].sum(axis=1), 1, atol=1e-5)
