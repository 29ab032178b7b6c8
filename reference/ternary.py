"""Ternary linear layers as BitNet b1.58 defines them, trainable, and their packed form.

S. Ma et al., "The Era of 1-bit LLMs" (arXiv 2402.17764): weights in {-1, 0, 1} times the mean absolute weight of the
matrix, activations in int8 with one scale a token. Gradients pass both roundings unchanged (straight through).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

_CODES_PER_BYTE = 4
_SMALLEST_SCALE = 1e-5
_INT8_MAX = 127


def absmean(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes and scale of a ternary matrix.

    Args:
        weight: [O, I] float.

    Returns:
        Codes [O, I] in {-1, 0, 1} and the scale, no axes, both of the weight's dtype.
    """
    scale = weight.float().abs().mean().clamp(min=_SMALLEST_SCALE).to(weight.dtype)
    return (weight / scale).round().clamp(-1, 1), scale


class _Int8PerToken(torch.autograd.Function):
    """Rounds each row to 255 steps of its largest magnitude; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: object, values: torch.Tensor) -> torch.Tensor:
        """Return the rounded values."""
        largest = values.abs().amax(-1, keepdim=True).clamp(min=_SMALLEST_SCALE)  # vector_norm is 5 times slower
        return (values * (_INT8_MAX / largest)).round_().mul_(largest / _INT8_MAX)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient itself."""
        return gradient


def int8_per_token(values: torch.Tensor) -> torch.Tensor:
    """Return values [..., I] rounded to int8 steps with one scale a row, straight through for gradients."""
    return _Int8PerToken.apply(values)


class TernaryLinear(nn.Linear):
    """A linear layer without bias that computes with ternary weights and int8 activations.

    `weight` stays the trainable float matrix. `blend` moves from it (0) to its ternary form (1).
    """

    blend = 1.0

    @classmethod
    def of(cls, linear: nn.Linear) -> TernaryLinear:
        """Return a layer that shares the weight of `linear`."""
        layer = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        layer.weight = linear.weight
        return layer

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return [..., O] of values [..., I]."""
        with torch.no_grad():
            codes, scale = absmean(self.weight)
            offset = (codes * scale - self.weight) * self.blend
        return functional.linear(int8_per_token(values), self.weight + offset)


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Return codes four to a byte, in the row order of transformers' `bitnet` checkpoints.

    Args:
        codes: [O, I] in {-1, 0, 1}, O divisible by 4. Bits 2q and 2q+1 of stored row r hold row q * O/4 + r plus 1.

    Returns:
        [O/4, I] uint8.

    Raises:
        ValueError: O does not divide.
    """
    if codes.shape[0] % _CODES_PER_BYTE:
        raise ValueError(f"{codes.shape[0]} rows of ternary codes must be a multiple of {_CODES_PER_BYTE}")
    quarters = (codes + 1).to(torch.uint8).view(_CODES_PER_BYTE, -1, codes.shape[1])
    shifts = 2 * torch.arange(_CODES_PER_BYTE, dtype=torch.uint8).view(-1, 1, 1)
    return (quarters << shifts).sum(0, dtype=torch.uint8)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Return the codes [O, I], int8, that `pack` stored in [O/4, I] uint8."""
    return torch.cat([(packed >> 2 * q & 3).to(torch.int8) - 1 for q in range(_CODES_PER_BYTE)])


class StoredTernaryLinear(nn.Module):
    """A ternary layer as checkpoints hold it: int8 activations times codes, times one scale.

    `weight` [O, I] holds the codes as floats and `weight_scale` [1] multiplies, as in a `bitnet` checkpoint of linear
    class `autobitlinear`.
    """

    weight: torch.Tensor
    weight_scale: torch.Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        """Make a layer of zeros."""
        super().__init__()
        self.register_buffer("weight", torch.zeros(out_features, in_features))
        self.register_buffer("weight_scale", torch.ones(1))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return [..., O] of values [..., I]."""
        return functional.linear(int8_per_token(values), self.weight) * self.weight_scale


def checkpoint_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a checkpoint holds of a model that may have `TernaryLinear` layers.

    A ternary matrix becomes its packed codes, uint8 [O/4, I], and its scale, float16 [1], named `..._scale`; codes are
    those of the weight in the number format that it has, for rounding it first could move some. All else is float16.
    """
    is_ternary = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, TernaryLinear)}
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in model.named_parameters():
        if name in is_ternary:
            codes, scale = absmean(weight.detach())
            tensors |= {name: pack(codes), f"{name}_scale": scale.half().reshape(1)}
        else:
            tensors[name] = weight.detach().half()
    return tensors


def nearest_ternary(weight: torch.Tensor, block_size: int) -> torch.Tensor:
    """Return the closest matrix, by squares, whose blocks hold three values {-a, 0, a} each with a scale a of its own.

    The k largest magnitudes of a block are kept; their mean is the scale, and k maximises (sum of the k)^2 / k.

    Args:
        weight: [O, I] float.
        block_size: Of runs along I; the last block of a row may be shorter.
    """
    rows, columns = weight.shape
    padded = functional.pad(weight.float(), (0, -columns % block_size)).view(rows, -1, block_size)
    magnitudes, order = padded.abs().sort(-1, descending=True)
    sums = magnitudes.cumsum(-1)
    counts = torch.arange(1, block_size + 1)
    best = (sums.square() / counts).argmax(-1, keepdim=True)
    scales = sums.gather(-1, best) / (best + 1)
    kept = torch.zeros_like(padded).scatter(-1, order, (counts <= best + 1).float())
    return (padded.sign() * kept * scales).view(rows, -1)[:, :columns].to(weight.dtype)
