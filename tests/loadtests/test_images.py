"""Images are a function of their seed, in this process and in the next."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
from pathlib import Path

from PIL import Image

from loadtests.images import ImagePool, draw_image

ROOT = Path(__file__).resolve().parents[2]


def test_a_seed_gives_the_same_bytes_in_another_process() -> None:
    program = "import hashlib; from loadtests.images import draw_image as d; "
    program += "print(hashlib.sha256(d(5, 48)).hexdigest())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(draw_image(5, 48)).hexdigest()


def test_seeds_and_sizes_give_different_images() -> None:
    assert len({draw_image(seed, size_px) for seed in range(4) for size_px in (32, 48)}) == 8


def test_an_image_has_the_size_asked_for() -> None:
    image = Image.open(io.BytesIO(draw_image(0, 40)))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (40, 40))


def test_a_pool_repeats_only_after_all_of_it_and_counts_what_it_gave() -> None:
    pool = ImagePool(seed=3, distinct=3, size_px=32)
    urls = [pool.take()["image_url"]["url"] for _ in range(4)]  # type: ignore[index]
    assert len(set(urls)) == 3
    assert urls[3] == urls[0]
    assert pool.num_taken == 4


def test_an_image_part_is_the_apis_data_url() -> None:
    part = ImagePool(seed=3, distinct=1, size_px=32).take()
    head, _, data = part["image_url"]["url"].partition(",")  # type: ignore[index]
    assert part["type"] == "image_url"
    assert head == "data:image/png;base64"
    assert base64.b64decode(data, validate=True) == draw_image(3, 32)
