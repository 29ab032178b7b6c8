"""Scales of a cache of codes, fitted to what samples make a decoder write.

8 bits: the largest number that was seen becomes the largest code. 4 bits have 16 codes, and the largest of thousands of
numbers would take most of them for itself: the scale is the one of least squared error among parts of the largest. A
channel that is turned by position is judged at every angle, not at those of the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from bundle.errors import QuantizationError
from bundle.states import CacheScheme
from graphs.lowering.coded_cache import CodedCache
from quant.calibration.feeds import FeedSource
from quant.kv_cache.keys_and_values import CacheSamples, Float32, Written
from runtime.cache_codes import MOST

_MOST_ROWS = 2048
"""Of all samples together, evenly, that a search looks at; peaks are of all rows."""
_PARTS = np.linspace(1.0, 0.3, 15, dtype=np.float32)
"""Of the largest number, tried as the largest code."""
_ANGLES = (np.arange(8) + 0.5) * (np.pi / 16)
"""At which a pair of channels is judged: midpoints of a quarter turn, which by symmetry tells of all."""
_LEAST_SHARE = 1e-5
"""Of a head's loudest channel: the peak of one that is silent in every sample, which may not be in the next prompt."""


def fit_cache(source: FeedSource, scheme: CacheScheme, say: Callable[[str], None]) -> CodedCache:
    """Return the scales of a bundle's cache.

    Args:
        source: The fp32 bundle and the samples it is run on.
        scheme: "int8" or "int4".
        say: Told of it.

    Raises:
        QuantizationError: No samples, a graph that cannot run, or numbers that are not finite.
    """
    samples = CacheSamples(source)
    say(f"cache: {scheme}, scales fitted on {samples.num_samples} runs")
    peaks, rows = seen(samples, keeps_rows=scheme == "int4")
    if scheme == "int8":
        return CodedCache(scheme, {name: _step(peak, scheme) for name, peak in peaks.items()})
    return CodedCache(
        scheme,
        {each.state.input: searched(each, peaks[each.state.input], rows[each.state.input]) for each in samples.written},
    )


def seen(samples: CacheSamples, *, keeps_rows: bool) -> tuple[Mapping[str, Float32], Mapping[str, Float32]]:
    """Return the peaks [K, C] of every state over all samples, and some of the magnitudes [n, K, C] where asked.

    Raises:
        QuantizationError: Numbers that are not finite.
    """
    peaks = {each.state.input: np.zeros(each.state.scale_shape, np.float32) for each in samples.written}
    kept: dict[str, list[Float32]] = {name: [] for name in peaks}
    each_gives = max(1, _MOST_ROWS // samples.num_samples)
    for run in samples.runs():
        for each in samples.written:
            name, magnitudes = each.state.input, each.magnitudes(run[each.value])
            np.maximum(peaks[name], magnitudes.max(axis=0), out=peaks[name])
            if keeps_rows:
                step = -(-len(magnitudes) // each_gives)
                kept[name].append(magnitudes[::step].copy())
    for name, peak in peaks.items():
        if not np.isfinite(peak).all():
            raise QuantizationError(f"{name} gets numbers that are not finite on the samples; look at them")
        np.maximum(peak, peak.max(axis=-1, keepdims=True) * np.float32(_LEAST_SHARE), out=peak)
        peak[peak == 0] = 1.0
    return peaks, {name: np.concatenate(rows) for name, rows in kept.items() if rows}


def searched(written: Written, peaks: Float32, magnitudes: Float32) -> Float32:
    """Return the scales [K, C] of 4 bits under which rows lose least.

    Args:
        written: Says which channels are turned.
        peaks: [K, C].
        magnitudes: [n, K, C] of rows.
    """
    is_turned = written.partners != np.arange(len(written.partners))
    losses = []
    for part in _PARTS:
        scales = _step(peaks * part, "int4")
        turned = sum(_squared_error(magnitudes * np.float32(np.cos(angle)), scales) for angle in _ANGLES)
        losses.append(np.where(is_turned, turned / len(_ANGLES), _squared_error(magnitudes, scales)))
    best = np.argmin(losses, axis=0)
    return _step(peaks * _PARTS[best], "int4")


def _squared_error(magnitudes: Float32, scales: Float32) -> NDArray[np.float64]:
    codes = np.minimum(np.rint(magnitudes / scales), MOST["int4"])
    return np.asarray(np.square(magnitudes - codes * scales).mean(axis=0, dtype=np.float64))


def _step(peaks: Float32, scheme: CacheScheme) -> Float32:
    return np.asarray(peaks / np.float32(MOST[scheme]), np.float32)
