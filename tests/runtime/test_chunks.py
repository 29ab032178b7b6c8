"""Where a prompt may be cut: the kernels of every scheme give each row the same bits on either side."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.directory import Bundle, open_bundle
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from quant.samples.built_in import built_in_samples
from runtime.cache_shape import cache_shape
from runtime.chunks import GRID_TOKENS, chunks
from runtime.decoder import Decoder, TokenGraphs
from runtime.filled_prompt import FilledPrompt
from runtime.settings import RuntimeSettings

VARIANTS = {
    "fp32": None,
    "int8 latency": ("int8-rtn", Options(profile="latency")),
    "int4 memory": ("int4-rtn", Options(profile="memory")),
    "int4 dual": ("int4-rtn", Options(profile="dual")),
    "int8, cache int8": ("int8-rtn", Options(kv_cache="int8")),
    "int4 dual, cache int8": ("int4-rtn", Options(profile="dual", kv_cache="int8")),
    "fp32, cache int4": ("fp32", Options(kv_cache="int4")),
}


@pytest.fixture(scope="module")
def variant(smolvlm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    folder = tmp_path_factory.mktemp("variants")
    samples = built_in_samples(open_bundle(smolvlm_bundle), "calibration")

    def make(name: str) -> Bundle:
        if VARIANTS[name] is None:
            return open_bundle(smolvlm_bundle)
        weights, options = VARIANTS[name]
        path = folder / name.replace(" ", "-")
        quantize_bundle(smolvlm_bundle, path, weights=weights, options=options, calibration=samples)
        return open_bundle(path, allow_ungated=True)

    return make


@pytest.mark.parametrize(
    ("num_tokens", "most"), [(33, 32), (49, 32), (48, 48), (100, 48), (100, 47), (257, 256), (20, 7), (8, 7)]
)
def test_cuts_are_on_the_grid_and_leave_no_token_alone(num_tokens: int, most: int) -> None:
    cuts = list(chunks(num_tokens, most))
    assert [start for start, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
    assert cuts[-1][1] == num_tokens
    assert all(1 < end - start <= most for start, end in cuts)
    if most >= 2 * GRID_TOKENS:
        assert not any(start % GRID_TOKENS for start, _ in cuts)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 70)), min_size=1, max_size=12), st.integers(1, 100))
def test_no_cut_parts_tokens_that_see_one_another(parts: list[tuple[bool, int]], most: int) -> None:
    ends = np.cumsum([size for _, size in parts])
    seen = np.concatenate(
        [
            np.full(size, end) if is_block else np.arange(end - size, end) + 1
            for (is_block, size), end in zip(parts, ends.tolist(), strict=True)
        ]
    )
    cuts = list(chunks(len(seen), most, np.stack([np.arange(len(seen)), seen])))
    assert [start for start, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
    assert cuts[-1][1] == len(seen)
    for start, end in cuts:
        assert seen[start:end].max() <= end
        assert most < 2 * GRID_TOKENS or start % GRID_TOKENS == 0
        if end - start > most:  # there is no place before it that leaves more than one token
            places = [place for place in range(start + 1, start + most + 1) if place < len(seen) - 1]
            grid = GRID_TOKENS if most >= 2 * GRID_TOKENS else 1
            assert not any(seen[:place].max() <= place and not place % grid for place in places)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_cut_on_the_grid_changes_a_bit(variant, name: str) -> None:
    bundle = variant(name)
    decoder = Decoder(TokenGraphs(bundle, RuntimeSettings(intra_threads=1)), cache_shape(bundle.manifest, 1, 128))
    prompt = FilledPrompt.of_ids(np.random.default_rng(0).integers(6, 200, 101))

    def run(*cuts: int) -> list[np.ndarray]:
        """Return the logits of the last token, and all rows."""
        for start, end in zip([0, *cuts], [*cuts, 101], strict=True):
            last = decoder.run("prompt", 0, [prompt.run(start, end, [start], [end - start - 1])]).copy()
        rows = [decoder.states._buffers[state.input].read()[..., :101, :].copy() for state in decoder.states.states]
        return [last, *rows]

    whole = run()
    for cuts in ((16,), (96,), (32, 64), (16, 32, 48, 80)):
        for found, expected in zip(run(*cuts), whole, strict=True):
            np.testing.assert_array_equal(found, expected)
