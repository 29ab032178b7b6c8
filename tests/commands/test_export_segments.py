"""`pocketvlm export --decoder-segments` as a caller meets it."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_the_decoder_is_cut_where_it_was_said_and_inspect_tells(pocketvlm, checkpoint_of, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    done = pocketvlm("export", checkpoint_of("smolvlm"), "-o", folder, "--decoder-segments", "1,2")
    assert done.returncode == 0, done.stderr
    assert "3 segments, of the layers 0-0, 1-1, 2-2" in pocketvlm("inspect", folder).stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--decoder-segments", "one"), "give numbers of layers with commas"),
        (("--decoder-segments", "9"), "the decoder has the layers 0 to 2"),
        (("--decoder-segments", "1", "--target", "cuda"), "leave out --target cuda"),
    ],
)
def test_segments_that_cannot_be_had_are_refused(pocketvlm, checkpoint_of, tmp_path: Path, options, told: str) -> None:
    refused = pocketvlm("export", checkpoint_of("smolvlm"), "-o", tmp_path / "no", *options)
    assert refused.returncode != 0
    assert told in " ".join(refused.stderr.split())
    assert not (tmp_path / "no").exists()
