"""What a MobileNetV5 is made of: blocks of convolutions and of attention, listed by timm as `mobilenetv5_300m_enc`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bundle.errors import UnsupportedConfigError
from export.config import Raw

Kind = Literal["er", "uir", "mqa"]
ARCHITECTURE = "mobilenetv5_300m_enc"
FUSED_SIZE = 2048
"""Width behind the fusion of scales, which timm's encoder has whatever its blocks are."""
STEM_STRIDE, FUSED_STRIDE, LAST_STRIDE = 2, 16, 32
"""Pixels a place stands for: behind the stem, where scales are fused, behind the last stage."""
_DIVISOR, _LEAST_KEPT = 8, 0.9
"""Channels are a multiple; the next one, where rounding would take off more than a tenth (timm, `make_divisible`)."""
_STEM, _RESOLUTION = 64, 16
_BLOCK_KEYS: Mapping[str, Mapping[str, Any]] = {
    "er": {
        "exp_kernel_size": 3,
        "pw_kernel_size": 1,
        "exp_ratio": 1.0,
        "force_in_chs": 0,
        "se_ratio": 0.0,
    },
    "uir": {
        "dw_kernel_size_start": 0,
        "dw_kernel_size_mid": 3,
        "dw_kernel_size_end": 0,
        "exp_ratio": 1.0,
        "se_ratio": 0.0,
    },
    "mqa": {"dw_kernel_size": 3, "num_heads": 8, "key_dim": 64, "value_dim": 64, "kv_stride": 1},
}
"""Keys of timm's blocks, beside those that all have, with what stands for one that is not stated."""
_FIXED: Mapping[str, Any] = {"pw_kernel_size": 1, "force_in_chs": 0, "se_ratio": 0.0, "dw_kernel_size_end": 0}
"""Keys with the one value that is built."""


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        kind: "er": a convolution that widens, and a matrix; "uir": a matrix that widens and one back, with convolutions
            of single channels before and between; "mqa": attention of many queries over one head of keys and values.
        width: Channels behind it.
        stride: Of its convolution.
        kernels: Sides of the kernels before and between, 0: there is none; of "er" the first is its convolution's; of
            "mqa" that of convolutions before keys and values.
        ratio: Width inside, over the width in.
        num_heads: Of "mqa".
        head_size: The same.
        kv_stride: Of the convolutions before keys and values; 1: there are none.
    """

    kind: Kind
    width: int
    stride: int = 1
    kernels: tuple[int, int] = (0, 0)
    ratio: float = 1.0
    num_heads: int = 0
    head_size: int = 0
    kv_stride: int = 1


def _stages() -> tuple[tuple[Block, ...], ...]:
    """Return the blocks of `mobilenetv5_300m_enc`, stage by stage."""
    er, uir = (Block("er", 128, stride, (3, 0), 4.0) for stride in (2, 1)), []
    for kernel in (5, 3, 5, 3):
        uir.append(Block("uir", 256, 1, (kernel, 0), 4.0))
    first, again = er
    middle = [Block("mqa", 640, 1, (3, 0), 1.0, 12, 64, 2), Block("uir", 640, 1, (0, 0), 2.0)] * 14
    last = [Block("mqa", 1280, 1, (3, 0), 1.0, 16, 96), Block("uir", 1280, 1, (0, 0), 2.0)] * 19
    return (
        (first, again, again),
        (Block("uir", 256, 2, (3, 5), 6.0), *uir),
        (
            Block("uir", 640, 2, (5, 5), 6.0),
            *[Block("uir", 640, 1, (5, 0), 4.0)] * 7,
            Block("uir", 640, 1, (0, 0), 1.0),
            *middle,
        ),
        (Block("uir", 1280, 2, (5, 5), 6.0), *last),
    )


@dataclass(frozen=True)
class MobileNetV5Config:
    """A tower.

    Attributes:
        stages: Blocks, of which the first of each halves height and width.
        stem: Channels of the first convolution.
        resolution: Places of a side behind the fusion of scales.
    """

    stages: tuple[tuple[Block, ...], ...]
    stem: int
    resolution: int

    @classmethod
    def read(cls, raw: Raw) -> MobileNetV5Config:
        """Return the tower of a config as transformers' wrapper of timm has it.

        Raises:
            UnsupportedConfigError: Another architecture, an argument for timm that is not built, or pooled features.
        """
        found = raw.get("architecture", ARCHITECTURE)
        if found != ARCHITECTURE:
            raise UnsupportedConfigError(
                f"vision_config.architecture {found!r}: Gemma 3n's tower is timm's {ARCHITECTURE}"
            )
        if raw.get("do_pooling"):
            raise UnsupportedConfigError("vision_config.do_pooling true: built are features of every place")
        arguments = dict(raw.get("model_args") or {})
        blocks = arguments.pop("block_args", None)
        stem, resolution = arguments.pop("stem_size", _STEM), arguments.pop("msfa_output_resolution", _RESOLUTION)
        if arguments:
            raise UnsupportedConfigError(
                f"vision_config.model_args {', '.join(sorted(arguments))}: built are block_args, stem_size and "
                "msfa_output_resolution"
            )
        if not isinstance(resolution, int):
            raise UnsupportedConfigError(
                f"vision_config.model_args.msfa_output_resolution {resolution!r}: built is one number for both sides"
            )
        stages = _stages() if blocks is None else tuple(tuple(_block(each) for each in stage) for stage in blocks)
        if len(stages) != 4 or any(tuple(block.stride for block in stage) != _strides(stage) for stage in stages):
            raise UnsupportedConfigError(
                f"vision_config.model_args.block_args has {len(stages)} stages; built are four, of which the first "
                "block of each, a convolution, halves height and width and no other does"
            )
        return cls(stages, divisible(stem), resolution)

    @property
    def widths(self) -> tuple[int, int]:
        """Of the two scales that are fused."""
        return self.stages[-2][-1].width, self.stages[-1][-1].width

    def check_side(self, side_px: int) -> None:
        """Check that images of that side are fused and averaged by whole places.

        Raises:
            UnsupportedConfigError: They are not.
        """
        step = FUSED_STRIDE * self.resolution
        if side_px % LAST_STRIDE or side_px % step:
            raise UnsupportedConfigError(
                f"the processor makes images of {side_px} pixels a side; MobileNetV5 with {self.resolution} x "
                f"{self.resolution} features is built for multiples of {step} and {LAST_STRIDE} "
                f"(google/gemma-3n-E2B-it: 768)"
            )


def _strides(stage: Sequence[Block]) -> tuple[int, ...]:
    return (2, *[1] * (len(stage) - 1)) if stage and stage[0].kind != "mqa" else (0,)


def divisible(channels: float) -> int:
    """Return a number of channels as timm rounds it."""
    rounded = max(_DIVISOR, int(channels + _DIVISOR / 2) // _DIVISOR * _DIVISOR)
    return rounded + _DIVISOR if rounded < _LEAST_KEPT * channels else rounded


def _block(raw: Raw) -> Block:
    """Return a block as timm's `decode_arch_def` writes it.

    Raises:
        UnsupportedConfigError: A kind or a setting that is not built.
    """
    kind = str(raw.get("block_type"))
    if kind not in _BLOCK_KEYS:
        raise UnsupportedConfigError(
            f"vision_config.model_args.block_args: block_type {kind!r}; built are {', '.join(_BLOCK_KEYS)}"
        )
    own = {**_BLOCK_KEYS[kind], **raw}
    shared = {"block_type": kind, "out_chs": None, "stride": 1, "act_layer": None, "noskip": False}
    changed = {key for key in (*_FIXED, "act_layer", "noskip") if key in own and own[key] != {**_FIXED, **shared}[key]}
    if unknown := (changed | (set(own) - set(shared) - set(_BLOCK_KEYS[kind]))):
        raise UnsupportedConfigError(
            f"vision_config.model_args.block_args: {', '.join(sorted(unknown))} of a block of type {kind} is not built"
        )
    width, stride = divisible(own["out_chs"]), int(own.get("stride", 1))
    if kind == "er":
        return Block("er", width, stride, (int(own["exp_kernel_size"]), 0), float(own["exp_ratio"]))
    if kind == "uir":
        kernels = int(own["dw_kernel_size_start"]), int(own["dw_kernel_size_mid"])
        return Block("uir", width, stride, kernels, float(own["exp_ratio"]))
    if own["key_dim"] != own["value_dim"]:
        raise UnsupportedConfigError(
            f"vision_config.model_args.block_args: key_dim {own['key_dim']} and value_dim {own['value_dim']} of a "
            "block of type mqa; built are heads of one size"
        )
    sizes = int(own["num_heads"]), int(own["key_dim"]), int(own["kv_stride"])
    return Block("mqa", width, stride, (int(own["dw_kernel_size"]), 0), 1.0, *sizes)
