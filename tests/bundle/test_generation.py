from pathlib import Path

import pytest

from bundle.errors import BundleFileError
from bundle.generation import GENERATION, SamplingDefaults
from serving.protocol import SamplingParams


def test_what_a_request_leaves_open_is_the_bundles_own(tmp_path: Path) -> None:
    (tmp_path / GENERATION).write_text('{"temperature": 0.7, "top_p": null, "top_k": 20, "max_tokens": 64}')
    filled = SamplingParams(seed=3, stop=("x",)).filled(SamplingDefaults.read(tmp_path / GENERATION))
    assert filled == SamplingParams(64, 0.7, None, 20, 3, ("x",))


def test_what_a_request_states_wins_even_where_it_is_zero(tmp_path: Path) -> None:
    (tmp_path / GENERATION).write_text('{"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.1}')
    stated = SamplingParams(5, 0.0, 1.0, 0, min_p=0.0, repetition_penalty=1.0)
    assert stated.filled(SamplingDefaults.read(tmp_path / GENERATION)) == stated


@pytest.mark.parametrize("text", ["", "[]", '{"temperature": -1}', '{"heat": 1}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / GENERATION).write_text(text)
    with pytest.raises(BundleFileError, match=r"generation\.json"):
        SamplingDefaults.read(tmp_path / GENERATION)
