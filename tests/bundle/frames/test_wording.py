"""SmolVLM's words around frames, against transformers' processor and num2words."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bundle.frames.options import FrameOptions
from bundle.frames.table import plan_of
from bundle.frames.wording import frame_parts, in_words
from bundle.prompt import Placeholder


def test_numbers_in_words_are_the_librarys() -> None:
    num2words = pytest.importorskip("num2words", reason="an oracle of the dev extra").num2words
    numbers = [*range(1300), 1999, 2000, 2001, 9000, 9099, 20_345, 100_000, 999_999]
    assert [in_words(number) for number in numbers] == [num2words(number) for number in numbers]


@pytest.mark.parametrize(
    ("times_s", "duration_s"),
    [
        ([0.0], 0.04),
        ([0.0, 1.5, 3.2], 4.0),
        ([0.0, 59.9, 60.0, 3599.99, 3600.0, 7261.0], 7262.5),
        ([0.5 * index for index in range(21)], 10.5),
    ],
)
def test_frames_are_written_as_the_processor_writes_them(times_s: list[float], duration_s: float) -> None:
    processing = pytest.importorskip("transformers.models.smolvlm.processing_smolvlm")
    pytest.importorskip("num2words", reason="the processor wants it")
    tokens = "<image>" * 4
    processor = SimpleNamespace(
        image_seq_len=4, image_token="<image>", fake_image_token="<fake>", global_image_token="<global-img>"
    )
    metadata = SimpleNamespace(fps=24, timestamps=times_s, duration=duration_s)
    inputs = {"pixel_values": SimpleNamespace(shape=(1, len(times_s))), "video_metadata": [metadata]}
    expected = processing.SmolVLMProcessor.replace_video_token(processor, inputs, 0)

    plan = plan_of(len(times_s), FrameOptions(), 4, 4096)
    parts = frame_parts("smolvlm", plan, times_s, duration_s)
    found = "".join(f"<fake><global-img>{tokens}<fake>" if part is Placeholder.IMAGE else str(part) for part in parts)
    assert found == expected


def test_pictures_of_several_frames_and_plain_checkpoints_have_bare_images() -> None:
    grid = plan_of(4, FrameOptions(layout="image-grid"), 4, 4096)
    assert frame_parts("smolvlm", grid, [0, 1, 2, 3], 4) == (Placeholder.IMAGE,)
    both = plan_of(4, FrameOptions(layout="thumbnail-and-sampling"), 4, 4096)
    assert frame_parts("smolvlm", both, [0, 1, 2, 3], 4) == (Placeholder.IMAGE,) * 2
    each = plan_of(4, FrameOptions(), 4, 4096)
    assert frame_parts("plain", each, [0, 1, 2, 3], 4) == (Placeholder.IMAGE,) * 4
