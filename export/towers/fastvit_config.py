"""What timm's names of FastViTs stand for, and what a config of timm's wrapper may change of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bundle.errors import UnsupportedConfigError
from export.config import Raw

HEAD_SIZE = 32
_STEM_STRIDE = 4
_WIDENED = 2
"""What the last convolution multiplies channels by (timm, cls_ratio)."""


@dataclass(frozen=True)
class FastViTConfig:
    """Sizes of the stages.

    Attributes:
        layers: Blocks of each.
        widths: Channels of each.
        ratios: Inner width of its feed-forwards, over its channels.
        attends: Which stages attend; the others mix by convolution.
        squeezes: Which begin with a gate over channels.
        norms_by_batch: Attention stands behind a batch norm, not one over the channels of a place.
        stem_has_scales: The stem's convolutions have a branch of side 1 in training.
        has_branches: The checkpoint has those of training.
        image_size_px: Side of the input.
    """

    layers: tuple[int, ...]
    widths: tuple[int, ...]
    ratios: tuple[float, ...] = (4.0,) * 5
    attends: tuple[bool, ...] = (False, False, False, True, True)
    squeezes: tuple[bool, ...] = (False,) * 5
    norms_by_batch: bool = False
    stem_has_scales: bool = False
    has_branches: bool = False
    image_size_px: int = 0

    @property
    def patch_size_px(self) -> int:
        """Side of the square of pixels that one place behind the last stage stands for."""
        return _STEM_STRIDE << (len(self.layers) - 1)

    @property
    def hidden_size(self) -> int:
        """Channels that the tower gives."""
        return self.widths[-1] * _WIDENED

    def rows(self, stage: int) -> int:
        """Return how many places a stage has."""
        return (self.image_size_px // (_STEM_STRIDE << stage)) ** 2

    @classmethod
    def read(cls, raw: Raw, num_tokens: int) -> FastViTConfig:
        """Return the tower of a config of timm's wrapper.

        Args:
            raw: `architecture` and `model_args`.
            num_tokens: That the tower makes of an image, from which its side follows.

        Raises:
            UnsupportedConfigError: Another tower, its form in training, or arguments that are not read.
        """
        name, stated = str(raw.get("architecture")), dict(raw.get("model_args") or {})
        if name not in FASTVITS:
            raise UnsupportedConfigError(
                f"vision_config.architecture {name!r}: of timm's towers {', '.join(FASTVITS)} are built"
            )
        if not stated.pop("inference_mode", False):
            raise UnsupportedConfigError(
                "vision_config.model_args.inference_mode is not true: FastVLM is built without the branches of "
                "training; put them together with timm's reparameterize_model, and save the checkpoint again"
            )
        sizes = FASTVITS[name]
        given: dict[str, Any] = {field: tuple(stated.pop(key)) for key, field in _ARGUMENTS.items() if key in stated}
        if stated or any(len(value) != len(sizes.layers) for value in given.values()):
            raise UnsupportedConfigError(
                f"vision_config.model_args {raw['model_args']}: read are inference_mode, {', '.join(_ARGUMENTS)}, "
                f"the last of {len(sizes.layers)} numbers each"
            )
        changed = replace(sizes, **given)
        side = round(num_tokens**0.5)
        if side * side != num_tokens or any(
            width % HEAD_SIZE for width, attends in zip(changed.widths, changed.attends, strict=True) if attends
        ):
            raise UnsupportedConfigError(
                f"image_seq_length {num_tokens} and widths {changed.widths}: built are squares of tokens, and heads of "
                f"{HEAD_SIZE} where a stage attends"
            )
        return replace(changed, image_size_px=side * changed.patch_size_px)


def _of_four(layers: tuple[int, ...], first: int) -> FastViTConfig:
    return FastViTConfig(
        layers,
        (first, 2 * first, 4 * first, 8 * first),
        (3.0,) * 4,
        attends=(False, False, False, True),
        squeezes=(False, False, True, True),
        norms_by_batch=True,
        stem_has_scales=True,
    )


FASTVITS: dict[str, FastViTConfig] = {
    "fastvit_mci0": _of_four((2, 6, 10, 2), 64),
    "fastvit_mci1": _of_four((4, 12, 20, 4), 64),
    "fastvit_mci2": _of_four((4, 12, 24, 4), 80),
    "fastvit_mci3": FastViTConfig((2, 12, 24, 4, 2), (96, 192, 384, 768, 1536)),
    "fastvit_mci4": FastViTConfig((2, 12, 24, 4, 4), (128, 256, 512, 1024, 2048)),
}
"""By timm's name, as timm 1.0.31 has them; mci3 is what FastVLM calls FastViTHD."""
_ARGUMENTS = {"layers": "layers", "embed_dims": "widths", "mlp_ratios": "ratios"}
