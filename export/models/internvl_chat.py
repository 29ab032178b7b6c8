"""InternVL 2, 2.5, 3 and 3.5 as their authors publish them: `model_type` internvl_chat."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

from bundle.errors import UnsupportedConfigError
from export.config import Raw, VisionConfig, require, sub_config
from export.decoders.internlm2_ve import as_llama
from export.models.internvl_authors import RENAMES, AuthorsLayout
from export.models.mono_internvl import DECODER, PATCHES, MonoInternVL
from export.nn.chain import Chain
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.quantized.method import QuantizationMethod
from export.quantized.packed_projections import PackedProjections, by_shared_heads, one_after_another
from export.towers.internvl import AUTHORS_NAMES, QUERY_EPS, InternVLTower, InternVLTowerConfig

_TOWER = "intern_vit_6b"
"""`vision_config.model_type` of towers of every size."""
_INTERNLM2 = "InternLM2ForCausalLM"
_DECODERS: Mapping[str, str] = {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3", _INTERNLM2: "llama"}


def open_authors_layout(config: Raw) -> AuthorsLayout:
    """Return the family of a config in the authors' layout: with a tower, or Mono-InternVL without one.

    Raises:
        UnsupportedConfigError: Another decoder or tower, or a setting that is not built.
    """
    decoders = sub_config(config, "llm_config").get("architectures") or [""]
    found = str(decoders[0]), sub_config(config, "vision_config").get("model_type")
    if found == (DECODER, PATCHES):
        return MonoInternVL(config)
    if found[0] in _DECODERS and found[1] == _TOWER:
        return InternVLChat(config)
    raise UnsupportedConfigError(
        f"internvl_chat with {found[0]} and {found[1]}: built are {', '.join(_DECODERS)} with {_TOWER}, and {DECODER} "
        f"with {PATCHES}; take a checkpoint in transformers' layout (-hf) of others"
    )


class InternVLChat(AuthorsLayout):
    """InternViT before a Qwen2, a Qwen3 or an InternLM2; what `internvl` is under other names.

    InternLM2 is a Llama whose queries, keys and values are in one matrix.
    """

    renames: ClassVar[tuple[tuple[str, str], ...]] = (*RENAMES, *AUTHORS_NAMES)

    @property
    def _is_internlm2(self) -> bool:
        return bool(sub_config(self.config, "llm_config")["architectures"][0] == _INTERNLM2)

    @property
    def writes_first_token(self) -> bool:
        """InternLM2's tokenizer does; Qwen's has no such token."""
        return self._is_internlm2

    @property
    def text_config(self) -> Raw:
        """The decoder's part of the config, in the words of a decoder that is built."""
        stated = sub_config(self.config, "llm_config")
        if self._is_internlm2:
            return {**as_llama(stated), "model_type": "llama"}
        return {**stated, "model_type": _DECODERS[stated["architectures"][0]]}

    @cached_property
    def _tower(self) -> InternVLTowerConfig:
        raw = sub_config(self.config, "vision_config")
        norms = bool(raw.get("qk_normalization", False))
        if norms:
            require(raw, [("layer_norm_eps", QUERY_EPS)])
        words = {"attention_bias": raw.get("qkv_bias", False), "use_qk_norm": norms, "use_mean_pooling": True}
        return InternVLTowerConfig.read({**raw, **words})

    @property
    def vision_sizes(self) -> VisionConfig:
        """Sizes of the tower."""
        return self._tower.vision

    def stored_weights(self) -> QuantizationMethod:
        """Return how weights are stored: the tower's projections, and InternLM2's, in one matrix each."""
        width = self.vision_sizes.tower.hidden_size
        packed = {"attention.qkv": one_after_another(q_proj=width, k_proj=width, v_proj=width)}
        return PackedProjections(
            packed | ({"wqkv": by_shared_heads(self.decoder.config)} if self._is_internlm2 else {})
        )

    def vision(self, dialect: Dialect) -> Module:
        """Return tower, shuffle and projection."""
        return Chain(InternVLTower(self._tower, dialect, "model.vision_tower"), self.projector)
