"""Goldens come back as written, and a run that differs is refused with numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from bundle.errors import BundleFileError, GoldenError
from bundle.golden import (
    GOLDEN,
    Difference,
    Recording,
    canary_image,
    canary_token_ids,
    check,
    compare,
    load_golden,
    save_golden,
)

RECORDINGS = {
    "vision_encoder": Recording(
        {"pixel_values": np.ones((1, 3, 2, 2), np.float32)}, {"image_features": np.arange(6, dtype=np.float32)}
    ),
    "decoder": Recording(
        {"past_key_values.0.key": np.zeros((1, 2, 4, 3), np.float16), "past_lengths": np.array([3])},
        {"logits": np.full((1, 1, 5), 0.5), "present.0.key": np.zeros((1, 2, 4, 3), np.float16)},
    ),
}


def test_recordings_come_back_as_they_were_written(tmp_path: Path) -> None:
    save_golden(tmp_path, RECORDINGS)
    found = load_golden(tmp_path / GOLDEN)
    assert found.keys() == RECORDINGS.keys()
    for name, recording in RECORDINGS.items():
        for expected, got in ((recording.inputs, found[name].inputs), (recording.outputs, found[name].outputs)):
            assert expected.keys() == got.keys()
            for tensor in expected:
                np.testing.assert_array_equal(got[tensor], expected[tensor])
                assert got[tensor].dtype == expected[tensor].dtype


def test_file_holds_the_keys_that_the_format_names(tmp_path: Path) -> None:
    save_golden(tmp_path, RECORDINGS)
    with np.load(tmp_path / GOLDEN) as file:
        assert set(file.files) == {
            "vision_encoder.in.pixel_values",
            "vision_encoder.out.image_features",
            "decoder.in.past_key_values.0.key",
            "decoder.in.past_lengths",
            "decoder.out.logits",
            "decoder.out.present.0.key",
        }


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 broken", b"not numpy at all"])
def test_missing_or_damaged_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / GOLDEN).write_bytes(content)
    with pytest.raises(BundleFileError, match="missing or damaged"):
        load_golden(tmp_path / GOLDEN)


def test_file_with_pickled_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / GOLDEN, **{"decoder.out.logits": np.array([{}], dtype=object)})
    with pytest.raises(BundleFileError, match="missing or damaged"):
        load_golden(tmp_path / GOLDEN)


@pytest.mark.parametrize("key", ["logits", "decoder.logits", "decoder.out.", ".in.x"])
def test_key_of_another_form_is_refused(tmp_path: Path, key: str) -> None:
    np.savez(tmp_path / GOLDEN, **{key: np.zeros(1)})
    with pytest.raises(BundleFileError, match=r"COMPONENT\.in\.TENSOR"):
        load_golden(tmp_path / GOLDEN)


def test_difference_is_the_worst_element_over_the_largest_magnitude() -> None:
    found = compare(np.array([1.0, -4.0, 0.0]), np.array([1.0, -4.0, 0.5]))
    assert found == Difference(absolute=0.5, relative=0.125)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_run_that_is_not_finite_is_infinitely_far(value: float) -> None:
    assert compare(np.zeros(2), np.array([0.0, value])).relative == float("inf")


def test_zeros_equal_zeros_and_nothing_else() -> None:
    assert compare(np.zeros(3), np.zeros(3)) == Difference(0.0, 0.0)
    assert compare(np.zeros(3), np.full(3, 1e-9)).relative == float("inf")


def test_outputs_within_the_limit_pass_and_say_how_close_they_were() -> None:
    recorded = {"a": np.array([2.0]), "b": np.array([10.0])}
    found = {"a": np.array([2.0]), "b": np.array([10.01]), "more": np.zeros(1)}
    assert check("decoder", recorded, found, max_relative=2e-3).relative == pytest.approx(1e-3)


def test_output_over_the_limit_is_refused_with_numbers() -> None:
    with pytest.raises(GoldenError, match=r"decoder: output b differs .* by 0.1 \(0.01 of .* at most 0.001"):
        check("decoder", {"b": np.array([10.0])}, {"b": np.array([10.1])}, max_relative=1e-3)


def test_run_with_nan_is_refused() -> None:
    with pytest.raises(GoldenError, match="inf"):
        check("decoder", {"b": np.ones(2)}, {"b": np.array([1.0, np.nan])}, max_relative=1e9)


def test_missing_output_is_refused() -> None:
    with pytest.raises(GoldenError, match="output b was recorded"):
        check("decoder", {"b": np.zeros(1)}, {"a": np.zeros(1)}, max_relative=1.0)


def test_other_shape_is_refused_with_both_shapes() -> None:
    with pytest.raises(GoldenError, match=r"\(2,\).*\(3,\)"):
        compare(np.zeros(2), np.zeros(3))


def test_canary_image_is_the_same_on_every_machine() -> None:
    image = canary_image()
    assert (image.mode, image.size) == ("RGB", (160, 112))
    assert (
        hashlib.sha256(image.tobytes()).hexdigest()
        == "e866437189a40727bd4d61d1ebe009047de6f2709279a83afdc83cbc8a2f67e1"
    )


def test_canary_ids_are_in_the_vocabulary_and_differ() -> None:
    ids = canary_token_ids(49_280, 16)
    assert ids.shape == (1, 16)
    assert ids.dtype == np.int64
    assert len(set(ids[0].tolist())) == 16
    assert canary_token_ids(7, 20).max() < 7


def test_a_plain_array_in_the_place_of_goldens_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "golden.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(BundleFileError, match="damaged"):
        load_golden(tmp_path / GOLDEN)
