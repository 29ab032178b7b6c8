"""KV policies as ports to torch, written from the papers' equations, their published code and kvpress's."""

from __future__ import annotations

import math

import numpy as np
import torch

from quant.kv.policy import LayerRows, Rows


def attention(layer: LayerRows, window: int) -> torch.Tensor:
    """Return [H, w, L]: softmax(q k^T / sqrt(C)) with the upper triangle of the window masked."""
    keys = torch.from_numpy(layer.keys)
    queries = torch.from_numpy(layer.queries)[:, -window:]
    keys = keys.repeat_interleave(queries.shape[0] // keys.shape[0], dim=0)
    scores = queries @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1])
    num_rows = keys.shape[1]
    mask = torch.full((window, num_rows), -math.inf).triu(num_rows - window + 1)
    return torch.softmax(scores + mask, dim=-1)


def top(scores: torch.Tensor, count: int) -> Rows:
    rows: Rows = scores.topk(count, dim=-1).indices.sort(dim=-1).values.numpy()
    return rows


def with_recent(scores: torch.Tensor, recent: int) -> torch.Tensor:
    scores = scores.clone()
    if recent:
        scores[:, -recent:] = math.inf
    return scores


def snapkv(layer: LayerRows, count: int, window: int | None = None) -> Rows:
    num_kv, num_rows, _ = layer.keys.shape
    window = window or max(min(layer.queries.shape[1], count // 2), 1)
    seen = attention(layer, window)[..., :-window].mean(dim=-2)
    pooled = torch.nn.functional.avg_pool1d(seen, kernel_size=5, padding=2, stride=1)
    scores = pooled.reshape(num_kv, -1, num_rows - window).mean(dim=1)
    return top(torch.nn.functional.pad(scores, (0, window), value=math.inf), count)


def tova(layer: LayerRows, count: int) -> Rows:
    seen = attention(layer, 1)[:, 0, :-1].mean(dim=0)
    scores = torch.nn.functional.pad(seen, (0, 1), value=math.inf)
    return top(scores.expand(layer.keys.shape[0], -1), count)


def sums(layer: LayerRows, window: int) -> torch.Tensor:
    return attention(layer, window).sum(dim=1).reshape(layer.keys.shape[0], -1, layer.num_rows).mean(dim=1)


def h2o(layer: LayerRows, count: int) -> Rows:
    return top(with_recent(sums(layer, layer.queries.shape[1]), count // 2), count)


def look_m(layer: LayerRows, count: int) -> Rows:
    scores = sums(layer, layer.queries.shape[1]).double()
    scores[:, torch.from_numpy(layer.is_image)] -= 65516
    return top(with_recent(scores, count // 2), count)


def vl_cache(layer: LayerRows, count: int) -> Rows:
    behind = layer.num_rows - 1 - int(np.flatnonzero(layer.is_image)[-1])
    scores = sums(layer, min(behind, layer.queries.shape[1]))
    return top(with_recent(scores, max(int(0.1 * count), 1)), count)


def knorm(layer: LayerRows, count: int) -> Rows:
    return top(-torch.from_numpy(layer.keys).norm(dim=-1), count)


def keydiff(layer: LayerRows, count: int) -> Rows:
    keys = torch.from_numpy(layer.keys)
    anchor = torch.nn.functional.normalize(keys, p=2, dim=-1).mean(dim=1, keepdim=True)
    return top(-torch.nn.functional.cosine_similarity(keys, anchor, dim=-1), count)


def lagkv(layer: LayerRows, count: int, sinks: int = 4, lag: int = 128) -> Rows:
    num_kv, num_rows, size = layer.keys.shape
    scores = torch.ones(num_kv, num_rows)
    scores[:, :sinks] = 2
    end = sinks + (num_rows - sinks) // lag * lag
    if num_rows >= sinks + 2 * lag:
        found = []
        for rows in (layer.keys, layer.values):
            blocks = torch.from_numpy(rows)[:, sinks:end].reshape(num_kv, -1, lag, size)
            ref, own = blocks[:, 1:], blocks[:, :-1]
            least, most = ref.min(dim=2, keepdim=True).values, ref.max(dim=2, keepdim=True).values
            found.append(((own - least) / (most - least)).std(dim=-1).softmax(dim=-1))
        ranks = ((found[0] + found[1]) / 2).argsort(dim=-1).argsort(dim=-1) / lag
        scores[:, sinks : end - lag] = ranks.reshape(num_kv, -1)
    return top(scores + torch.arange(num_rows) * 1e-6, count)  # of equal ones, the newer


PORTS = {
    "snapkv": snapkv,
    "tova": tova,
    "h2o": h2o,
    "look-m": look_m,
    "look-m-averaged": look_m,
    "look-m-weighted": look_m,
    "vl-cache": vl_cache,
    "knorm": knorm,
    "keydiff": keydiff,
    "lagkv": lagkv,
}

MERGES = {
    "look-m": lambda kept, gone, likeness: (gone + kept) / 2,
    "look-m-averaged": lambda kept, gone, likeness: gone,
    "look-m-weighted": lambda kept, gone, likeness: likeness[:, None] * gone,
}


def merged(name: str, layer: LayerRows, kept: Rows, part: str) -> list[torch.Tensor]:
    """Return the kept rows of each head's keys or values with what LOOK-M leaves in them."""
    found = []
    for head, rows in enumerate(kept):
        gone = torch.from_numpy(layer.is_image & ~np.isin(np.arange(layer.num_rows), rows))
        keys, stays = torch.from_numpy(layer.keys[head]), torch.from_numpy(rows)
        likeness = torch.nn.functional.cosine_similarity(keys[gone][:, None], keys[stays][None], dim=-1)
        closest, place = likeness.max(dim=1)
        own = torch.from_numpy(getattr(layer, part)[head])
        left = MERGES[name](own[stays][place], own[gone], closest)
        index = place[:, None].expand_as(left)
        found.append(own[stays].scatter_reduce(0, index, left, reduce="mean", include_self=True))
    return found
