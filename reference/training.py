"""What both training scripts share: quick arithmetic over float32 weights, optimizers, schedule, resuming.

CPUs with AVX512-BF16 multiply bfloat16 matrices about five times faster than float32 ones, so there the
model computes in bfloat16 while the optimizers update float32 copies of its weights. Others take fifty times longer
over bfloat16 (AMD EPYC with AVX2: 1.2 against 63 GFLOPS a thread), and compute in float32.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from reference.batches import Batch
from reference.muon import Float32Muon

ATTENTION = "reference_matmul"
"""What trains fastest on a CPU, see `attention_of`."""


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Return attention as two plain products, which beat the fused CPU kernel in bfloat16 at these lengths.

    Args:
        module: Unused; part of the interface.
        query: [B, H, T, C].
        key: [B, K, S, C], K dividing H.
        value: [B, K, S, C].
        attention_mask: Additive mask, broadcast to [B, 1, T, S], or None.
        scaling: Factor of the scores; None means C ** -0.5.
        dropout: Must be 0.
        _: Ignored.
    """
    batch, heads, length, width = query.shape
    kv_heads, past = key.shape[1], key.shape[2]
    scaled = query * (width**-0.5 if scaling is None else scaling)
    grouped = scaled.reshape(batch, kv_heads, -1, width)
    scores = grouped @ key.transpose(-1, -2)
    if attention_mask is not None:
        scores = (scores.view(batch, heads, length, past) + attention_mask).view_as(scores)
    mixed = scores.softmax(-1) @ value
    return mixed.view(batch, heads, length, width).transpose(1, 2), None


def arithmetic_of(device: torch.device) -> torch.dtype:
    """Return what a device multiplies matrices in quickest: bfloat16, or float32 on CPUs that only imitate it."""
    found = torch.cpu.get_capabilities() if device.type == "cpu" else {"avx512_bf16": True}
    return torch.bfloat16 if found.get("avx512_bf16") or found.get("amx_bf16") else torch.float32


def attention_of(device: torch.device) -> str:
    """Return which attention trains fastest on a device."""
    return ATTENTION if device.type == "cpu" else "sdpa"


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)


