"""`model_type` deepseek_vl_v2, which the authors' configs of several models have: which of them a config is of."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec, PaddedWithTiles
from export.config import Raw, require, sub_config
from export.found_processor import FoundProcessor
from export.image_processors.deepseek_ocr2 import GREY
from export.image_processors.image_processor import HALF
from export.models.authors_towers import tower_of, towers_of, with_language
from export.models.deepseek_ocr import DeepSeekOcr
from export.models.deepseek_ocr2 import TEMPLATE, DeepSeekOcr2
from export.models.deepseek_vl2 import DeepSeekVL2
from export.vision_language import VisionLanguage

_QUERY_READER: Raw = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
}
"""Of the Qwen2 that the authors' code makes whatever the config says."""
_WHOLE_PX = 1024


def open_authors_layout(config: Raw) -> VisionLanguage:
    """Return the family of a config, by the class that it names; DeepSeek-VL2's names none.

    Raises:
        UnsupportedConfigError: Another one, or a setting that is not built.
    """
    name, *others = config.get("architectures") or (_UNNAMED,)
    if name not in _CLASSES or others:
        raise UnsupportedConfigError(
            f"deepseek_vl_v2 of {', '.join([name, *others])}: built are {', '.join(_CLASSES)}, and deepseek_vl of "
            "transformers"
        )
    return _CLASSES[name](config)


class _OfAuthors:
    """What the authors' code has fixed: images, and prompts that begin with the tokenizer's first token."""

    config: Raw
    tile_px: int
    most_tiles: int

    def own_image_spec(self) -> ImageSpec:
        """Return tiles as the authors' `infer` cuts them by default; the processor's files say nothing of tiles."""
        whole, *others = self.config.get("candidate_resolutions") or [[_WHOLE_PX, _WHOLE_PX]]
        if others or len(set(whole)) != 1:
            raise UnsupportedConfigError(
                f"candidate_resolutions {[whole, *others]}: images are built as one large square and tiles"
            )
        geometry = PaddedWithTiles(
            whole_px=int(whole[0]),
            tile_px=self.tile_px,
            least_tiles=2,
            most_tiles=self.most_tiles,
            colour=GREY,
            centres_evenly=True,
        )
        return ImageSpec(geometry=geometry, resample="bicubic", rescale_factor=1 / 255, mean=HALF, std=HALF)

    def own_template(self) -> str:
        """Return the first token, then an image, a line end and what is asked for."""
        return "{{ bos_token }}" + TEMPLATE


def _refuse(config: Raw) -> None:
    require(config, [("tile_tag", "2D"), ("global_view_pos", "head"), ("quantization_config", None)])
    require(sub_config(config, "projector_config"), [("projector_type", "linear")])


class AuthorsDeepSeekOcr(_OfAuthors, DeepSeekOcr):
    """DeepSeek-OCR as its authors publish it: `DeepseekOCRForCausalLM`."""

    tile_px, most_tiles = 640, 9

    def __init__(self, config: Raw) -> None:
        _refuse(config)
        vision = towers_of(sub_config(config, "vision_config"))
        super().__init__({**with_language(config, "deepseek_v2"), "vision_config": vision})


class AuthorsDeepSeekOcr2(_OfAuthors, DeepSeekOcr2):
    """DeepSeek-OCR 2 as its authors publish it: `DeepseekOCR2ForCausalLM`."""

    tile_px, most_tiles = 768, 6

    def __init__(self, config: Raw) -> None:
        _refuse(config)
        stated = sub_config(config, "vision_config")
        reader = dict(tower_of(stated, "qwen2-0-5b"))
        if "dim" in reader:
            reader["hidden_size"] = reader.pop("dim")
        vision = {"sam_config": tower_of(stated, "sam_vit_b"), "encoder_config": {**_QUERY_READER, **reader}}
        super().__init__({**with_language(config, "deepseek_v2"), "vision_config": vision})

    def counted(self, found: FoundProcessor, side_px: int) -> int:
        """Return how many queries look at a square; the processor's files are of another class, and count none."""
        return self.tower_config.num_queries(side_px)


_UNNAMED = "DeepseekVLV2ForCausalLM"
_CLASSES: Mapping[str, type[VisionLanguage]] = {
    _UNNAMED: DeepSeekVL2,
    "DeepseekOCRForCausalLM": AuthorsDeepSeekOcr,
    "DeepseekOCR2ForCausalLM": AuthorsDeepSeekOcr2,
}
"""Families by `architectures` of a config."""
