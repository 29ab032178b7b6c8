"""What is saved is timed of images and of a crowd, and written as the page of compression reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundle.errors import SettingsError
from loadtests import shortening
from quant.shortening.costs import read_costs


def test_a_rate_counts_the_tokens_of_the_time_in_which_all_answers_are_written() -> None:
    assert shortening._rate([[0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]]) == 2.0
    with pytest.raises(SettingsError, match="fewer --answers"):
        shortening._rate([[0.0, 1.0], [2.0, 3.0]])


def test_first_tokens_and_decoding_are_written_with_the_whole_prompt_first(
    smolvlm_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortening, "_ANSWER_TOKENS", 8)
    monkeypatch.setattr(shortening, "_rate", len)  # so short answers may miss each other on a busy machine
    path = tmp_path / "costs.json"
    options = ["--images", "1", "--image-px", "32", "--turns", "3", "--keeps", "0.5", "--methods", "uniform"]
    crowd = ["--answers", "2", "--prompt-tokens", "24", "--policy", "uniform", "--budgets", "0.5", "--threads", "1"]
    assert shortening.main([str(smolvlm_bundle), "-o", str(path), *options, *crowd]) == 0
    first, decoded = read_costs(path)
    assert [(cost.way, cost.share) for cost in first.costs] == [("all tokens", 1.0), ("uniform", 0.5)]
    assert [(cost.way, cost.share) for cost in decoded.costs] == [("all rows", 1.0), ("uniform", 0.5)]
    whole, half = (cost.cache_bytes or 0 for cost in decoded.costs)
    assert 0 < half < whole
    assert all(cost.decode_tokens_s is not None for cost in decoded.costs)
