"""EVE (arXiv 2406.11832), its first version: no tower, patches that look at one another once, a Llama decoder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, LongestEdge
from bundle.layouts.eve import EvePrompt
from export.authors.conversation import CURIOUS_USER, IMAGE, two_roles
from export.config import Raw
from export.family import Family
from export.found_processor import FoundProcessor
from export.image_processors.image_processor import CLIP_MEAN, CLIP_STD
from export.marked_images import MarkedImages
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module
from export.towers.eve import NUM_HEADS, EveEmbedding

_ANY_PIXEL = re.compile(r"patch(\d+)-anypixel-(\d+)$")
_CLIP = re.compile(r"patch(\d+)(?:-(\d+))?$")
_CLIP_SIDE_PX = 224
"""Of CLIP's checkpoints whose name says none."""
_SQUARE = 2
"""Patches each way of a square (`conv_stride`), which a file states that is beside no checkpoint. Concluded: of 672
pixels, patches of 14 and CLIP's grid of 24 the authors' code takes 1 or 2, and it tunes on prompts of 2048 tokens, into
which 48 x 48 patches do not go."""
_MLP = re.compile(r"mlp(\d+)x_gelu$")
_END = "</s>"


@dataclass(frozen=True)
class _Sizes:
    """What the names of the processors say, of which a checkpoint holds no file.

    Attributes:
        longest_px: Side of the largest image.
        patch_px: Side of a patch.
        step_px: Sides of images are multiples of it.
    """

    longest_px: int
    patch_px: int
    step_px: int

    @classmethod
    def read(cls, config: Raw) -> _Sizes:
        """Return the sizes of a config.

        Raises:
            UnsupportedConfigError: A name of another form, or sizes that do not go together.
        """
        named, clip = (str(config.get(key)) for key in ("mm_vision_tower", "mm_vision_tower_clip"))
        own, other = _ANY_PIXEL.search(named), _CLIP.search(clip)
        if own is None or other is None:
            raise UnsupportedConfigError(
                f"config.json: mm_vision_tower {named!r}, mm_vision_tower_clip {clip!r}; the sizes of images are read "
                "from names that end as eve-patch14-anypixel-672 and clip-vit-large-patch14-336 do"
            )
        patch, longest = (int(each) for each in own.groups())
        clip_patch, clip_side = int(other.group(1)), int(other.group(2) or _CLIP_SIDE_PX)
        ratio, rest = divmod(longest, clip_side)
        step = clip_patch * ratio
        if rest or not ratio or clip_side % clip_patch or step % (patch * _SQUARE):
            raise UnsupportedConfigError(
                f"config.json: mm_vision_tower {named!r} goes with no mm_vision_tower_clip {clip!r}: images of "
                f"{longest} pixels are wanted to be a whole multiple of {clip_side}, and patches of {clip_patch} that "
                f"much larger whole squares of {_SQUARE} x {_SQUARE} patches of {patch}"
            )
        return cls(longest, patch, step)


class _Matrices(Module):
    """Matrices with GELU between them, numbered as PyTorch numbers a sequence; or a single one."""

    def __init__(self, sizes: tuple[int, int], depth: int, *, rows: int, is_single: bool) -> None:
        super().__init__("" if is_single else "model.mm_projector")
        in_size, out_size = sizes
        self.depth = depth
        for at in range(depth):
            name = "model.mm_projector" if is_single else str(2 * at)
            setattr(self, f"matrix_{at}", Linear(out_size if at else in_size, out_size, rows=rows, name=name))

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        for at in range(self.depth):
            x = getattr(self, f"matrix_{at}")(op, op.Gelu(x) if at else x)
        return x


class Eve(MarkedImages):
    """`model_type` eve."""

    text_prefix = "model"
    image_processor = "CLIPImageProcessor"
    # what patches were aligned with while it was trained (its "Patch Aligning Layer"), and no answer reads
    unused: ClassVar[tuple[str, ...]] = (
        *Family.unused,
        r"model\.vision_clip\..*",
        r"model\.vision_tower_compressor\..*",
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        for key in ("mm_use_im_start_end", "mm_use_im_patch_token"):
            if config.get(key):
                raise UnsupportedConfigError(f"config.json: {key} is true; built are images without tokens around them")
        self._sizes = _Sizes.read(config)
        self._width = int(config.get("mm_hidden_size", 1024))
        if self._width % NUM_HEADS:
            raise UnsupportedConfigError(
                f"config.json: mm_hidden_size {self._width} is no multiple of {NUM_HEADS} heads"
            )

    @property
    def text_config(self) -> Raw:
        """The config itself, a Llama's."""
        return {**self.config, "model_type": "llama"}

    @property
    def image_size_px(self) -> None:
        """None: an image keeps its shape."""
        return

    @property
    def tokens_per_tile(self) -> None:
        """None: as many as squares of patches, one for each of their lines, and one."""
        return

    def own_image_spec(self) -> ImageSpec:
        """Return the preprocessing of the authors' `process_images`, whose padding no row sees."""
        sizes = self._sizes
        return ImageSpec(
            geometry=LongestEdge(longest_px=sizes.longest_px, step_px=sizes.step_px, scaling="always"),
            resample="bicubic",
            rescale_factor=1 / 255,
            mean=CLIP_MEAN,
            std=CLIP_STD,
        )

    def is_of_decoder(self, name: str) -> bool:
        """Return whether a weight is the decoder's, beside which those of images stand."""
        return super().is_of_decoder(name) and not name.startswith(("model.vision_tower.", "model.mm_projector."))

    def vision(self, dialect: Dialect) -> Module:
        """Return patches and connector.

        Raises:
            UnsupportedConfigError: A connector that is not built.
        """
        kind: Any = self.config.get("mm_projector_type", "linear")
        depth = _MLP.match(str(kind))
        if depth is None and kind != "linear":
            raise UnsupportedConfigError(f"config.json: mm_projector_type {kind!r}; built are linear and mlp<n>x_gelu")
        rows = self._rows
        embedding = EveEmbedding(
            self._width, self._sizes.patch_px, _SQUARE, dialect, rows=rows, name="model.vision_tower"
        )
        sizes = self._width, self.decoder.config.hidden_size
        num = 1 if depth is None else int(depth.group(1))
        return Chain(embedding, _Matrices(sizes, num, rows=rows, is_single=depth is None))

    def image_prompt(self, found: FoundProcessor) -> EvePrompt:
        """Return the mark of an image once for every row."""
        return EvePrompt(
            image_token=IMAGE,
            image_token_id=found.vocabulary.id_of(IMAGE, "the mark of an image"),
            tokens_per_tile=self._rows,
            step_px=self._sizes.patch_px * _SQUARE,
        )

    def own_template(self) -> str:
        """Return Vicuna's conversation, by which the authors tune and judge: images before all words of a message."""
        return "{{ bos_token }}" + two_roles(_END, CURIOUS_USER, gathers_images=True).template()

    @property
    def _rows(self) -> int:
        """Rows of a square image."""
        side = self._sizes.longest_px // (self._sizes.patch_px * _SQUARE)
        return 1 + side * (side + 1)
