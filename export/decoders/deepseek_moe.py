"""The decoder of the DeepSeek-OCR models (DeepSeekMoE, arXiv 2401.06066): a Llama with many small experts.

The first layers have one feed-forward; the others have experts that all tokens meet, and some of many by their shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Self

from bundle.errors import UnsupportedConfigError
from export.config import DecoderConfig, ExpertsConfig, Raw, read_sizes, require
from export.decoders.decoder import Decoder
from export.nn.attention import CachedAttention
from export.nn.decoder_layer import DecoderLayer
from export.nn.dialect import Dialect
from export.nn.mlp import GatedMLP
from export.nn.module import Module
from export.nn.moe import MIXTURES

DEFAULTS: Raw = {
    "vocab_size": 102_400,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "moe_intermediate_size": 1407,
    "routed_scaling_factor": 1.0,
    "topk_method": "greedy",
}
_KINDS = {"sparse": True, "dense": False}
_LATENT = ("q_lora_rank", "kv_lora_rank")


class DeepSeekMoe(Decoder):
    """`model_type` deepseek_ocr2_text, and deepseek_v2 without latent attention.

    Args:
        config: Sizes; of the feed-forward, those of layers without experts.
        shared_width: Of the experts that all tokens meet, which are one feed-forward of their widths together.
        has_experts: Of each layer.
    """

    def __init__(self, config: DecoderConfig, shared_width: int, has_experts: tuple[bool, ...]) -> None:
        super().__init__(config)
        self._shared_width = shared_width
        self._has_experts = has_experts

    @classmethod
    def read(cls, raw: Raw) -> Self:
        """Return the decoder that a text config describes."""
        full = {**DEFAULTS, **{key: value for key, value in raw.items() if value is not None}}
        _refuse(full)
        # transformers reads no other size of a head
        sizes = read_sizes({**full, "head_dim": None}, qkv_bias=bool(full.get("attention_bias", False)))
        kinds = _layers_with_experts(full, sizes.num_layers)
        return cls(replace(sizes, experts=_experts(full) if any(kinds) else None), _shared_width(full), kinds)

    def layer(self, dialect: Dialect, number: int) -> Module:
        """Return attention, and a feed-forward or a mixture."""
        config, experts = self.config, self.config.experts
        attention = CachedAttention(config, dialect, number)
        if experts is None or not self._has_experts[number]:
            return DecoderLayer(config, dialect, attention, GatedMLP(config))
        shared = replace(config, intermediate_size=self._shared_width)
        return DecoderLayer(config, dialect, attention, MIXTURES[dialect.name](shared, experts))


def _refuse(full: Raw) -> None:
    """Check that attention has keys and values of its own, and that a router chooses the most probable of all experts.

    Raises:
        UnsupportedConfigError: It does not.
    """
    latent = [f"{key} {full[key]}" for key in _LATENT if full.get(key)]
    if full.get("use_mla", full["model_type"] == "deepseek_v2") or latent:
        raise UnsupportedConfigError(
            f"text_config: attention through latent vectors (use_mla, {', '.join(latent) or 'true'}) is not built; "
            "built are DeepSeek's decoders with keys and values of their own, use_mla false"
        )
    wanted = [("hidden_act", "silu"), ("mlp_bias", False), ("norm_topk_prob", False), ("moe_layer_freq", 1)]
    require(full, [*wanted, ("scoring_func", "softmax")])
    method, groups = full["topk_method"], full.get("n_group") or 1
    if method != "greedy" and (method != "group_limited_greedy" or full.get("topk_group", 1) < groups):
        raise UnsupportedConfigError(
            f"text_config.topk_method {method!r} among {full.get('topk_group')} of {groups} groups of experts is not "
            "built; greedy is, or all groups"
        )


def _layers_with_experts(full: Raw, num_layers: int) -> tuple[bool, ...]:
    """Return of each layer whether it has experts, which the config says for each or by the number of the first.

    Raises:
        UnsupportedConfigError: A kind that is not built, or of another number of layers.
    """
    stated = full.get("mlp_layer_types")
    if stated is None:
        first = int(full.get("first_k_dense_replace", 1))
        return tuple(number >= first for number in range(num_layers))
    if len(stated) != num_layers or not set(stated) <= set(_KINDS):
        raise UnsupportedConfigError(
            f"text_config.mlp_layer_types {stated!r}: wanted is one of {', '.join(_KINDS)} for each of {num_layers} "
            "layers"
        )
    return tuple(_KINDS[kind] for kind in stated)


def _experts(full: Mapping[str, int]) -> ExpertsConfig:
    if "num_experts_per_tok" not in full:
        raise UnsupportedConfigError("text_config lacks num_experts_per_tok, how many experts a token meets")
    return ExpertsConfig(
        num=int(full["n_routed_experts"]),
        width=int(full["moe_intermediate_size"]),
        is_ternary=False,
        per_token=int(full["num_experts_per_tok"]),
        scale=float(full["routed_scaling_factor"]),
    )


def _shared_width(full: Raw) -> int:
    if not full["n_shared_experts"]:
        raise UnsupportedConfigError("text_config.n_shared_experts: layers without a shared expert are not built")
    return int(full["moe_intermediate_size"]) * int(full["n_shared_experts"])
