"""Scales of a cache of codes: what they hold, and that no position is in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from bundle import tensors
from bundle.directory import Bundle
from bundle.errors import QuantizationError
from bundle.states import State
from graphs.store import open_graph
from quant.kv_cache.keys_and_values import CacheSamples, Written, written_by
from quant.kv_cache.scales import fit_cache, searched, seen
from runtime.cache_codes import decode, encode
from runtime.settings import RuntimeSettings
from runtime.states import empty_states

STATE = State(input="k", output="k2", dtype="float32", shape=("B", 1, "S", 4), group=0)


@dataclass(frozen=True)
class Feeds:
    """What is read of a `FeedSource`: runs of a tiny decoder, so many positions further on."""

    bundle: Bundle
    shift: int = 0
    loud: float = 1.0
    settings: RuntimeSettings = field(default_factory=lambda: RuntimeSettings(intra_threads=1))

    def of(self, component: str) -> list[dict[str, Any]]:
        return list(self._runs())

    def _runs(self) -> Iterator[dict[str, Any]]:
        rng, manifest = np.random.default_rng(3), self.bundle.manifest
        for count in (9, 14, 6):
            embeds = rng.standard_normal((1, count, manifest.decoder.hidden_size)).astype(np.float32)
            yield {
                tensors.INPUTS_EMBEDS: embeds * np.float32(self.loud),
                tensors.POSITION_IDS: np.arange(count)[None] + self.shift,
                tensors.PAST_LENGTHS: np.zeros((manifest.num_length_groups, 1), np.int64),
                tensors.LOGITS_INDICES: np.array([[count - 1]]),
                **empty_states(manifest.states, 1, count),
            }


def told(line: str) -> None:
    """Nobody is told."""


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("shift", [4_000, 32_000])
def test_scales_are_the_same_wherever_the_samples_stood(tiny_model, scheme, shift) -> None:
    """Angles of float32 positions are off by 1e-3 at 32,000, which moves what deeper layers see by as much."""
    here = fit_cache(Feeds(tiny_model.bundle), scheme, told)
    there = fit_cache(Feeds(tiny_model.bundle, shift), scheme, told)
    for name, scales in here.scales.items():
        np.testing.assert_allclose(there.scales[name], scales, rtol=0.02)


def test_peaks_of_channels_alone_would_depend_on_positions(tiny_model) -> None:
    """What the lengths of pairs are for: a channel's own peak moves with the angle."""

    def peaks(shift: int) -> np.ndarray:
        samples = CacheSamples(Feeds(tiny_model.bundle, shift))
        key = samples.written[0]
        return np.max([np.abs(run[key.value]).max(axis=(0, 1)) for run in samples.runs()], axis=0)

    assert np.abs(peaks(4_000) / peaks(0) - 1).max() > 0.1


def test_a_pair_shares_its_scale_and_nothing_seen_is_clipped(tiny_model) -> None:
    cache, samples = fit_cache(Feeds(tiny_model.bundle), "int8", told), CacheSamples(Feeds(tiny_model.bundle))
    runs = list(samples.runs())
    for each in samples.written:
        scales = cache.scales[each.state.input]
        np.testing.assert_array_equal(scales, scales[:, each.partners])
        largest = max(float((each.magnitudes(run[each.value]) / scales).max()) for run in runs)
        assert largest == pytest.approx(127, rel=1e-5)
    assert [each.partners.tolist() for each in samples.written[:2]] == [[4, 5, 6, 7, 0, 1, 2, 3], list(range(8))]


def written(partners: list[int]) -> Written:
    return Written(STATE, "k", np.array(partners))


def test_lengths_are_of_the_channels_that_are_turned_together() -> None:
    rows = np.array([[3.0, -5.0, 4.0, 12.0]], np.float32)
    assert written([2, 3, 0, 1]).magnitudes(rows).tolist() == [[[5, 13, 5, 13]]]
    assert written([1, 0, 2, 3]).magnitudes(rows)[0, 0].tolist() == pytest.approx([34**0.5, 34**0.5, 4, 12])


def test_four_bits_let_a_lonely_peak_go_where_that_loses_less() -> None:
    """Of a thousand equal numbers and one of 40 times their size; a channel without one keeps its peak."""
    rng = np.random.default_rng(0)
    rows = rng.uniform(0.8, 1, (1000, 1, 4)).astype(np.float32)
    rows[0, 0, :2] = 3.0
    peaks = rows.max(axis=0)
    alone = written([0, 1, 2, 3])
    scales = searched(alone, peaks, rows)
    assert (scales[0, :2] < peaks[0, :2] / 7).all()

    def loss(given: np.ndarray) -> np.ndarray:
        return np.square(decode(encode(rows, given, "int4"), given, "int4") - rows).mean(axis=(0, 1))

    assert (loss(scales) <= loss(peaks / np.float32(7)) + 1e-9).all()


def test_a_channel_that_is_silent_in_every_sample_still_holds_numbers() -> None:
    class Silent:
        written = (Written(STATE, "k", np.arange(4)),)
        num_samples = 1

        def runs(self) -> Iterator[dict[str, np.ndarray]]:
            yield {"k": np.array([[[8.0, 0, 0, 0]]], np.float32)}

    peaks, _ = seen(Silent(), keeps_rows=False)  # type: ignore[arg-type]
    assert peaks["k"][0].tolist() == pytest.approx([8, 8e-5, 8e-5, 8e-5])


def test_numbers_that_are_not_finite_are_told(tiny_model) -> None:
    with pytest.raises(QuantizationError, match="not finite on the samples"):
        fit_cache(Feeds(tiny_model.bundle, loud=float("inf")), "int8", told)


def test_a_state_that_no_attention_writes_is_named(tiny_model) -> None:
    graph = open_graph(tiny_model.bundle.graph_path("decoder")).graph
    with pytest.raises(QuantizationError, match=r"^k: no GroupQueryAttention of decoder writes it"):
        written_by(graph, [STATE])
