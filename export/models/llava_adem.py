"""ADEM-VL (arXiv 2410.17779): a LLaVA whose image is fused into every layer by attention without parameters.

The layout is that of LLaVA in transformers (a CLIP tower and a LLaMA, both frozen in training), with what the authors
train under their own names: `adapter_proj`, `adapter_proj_cls`, `adapter_emb1`, `adapter_emb2`, and the tower's
adapters (`backbone.visual.transformer.resblocks.N.adapter_mlp`, or beside the tower's feed-forwards). The keys of the
config are their options: `adapter_dim`, `hidden_proj`, `alpha`, `beta`, `drop_ratio`, `down_sample_num`.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from bundle.layouts.adem import AdemPrompt
from export.config import Raw, require
from export.connectors.multiscale import Multiscale
from export.decoders.llama_adem import MEMORY_ROWS
from export.family import Family
from export.found_processor import FoundProcessor
from export.models.llava import Llava
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.adapted_clip import AdaptedClipTower

_LIKE_LLAVA = "model.vision_tower"
_TEMPLATE = (
    "{{ bos_token }}{% set shown = namespace(any=false) %}{% for message in messages %}"
    "{% if message.content is not string %}{% for part in message.content %}{% if part.type == 'image' %}"
    "{% set shown.any = true %}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "Image: {% if shown.any %}<image>{% else %}N/A{% endif %}{% for message in messages %}"
    "{% set parts = message.content %}{% set text = parts if parts is string else parts | "
    "selectattr('type', 'equalto', 'text') | map(attribute='text') | join %}"
    "{% if message.role == 'assistant' %}{{ ' ' + text + '\n' }}{% else %}{{ 'Instruction: ' + text + '\n' }}Response:"
    "{% endif %}{% endfor %}"
)
"""What the authors' demonstration writes, which knows one exchange; later ones follow on lines of their own."""


class _Vision(Module):
    def __init__(self, tower: AdaptedClipTower, scales: Multiscale) -> None:
        super().__init__("")
        self.tower, self.scales = tower, scales

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.scales(op, self.tower(op, pixel_values))


class LlavaADEM(Llava):
    """`model_type` llava_adem."""

    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^module\.", ""),
        (r"^backbone\.visual\.transformer\.resblocks\.(\d+)\.", r"model.vision_tower.encoder.layers.\1."),
        *Llava.renames,
    )
    unused: ClassVar[tuple[str, ...]] = Family.unused
    tells_tower = False

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        missing = [key for key in ("adapter_dim", "hidden_proj", "down_sample_num") if key not in config]
        if missing:
            raise UnsupportedConfigError(
                f"config.json lacks {', '.join(missing)}, which ADEM-VL's adapters are built by"
            )
        require(config, [("no_cls", False), ("vision_feature_select_strategy", "default"), ("mm_projector_type", None)])
        if not self._is_clip or len(self._layers) != 1:
            raise UnsupportedConfigError(
                f"vision_config.model_type {config['vision_config'].get('model_type')!r}, vision_feature_layer "
                f"{config.get('vision_feature_layer')!r}: ADEM-VL reads one layer of a CLIP tower"
            )
        self._sides = self._read_scales()

    def _read_scales(self) -> tuple[int, ...]:
        """Return how many rows a side each scale has."""
        stated, grid = self.config["down_sample_num"], self._vision.grid
        sides = tuple(round(float(number) ** 0.5) for number in stated)
        if not sides or any(side**2 != number for side, number in zip(sides, stated, strict=True)) or max(sides) > grid:
            raise UnsupportedConfigError(
                f"down_sample_num {stated!r}: wanted are squares of 1 to {grid}; an image has {grid} x {grid} patches"
            )
        return sides

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, and how an image is fused."""
        own = super().text_config
        if (kind := own.get("model_type", "llama")) != "llama":
            raise UnsupportedConfigError(f"text_config.model_type {kind!r}: ADEM-VL is built on llama alone")
        given = {key: self.config[key] for key in ("alpha", "drop_ratio") if key in self.config}
        return {**own, "model_type": "llama_adem", MEMORY_ROWS: self.rows_per_tile - 1, **given}

    @property
    def tokens_per_tile(self) -> None:  # type: ignore[override]
        """None: features but one take no place in a prompt."""
        return

    @property
    def rows_per_tile(self) -> int:
        """The class token's row, and those of every scale."""
        return 1 + sum(side**2 for side in self._sides)

    def vision(self, dialect: Dialect) -> Module:
        """Return the tower with its adapters, and the rows of every scale."""
        tower = AdaptedClipTower(
            self._vision,
            dialect,
            _LIKE_LLAVA,
            num_layers=self._layers[0],
            adapter_size=int(self.config["adapter_dim"]),
        )
        sizes = self._vision.tower.hidden_size, int(self.config["hidden_proj"]), self.decoder.config.hidden_size
        return _Vision(tower, Multiscale(self._vision.grid, self._sides, sizes, float(self.config.get("beta", 0.01))))

    def image_prompt(self, found: FoundProcessor) -> AdemPrompt:
        """Return one token for an image.

        Raises:
            UnsupportedConfigError: The token is not in the vocabulary, or has another id than the config says.
        """
        token = found.token("image_token", "<image>")
        return AdemPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=1,
            memory_rows=self.rows_per_tile - 1,
        )

    def default_template(self, found: FoundProcessor) -> str:
        """Return prompts as the authors' demonstration writes them."""
        return _TEMPLATE