def graded(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of logits [N, V], and per kind the share of answers whose every token is right."""
    kinds, kind_of = np.unique(batch.kinds, return_inverse=True)
    targets, weights, answers, kind_of = (
        torch.from_numpy(column).to(logits.device) for column in (batch.targets, batch.weights, batch.answers, kind_of)
    )
    each = functional.cross_entropy(logits, targets, reduction="none")
    loss = (each * weights).sum() / weights.sum()
    is_wrong = (logits.argmax(-1) != targets).float()
    is_right = (is_wrong.new_zeros(len(batch.kinds)).index_add(0, answers, is_wrong) == 0).float()
    right = is_right.new_zeros(len(kinds)).index_add(0, kind_of, is_right) / torch.bincount(kind_of)
    return loss, {"loss": loss.detach(), **dict(zip(map(str, kinds), right, strict=True))}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning-rate course: linear warm-up, then a cosine to zero over steps or wall-clock minutes."""

    num_steps: int  # used when budget_minutes is 0
    budget_minutes: float  # wall clock, resumed time included; 0 counts steps instead
    warmup_steps: int = 50

    def progress(self, step: int, elapsed_s: float) -> float:
        """Return the share of the course that is done, 0 to 1."""
        share = elapsed_s / (60 * self.budget_minutes) if self.budget_minutes else step / self.num_steps
        return min(1.0, share)

    def factor(self, step: int, elapsed_s: float) -> float:
        """Return the multiple of the peak learning rate to use now."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress(step, elapsed_s))))


class MasterWeights:
    """Owns float32 copies of a model's weights and steps them: Muon for matrices in layers, AdamW for the rest.

    Muon: https://kellerjordan.github.io/posts/muon/.
    """

    def __init__(self, model: nn.Module, lr: float, adamw_names: Iterable[str]) -> None:
        """Turn `model` to its device's quickest arithmetic in place.

        Args:
            model: The model that computes.
            lr: Peak learning rate of both optimizers (Muon's is matched to AdamW's root mean square).
            adamw_names: Parts of parameter names whose matrices AdamW steps (embeddings, heads).
        """
        self._lr = lr
        self._masters = {name: p.detach().float().clone() for name, p in model.named_parameters()}
        arithmetic = arithmetic_of(next(model.parameters()).device)
        model.to(arithmetic)
        self._params = dict(model.named_parameters())
        matrices, others = [], []
        for name, master in self._masters.items():
            is_hidden = master.ndim == 2 and not any(part in name for part in adamw_names)
            (matrices if is_hidden else others).append(master)
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        if matrices:
            muon = torch.optim.Muon if arithmetic == torch.bfloat16 else Float32Muon
            self._optimizers.append(muon(matrices, lr=lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"))

    @torch.no_grad()
    def step(self, factor: float, max_norm: float = 1.0) -> None:
        """Apply and clear the gradients. Nothing here waits for the device."""
        used = []
        for name, param in self._params.items():
            master = self._masters[name]
            master.grad = None if param.grad is None else param.grad.float()
            param.grad = None
            if master.grad is not None:
                used.append(master)
        if not used:
            return
        nn.utils.clip_grad_norm_(used, max_norm)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._lr * factor
            optimizer.step()
        for name, param in self._params.items():
            param.copy_(self._masters[name])

    def state(self) -> dict[str, object]:
        """Return everything needed to go on later."""
        return {"masters": self._masters, "optimizers": [o.state_dict() for o in self._optimizers]}

    @torch.no_grad()
    def load(self, state: dict) -> None:  # type: ignore[type-arg]
        """Restore what `state` returned."""
        for name, master in self._masters.items():
            master.copy_(state["masters"][name])
            self._params[name].copy_(master)
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the float32 weights by parameter name."""
        return self._masters


class Run:
    """One resumable stage: counts steps and seconds, says when to save and when it is over."""

    def __init__(
        self,
        folder: pathlib.Path,
        name: str,
        schedule: Schedule,
        masters: tuple[MasterWeights, ...],
        save_every_s: float,
    ) -> None:
        """Resume from `folder/name.pt` when it exists."""
        self.step = 0
        self._path = folder / f"{name}.pt"
        self._name = name
        self._schedule = schedule
        self._masters = masters
        self._save_every_s = save_every_s
        self._before_s = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            saved = torch.load(self._path, weights_only=True, map_location="cpu")
            for owner, state in zip(masters, saved["states"], strict=True):
                owner.load(state)
            self.step, self._before_s = saved["step"], saved["elapsed_s"]
            print(f"{name}: resumed at step {self.step}", flush=True)
        self._start_s = self._saved_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Return the seconds trained, earlier sittings included."""
        return self._before_s + time.monotonic() - self._start_s

    @property
    def progress(self) -> float:
        """Return the share of the stage that is done, 0 to 1."""
        return self._schedule.progress(self.step, self.elapsed_s)

    @property
    def is_over(self) -> bool:
        """Say whether the budget is spent."""
        return self.progress >= 1.0

    def advance(self) -> None:
        """Apply the gradients of one batch, and save now and then."""
        for owner in self._masters:
            owner.step(self._schedule.factor(self.step, self.elapsed_s))
        self.step += 1
        if time.monotonic() - self._saved_s > self._save_every_s:
            self.save()

    def save(self) -> None:
        """Write the state, replacing the earlier one only when the new one is complete."""
        partial = self._path.with_suffix(".partial")
        torch.save(
            {"states": [owner.state() for owner in self._masters], "step": self.step, "elapsed_s": self.elapsed_s},
            partial,
        )
        partial.replace(self._path)
        self._saved_s = time.monotonic()

    def line(self, facts: Mapping[str, float | torch.Tensor]) -> str:
        """Return a progress line."""
        shown = " ".join(f"{key} {float(value):.3f}" for key, value in facts.items())
        return f"{self._name} step {self.step} {self.elapsed_s / 60:.1f} min {self.progress:.0%} {shown}"
