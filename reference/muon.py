"""Muon in float32, for processors that only imitate bfloat16: torch's own multiplies in bfloat16 alone.

Algorithm: https://kellerjordan.github.io/posts/muon/; learning rates matched to AdamW's as in
https://arxiv.org/abs/2502.16982.
"""

from __future__ import annotations

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, from the post
_SMALLEST_NORM = 1e-7


class Float32Muon(torch.optim.Muon):
    """`torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, states and all; matrices are multiplied in float32."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update each matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, group)

    def _update(self, matrix: torch.Tensor, group: dict[str, float]) -> None:
        state = self.state[matrix]
        mean = state.setdefault("momentum_buffer", torch.zeros_like(matrix))
        mean.lerp_(matrix.grad, 1 - group["momentum"])
        update = orthogonal(matrix.grad.lerp(mean, group["momentum"]), int(group["ns_steps"]))
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(update, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def orthogonal(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """Return a matrix [M, N] with its singular values brought near one, 0.7 to 1.2 after five steps."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.T if is_tall else matrix
    found = found / found.norm().clamp(min=_SMALLEST_NORM)
    for _ in range(steps):
        gram = found @ found.T
        first, third, fifth = _COEFFICIENTS
        found = torch.addmm(found, third * gram + fifth * gram @ gram, found, beta=first)
    return found.T if is_tall else found
