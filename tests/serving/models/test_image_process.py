import os
import signal
import threading
import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from bundle.errors import ImageError, MachineError, OutOfMemoryError
from bundle.image import PREPROCESSOR, ImageSpec
from serving.models import image_process
from serving.models.cut_image import CutImage, cut_if_cheap, cut_image
from serving.models.image_process import ImageProcess

NEVER = threading.Event()


@pytest.fixture
def process():
    process = ImageProcess(30.0)
    yield process
    process.stop()


@pytest.fixture
def spec(smolvlm_bundle) -> ImageSpec:
    return ImageSpec.read(smolvlm_bundle / PREPROCESSOR)


def photograph(width: int, height: int, form: str = "PNG") -> bytes:
    file = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(file, form)
    return file.getvalue()


def content(cut: CutImage) -> tuple[object, ...]:
    return cut.digest, cut.width_px, cut.height_px, cut.is_cut, [(each.size, each.tobytes()) for each in cut.images]


@pytest.mark.parametrize("size_px", [(60, 40), (1500, 1000)])
def test_a_child_gives_what_a_thread_gives(process, spec, size_px) -> None:
    data = photograph(*size_px)
    assert content(process.cut(spec, data, NEVER)) == content(cut_image(spec, data))
    first = process.pid
    assert content(process.cut(spec, data, NEVER)) == content(cut_image(spec, data))
    assert process.pid == first


def test_only_images_of_a_bounded_cost_are_left_to_a_thread(spec) -> None:
    small, large = photograph(60, 40), photograph(1500, 1000)
    assert content(cut_if_cheap(spec, small)) == content(cut_image(spec, small))
    assert cut_if_cheap(spec, large).pixels == 1_500_000


def test_the_childs_refusal_is_the_threads(process, spec) -> None:
    data = photograph(600, 400)[:-200]
    with pytest.raises(ImageError) as told:
        process.cut(spec, data, NEVER)
    with pytest.raises(ImageError) as expected:
        cut_image(spec, data)
    assert str(told.value) == str(expected.value)
    assert process.cut(spec, photograph(60, 40), NEVER).width_px == 60


@pytest.fixture
def slow(monkeypatch, tmp_path):
    """Have children that take for ever over an image that is 13 pixels wide."""
    (tmp_path / "slow_child.py").write_text(
        "import time\n"
        "from serving.models import image_process\n"
        "cut = image_process.cut_image\n"
        "def cut_slowly(spec, data):\n"
        "    image = cut(spec, data)\n"
        "    time.sleep(60 if image.width_px == 130 else 0)\n"
        "    return image\n"
        "image_process.cut_image = cut_slowly\n"
        "image_process.main()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(image_process, "_MODULE", "slow_child")


def test_what_goes_wrong_in_a_child_is_told_and_the_child_goes_on(monkeypatch, spec, tmp_path) -> None:
    (tmp_path / "faulty_child.py").write_text(
        "from serving.models import image_process\n"
        "cut = image_process.cut_image\n"
        "image_process.cut_image = lambda spec, data: 1 / 0 if data == b'13' else cut(spec, data)\n"
        "image_process.main()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(image_process, "_MODULE", "faulty_child")
    process = ImageProcess(30.0)
    process.cut(spec, photograph(60, 40), NEVER)
    pid = process.pid
    with pytest.raises(MachineError, match="division by zero"):
        process.cut(spec, b"13", NEVER)
    assert process.cut(spec, photograph(60, 40), NEVER).width_px == 60
    assert process.pid == pid
    process.stop()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_image_that_takes_too_long_is_refused_its_child_stopped_and_the_next_one_decoded(slow, spec) -> None:
    process = ImageProcess(30.0)
    assert process.cut(spec, photograph(60, 40), NEVER).width_px == 60
    first = process.pid
    process._timeout_s = 0.5
    with pytest.raises(ImageError, match=r"not decoded within 0\.5 s"):
        process.cut(spec, photograph(130, 40), NEVER)
    assert not is_alive(first)
    process._timeout_s = 30.0
    assert process.cut(spec, photograph(60, 40), NEVER).width_px == 60
    process.stop()


def test_an_image_that_nobody_waits_for_any_more_is_given_up(slow, spec) -> None:
    process, left = ImageProcess(30.0), threading.Event()
    threading.Timer(0.5, left.set).start()
    started_s = time.monotonic()
    with pytest.raises(ImageError):
        process.cut(spec, photograph(130, 40), left)
    assert time.monotonic() - started_s < 20
    assert process.pid is None


@pytest.mark.parametrize(
    ("number", "kind", "told"),
    [(signal.SIGKILL, OutOfMemoryError, "was killed"), (signal.SIGSEGV, ImageError, r"broke its decoder \(SIGSEGV\)")],
)
def test_a_child_that_dies_is_told_by_how_it_died_and_replaced(slow, spec, number, kind, told) -> None:
    process = ImageProcess(30.0)
    process.cut(spec, photograph(60, 40), NEVER)
    pid = process.pid
    threading.Timer(0.3, os.kill, (pid, number)).start()
    with pytest.raises(kind, match=told):
        process.cut(spec, photograph(130, 40), NEVER)
    assert process.cut(spec, photograph(60, 40), NEVER).width_px == 60
    process.stop()


def test_a_child_ends_with_its_parents_end_of_the_channel(process, spec) -> None:
    process.cut(spec, photograph(60, 40), NEVER)
    child = process._process
    process._channel.close()
    assert child.wait(20) == 0
