"""HunyuanOCR (arXiv 2511.19575): a SigLIP tower over images of any shape, rows that end, positions on four axes."""

from __future__ import annotations

from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from bundle.layouts.hunyuan_vl import HunYuanVLPrompt
from bundle.layouts.prompt import ImagePrompt
from export.config import Raw, sub_config
from export.connectors.ended_rows import EndedRows
from export.decoders.hunyuan_vl_text import HunYuanVLText
from export.family import Family
from export.found_processor import FoundProcessor
from export.models.qwen2_vl import AnyShape
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.towers.hunyuan_vl import HunYuanTower, HunYuanTowerConfig

_TOWER = "model.vision_tower"
_BICUBIC = 3


class HunYuanVL(AnyShape):
    """`model_type` hunyuan_vl."""

    text_type = "hunyuan_vl_text"
    image_processor = "HunYuanVLImageProcessor"
    image_token = "<｜hy_place▁holder▁no▁102｜>"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^vit\.", "model.vit."),
        (r"^model\.vit\.", f"{_TOWER}."),
        (r"^model\.(?!language_model\.|vision_tower\.)", "model.language_model."),
        (rf"^{_TOWER}\.perceive\.", f"{_TOWER}.patch_merger."),
        (r"\.patch_merger\.proj\.0\.", ".patch_merger.proj_conv."),
        (r"\.patch_merger\.proj\.2\.", ".patch_merger.proj_out."),
        (rf"^{_TOWER}\.layers\.", f"{_TOWER}.encoder.layers."),
        (rf"^({_TOWER}\..*\.self_attn)\.o_proj\.", r"\1.out_proj."),
        (rf"^({_TOWER}\..*)\.input_layernorm\.", r"\1.layer_norm1."),
        (rf"^({_TOWER}\..*)\.post_attention_layernorm\.", r"\1.layer_norm2."),
        (rf"^({_TOWER}\..*\.mlp)\.dense_h_to_4h\.", r"\1.fc1."),
        (rf"^({_TOWER}\..*\.mlp)\.dense_4h_to_h\.", r"\1.fc2."),
    )
    # between images of a kind that no checkpoint of this type has
    unused: ClassVar[tuple[str, ...]] = (*Family.unused, r".*\.patch_merger\.image_sep")

    def __init__(self, config: Raw) -> None:
        super().__init__({"tie_word_embeddings": True, **config})

    @property
    def tower(self) -> HunYuanTowerConfig:
        """Sizes of the tower."""
        return HunYuanTowerConfig.read(sub_config(self.config, "vision_config"))

    @property
    def image_settings(self) -> Raw:
        """Bicubic: the model was trained so, whatever its files say (transformers' processor)."""
        return {"resample": _BICUBIC}

    def vision(self, dialect: Dialect) -> Module:
        """Return tower and connector."""
        tower, decoder = self.tower, self.decoder.config
        layers = tower.layers
        merger = EndedRows(
            (layers.hidden_size, decoder.hidden_size),
            tower.merged,
            layers.hidden_act,
            layers.layer_norm_eps,
            dialect,
            rows=tower.usual_rows // tower.merged**2,
            name=f"{_TOWER}.patch_merger",
        )
        return Chain(HunYuanTower(tower, dialect, _TOWER), merger)

    def image_text(self, prompt: ImagePrompt) -> str:
        """Return the image token."""
        return prompt.image_token

    def image_prompt(self, found: FoundProcessor) -> HunYuanVLPrompt:
        """Return one image token for each square, behind each row, and around all.

        Raises:
            UnsupportedConfigError: The processor writes none around, or a token is not in the vocabulary.
        """
        if not found.settings.get("cat_extra_token", True):
            raise UnsupportedConfigError(
                "processor_config.json: cat_extra_token is false; the tower gives two vectors around an image's rows"
            )
        decoder = self.decoder
        if not isinstance(decoder, HunYuanVLText):
            raise TypeError(f"{type(decoder).__name__} has no sections of positions")
        token, unit = found.token("image_token", self.image_token), self._unit_px
        height, width = found.spec.tile_size_px
        return HunYuanVLPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=(height // unit) * (width // unit + 1) + 2,
            step_px=unit,
            num_axes=len(decoder.sections),
        )
