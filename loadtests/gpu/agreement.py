"""Whether a variant says on this device what the fp32 bundle says on the CPU, token by token along the same text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from bundle.directory import Bundle, open_bundle
from loadtests.gpu.found import Found, tell
from loadtests.gpu.sizes import Sizes
from runtime.cache_shape import cache_shape
from runtime.decoder import Decoder, TokenGraphs
from runtime.feeds import TokenRun
from runtime.settings import Provider, RuntimeSettings

_TEXTS = 3
"""Sequences of a batch; each is as long as the next and holds other tokens."""
_MARGIN = 0.5
"""Of the largest logit over the second, in nats, above which another first place is a fault and no rounding."""

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


def measure_agreement(folder: Path, family: str, name: str, sizes: Sizes, provider: Provider) -> None:
    """Tell cosine, mean KL and the share of equal first places along texts that both are forced through."""
    parent = open_bundle(folder / family / "fp32", verify=False)
    variant = open_bundle(folder / family / name, verify=False, allow_ungated=True)
    vocab_size = parent.manifest.decoder.vocab_size if parent.manifest.decoder else 1
    num_steps = min(sizes.answer_tokens, 24)
    ids = np.random.default_rng(3).integers(0, vocab_size, (_TEXTS, sizes.prompt_tokens // 4 + num_steps))
    expected, _ = forced_logits(parent, "cpu", ids, num_steps)
    found, greedy_ids = forced_logits(variant, provider, ids, num_steps)
    for what, value in _compared(expected, found, greedy_ids).items():
        tell(folder, Found(f"{family}: {what}", name, value, ""))


def forced_logits(bundle: Bundle, provider: Provider, ids: Ids, num_steps: int) -> tuple[Logits, Ids]:
    """Return logits [T, B, V] of the last steps along texts [B, n], and the greedy ids [T, B] that went with them."""
    graphs = TokenGraphs(bundle, RuntimeSettings(provider=provider))
    decoder = Decoder(graphs, cache_shape(bundle.manifest, len(ids), ids.shape[1] + 8))
    start = ids.shape[1] - num_steps
    for slot, text in enumerate(ids):
        decoder.run("prompt", slot, [_run(graphs, text[:start], 0)])
    logits, greedy_ids = [], []
    for at in range(start, ids.shape[1]):
        step = decoder.step("step", 0, [_run(graphs, text[at : at + 1], at) for text in ids])
        rows = step.rows().copy()
        logits.append(rows)
        greedy_ids.append(rows.argmax(axis=-1) if step.greedy_ids is None else step.greedy_ids)
    return np.stack(logits), np.stack(greedy_ids)


def _run(graphs: TokenGraphs, ids: Ids, start: int) -> TokenRun:
    places = np.broadcast_to(np.arange(start, start + len(ids)), (*graphs.position_axes, len(ids)))
    return TokenRun(ids, places, [start] * graphs.num_length_groups, [len(ids) - 1])


def _compared(expected: Logits, found: Logits, greedy_ids: Ids) -> dict[str, float]:
    first, second = (each.reshape(-1, each.shape[-1]).astype(np.float64) for each in (expected, found))
    cosine = (first * second).sum(-1) / np.linalg.norm(first, axis=-1) / np.linalg.norm(second, axis=-1)
    log_p, log_q = (each - _log_sum_exp(each) for each in (first, second))
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    ranked = np.partition(first, -2, axis=-1)
    is_clear = ranked[:, -1] - ranked[:, -2] > _MARGIN
    is_same = first.argmax(-1) == greedy_ids.ravel()
    return {
        "least cosine of logits": float(cosine.min()),
        "mean KL, nats": float(divergence.mean()),
        "same first place": float(is_same.mean()),
        "other first place where the margin is clear": float((is_clear & ~is_same).sum()),
        "clear margins": float(is_clear.sum()),
    }


def _log_sum_exp(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    top = rows.max(axis=-1, keepdims=True)
    summed: npt.NDArray[np.float64] = top + np.log(np.exp(rows - top).sum(axis=-1, keepdims=True))
    return summed
