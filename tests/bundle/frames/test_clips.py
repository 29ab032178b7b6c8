"""Videos to frames: each as it is shown then, or an error that says what is wrong with the file."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from bundle.decode import decode_image
from bundle.errors import ImageError, MissingExtraError
from bundle.frames import opening
from bundle.frames.limits import VideoLimits
from bundle.frames.opening import open_clip

LOSSY = 14.0
"""Of 255: what coding a flat colour as yuv420p at the encoders' defaults may change."""


def reds(frames) -> list[float]:
    return [float(np.asarray(each, np.float32)[..., 0].mean()) for each in frames]


def picture(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


@pytest.fixture(scope="module")
def frames(make_frame) -> list[Image.Image]:
    return [make_frame(index) for index in range(30)]


@pytest.fixture(scope="module", params=["GIF", "WEBP"])
def animated(request, make_animation, frames) -> bytes:
    return make_animation(request.param, frames, [100, 250] + [40] * 28)


def test_an_animations_frames_are_pillows_and_its_first_is_the_picture(animated, frames) -> None:
    clip = open_clip([animated])
    assert len(clip.times_s) == 30
    np.testing.assert_allclose(clip.times_s[:4], [0, 0.1, 0.35, 0.39])
    assert clip.duration_s == pytest.approx(0.35 + 28 * 0.04)
    found = list(clip.pictures([0, 1, 7, 29]))
    assert [each.mode for each in found] == ["RGB"] * 4
    np.testing.assert_allclose(reds(found), [0, 8, 56, 232], atol=1)
    assert found[0].tobytes() == decode_image(animated).tobytes()
    reference = Image.open(io.BytesIO(animated))
    for index, each in zip([0, 1, 7, 29], found, strict=True):
        reference.seek(index)
        np.testing.assert_array_equal(np.asarray(each), np.asarray(reference.convert("RGB")))


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_a_delay_of_nothing_is_a_tenth_of_a_second_as_in_browsers(make_animation, frames, form) -> None:
    clip = open_clip([make_animation(form, frames[:3], 0)])
    np.testing.assert_allclose(clip.times_s, [0, 0.1, 0.2])


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_a_still_is_a_video_of_one_frame(make_animation, frames, form) -> None:
    clip = open_clip([picture(frames[3], form)])
    assert (clip.times_s, len(list(clip.pictures([0])))) == ((0.0,), 1)


def test_partial_frames_stand_on_their_canvas(make_frame) -> None:
    """A GIF's frame may be a patch over the last one."""
    first, second = make_frame(1), make_frame(1)
    second.paste((250, 0, 0), (40, 4, 44, 8))
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=[second], duration=50)
    left, right = open_clip([file.getvalue()]).pictures([0, 1])
    changed = np.argwhere((np.asarray(left) != np.asarray(right)).any(axis=2))
    assert changed.min(axis=0).tolist() == [4, 40]
    assert changed.max(axis=0).tolist() == [7, 43]


@pytest.mark.parametrize(
    ("codec", "movflags", "options"),
    [
        ("mpeg4", "", {}),
        ("libx264", "", {}),
        ("libx264", "faststart", {"g": "7"}),
        ("libx264", "frag_keyframe+empty_moov", {"g": "8"}),
        ("libx265", "", {"x265-params": "log-level=none:keyint=10"}),
        ("libvpx-vp9", "", {"g": "9", "deadline": "realtime"}),
        ("libsvtav1", "", {"g": "9", "preset": "12"}),
    ],
)
def test_an_mp4s_frames_are_found_by_their_time_whatever_their_order_in_the_file(
    make_mp4, frames, codec, movflags, options
) -> None:
    data = make_mp4([each.resize((64, 64)) for each in frames], 10, codec, movflags, **options)
    clip = open_clip([data])
    np.testing.assert_allclose(clip.times_s, np.arange(30) / 10, atol=1e-6)
    assert clip.duration_s == pytest.approx(3.0)
    every = reds(clip.pictures(range(30)))
    np.testing.assert_allclose(every, 8 * np.arange(30), atol=LOSSY)
    for chosen in ([0, 9, 10, 11, 29], [29], [3, 28]):
        assert reds(open_clip([data]).pictures(chosen)) == [every[index] for index in chosen]


