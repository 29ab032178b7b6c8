"""First tokens are timed of every reduction in turns, about new images and about kept ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from loadtests.visual_tokens import Asked, Line, main, measure, print_lines

ASKED = Asked(methods=("uniform", "fastervlm"), keeps=(0.5,), images=2, image_px=32, turns=3, threads=1)


@pytest.fixture(scope="module")
def lines(smolvlm_bundle: Path) -> list[Line]:
    return measure(smolvlm_bundle, ASKED)


def test_all_tokens_come_first_and_every_reduction_after_them(lines: list[Line]) -> None:
    assert [(line.method, line.keep) for line in lines] == [("uniform", 1.0), ("uniform", 0.5), ("fastervlm", 0.5)]
    whole, *fewer = lines
    # two images of 17 tiles of 4 tokens, half of which are left
    assert [whole.prompt_tokens - line.prompt_tokens for line in fewer] == [68, 68]


def test_every_turn_counts_once_about_new_images_and_once_about_known_ones(lines: list[Line]) -> None:
    for line in lines:
        assert len(line.new) == len(line.kept) == 3
        for first in (*line.new, *line.kept):
            assert 0 <= first.vision_ms < first.first_token_ms


def test_the_table_tells_tokens_and_ratios(lines: list[Line], capsys: pytest.CaptureFixture[str]) -> None:
    print_lines(lines, Console(width=160))
    told = capsys.readouterr().out
    assert str(lines[1].prompt_tokens) in told
    assert "fastervlm" in told
    assert "1.00 (1.00-1.00)" in told  # all tokens beside themselves


def test_the_command_prints_json_and_refuses_what_cannot_be(
    smolvlm_bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--images", "1", "--image-px", "32", "--turns", "3", "--keeps", "0.5", "--methods", "dart", "--json"]
    assert main([str(smolvlm_bundle), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [line["keep"] for line in found] == [1.0, 0.5]
    assert main([str(smolvlm_bundle), *options[:-5], "--keeps", "2"]) == 1
    assert "above 0 and at most 1" in capsys.readouterr().err