def test_an_mp4_of_one_frame_is_a_video(make_mp4, frames) -> None:
    clip = open_clip([make_mp4(frames[5:6])])
    assert clip.times_s == (0.0,)
    np.testing.assert_allclose(reds(clip.pictures([0])), [40], atol=LOSSY)


@pytest.mark.parametrize(("turn", "matrix"), [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))])
def test_a_phones_rotation_is_applied(make_mp4, frames, turn, matrix) -> None:
    data = bytearray(make_mp4(frames[:2], codec="mpeg4"))
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (each << 16 for each in matrix)
    struct.pack_into(">5i", data, at, a, b, 0, c, d)
    (turned, _) = open_clip([bytes(data)]).pictures([0, 1])
    (plain, _) = open_clip([make_mp4(frames[:2], codec="mpeg4")]).pictures([0, 1])
    expected = np.rot90(np.asarray(plain), -turn // 90)  # numpy turns the other way
    np.testing.assert_array_equal(np.asarray(turned), expected)


def test_a_list_is_its_pictures_with_times_by_its_rate(frames) -> None:
    clip = open_clip([picture(each) for each in frames[:5]], 2.0)
    assert (clip.times_s, clip.duration_s) == ((0.0, 0.5, 1.0, 1.5, 2.0), 2.5)
    np.testing.assert_allclose(reds(clip.pictures([1, 4])), [8, 32])


def refusal(files: list[bytes], list_fps: float | None = None, limits: VideoLimits | None = None) -> str:
    with pytest.raises(ImageError) as told:
        decoded_all(files, list_fps, limits or VideoLimits())
    return told.value.message


def decoded_all(files: list[bytes], list_fps: float | None, limits: VideoLimits) -> list[Image.Image]:
    clip = open_clip(files, list_fps, limits)
    return list(clip.pictures(range(len(clip.times_s))))


def test_a_list_that_is_empty_mixed_or_no_pictures_is_refused(frames) -> None:
    assert "the list of frames is empty" in refusal([], 1.0)
    mixed = refusal([picture(frames[0]), picture(frames[1].resize((50, 32)))], 1.0)
    assert "frame 1 is 50x32 pixels, the frames before it 48x32" in mixed
    assert "frame 1: 9 bytes beginning" in refusal([picture(frames[0]), b"no images"], 1.0)


def test_an_animation_that_is_cut_short_is_refused_wherever_that_is(animated) -> None:
    """Also between two pictures: fewer would be looked at, and nobody told."""
    for end in range(len(animated) - 1):
        with pytest.raises(ImageError):
            open_clip([animated[:end]])


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize("movflags", ["", "faststart", "frag_keyframe+empty_moov"])
def test_an_mp4_that_is_cut_short_is_told_as_such(make_mp4, make_frame, codec, movflags) -> None:
    noise = [Image.effect_noise((64, 64), 80).convert("RGB") for _ in range(8)]
    data = make_mp4(noise, codec=codec, movflags=movflags, g="4")
    for end in range(8, len(data) - 1, len(data) // 40):
        message = refusal([data[:end]])
        assert "cut short" in message or "damaged" in message, message


def test_every_damaged_byte_is_a_clear_error_or_a_video(make_mp4, frames) -> None:
    data = make_mp4(frames[:4], movflags="faststart")
    for at in range(0, len(data), 11):
        changed = bytearray(data)
        changed[at] ^= 0xFF
        try:
            clip = open_clip([bytes(changed)])
            list(clip.pictures(range(len(clip.times_s))))
        except ImageError:
            continue


def patched(data: bytes, box: bytes, offset: int, form: str, *values: int) -> bytes:
    """Return a file with numbers written into the first box of a kind in its tables, `offset` behind its name."""
    changed = bytearray(data)
    struct.pack_into(form, changed, data.index(box, data.index(b"moov")) + 4 + offset, *values)
    return bytes(changed)


def test_what_an_mp4_says_of_itself_is_judged_before_anything_is_decoded(
    make_mp4, frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_mp4(frames)
    monkeypatch.setattr("av.open", None)  # whoever decodes now fails
    assert "64000x64000 pixels" in refusal([patched(data, b"avc1", 24, ">HH", 64000, 64000)])
    assert "promises 2147483647 frames" in refusal([patched(data, b"stsz", 8, ">I", 2**31 - 1)])
    assert "holds 2147483647 frames; at most 9000" in refusal([patched(data, b"stsz", 4, ">II", 1, 2**31 - 1)])
    assert "lasts" in refusal([patched(data, b"mdhd", 12, ">II", 1, 10**8)])
    assert "0 ticks a second" in refusal([patched(data, b"mdhd", 12, ">I", 0)])
    assert "no frames" in refusal([patched(data, b"stsz", 8, ">I", 0)])
    assert "no video track" in refusal([patched(data, b"hdlr", 8, ">4s", b"soun")])
    assert "has no moov" in refusal([data.replace(b"moov", b"vomo")])


def test_limits_of_the_whole_stand_before_the_work(make_mp4, make_animation, frames) -> None:
    mp4, gif = make_mp4(frames), make_animation("GIF", frames)
    for data in (mp4, gif):
        assert "30 frames; at most 29" in refusal([data], limits=VideoLimits(max_frames=29))
        assert "3 s; at most 2.5 s" in refusal([data], limits=VideoLimits(max_duration_s=2.5))
        assert "48x32 pixels" in refusal([data], limits=VideoLimits(max_pixels=1000))
        assert f"holds {len(data)} bytes; at most 99" in refusal([data], limits=VideoLimits(max_bytes=99))
    assert "of all together" in refusal([gif], limits=VideoLimits(max_animation_pixels=48 * 32 * 29))


def test_a_stream_that_is_larger_than_its_file_says_is_not_decoded(make_mp4, make_frame) -> None:
    """The coded pictures have sizes of their own; the decoder is bound to the limit, too."""
    data = make_mp4([make_frame(index, (320, 240)) for index in range(3)])
    small = patched(data, b"avc1", 24, ">HH", 48, 32)
    assert "a frame of the video is 320x240 pixels" in refusal([small], limits=VideoLimits(max_pixels=48 * 32))


def test_ffmpeg_is_told_what_it_may_open_and_how_large_a_picture_may_be(make_mp4, frames, monkeypatch) -> None:
    """Also while it probes, when it decodes some frames by itself."""
    import av

    data, told, opened = make_mp4(frames[:2]), {}, av.open
    monkeypatch.setattr(av, "open", lambda file, **options: told.update(options) or opened(file, **options))
    open_clip([data], limits=VideoLimits(max_pixels=5000))
    assert (told["format"], told["stream_options"]) == ("mp4", [{"max_pixels": "5000"}])


def test_a_table_that_asks_for_absurd_memory_is_damage_and_no_lack_of_it(make_mp4, frames) -> None:
    """FFmpeg calls it a lack of memory."""
    data = make_mp4(frames[:6], codec="mpeg4", g="2")
    assert "more memory than any video needs" in refusal([patched(data, b"stss", 4, ">I", 0x21000002)])


def test_an_mp4_without_time_is_refused(make_mp4, frames) -> None:
    data = make_mp4(frames[:3], codec="mpeg4")
    assert "3 frames are all of one moment" in refusal([patched(data, b"stts", 12, ">I", 0)])


def test_other_codecs_and_other_files_are_refused_by_name(make_mp4, frames) -> None:
    assert "codec is 'mp4v' (mjpeg); read are h264, hevc" in refusal([make_mp4(frames[:2], codec="mjpeg")])
    assert "no video that is read here; send a GIF, a WebP, an MP4" in refusal([picture(frames[0])])
    assert "no video that is read here" in refusal([b""])


def test_an_mp4_without_its_extra_says_what_installs_it(
    make_mp4: Callable[..., bytes], frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install -e '\.\[video\]'"):
        open_clip([make_mp4(frames[:2])])


def test_a_frame_of_a_gif_beyond_its_canvas_is_refused(make_animation, frames) -> None:
    data = bytearray(make_animation("GIF", frames[:2]))
    data[data.rindex(b",\0\0\0\0" + struct.pack("<HH", 48, 32)) + 1] = 200
    assert "picture 1 reaches beyond the canvas of 48x32" in refusal([bytes(data)])
