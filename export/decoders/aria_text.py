"""Aria's decoder (arXiv 2410.05993, section 2.1): a Llama whose feed-forwards are small experts and shared ones."""

from __future__ import annotations

from dataclasses import replace

from export.config import ExpertsConfig, Raw, read_sizes, require
from export.decoders import llama
from export.decoders.llama_mote import LlamaMote

_DEFAULTS: Raw = {
    **llama.DEFAULTS,
    "intermediate_size": 4096,
    "moe_num_experts": 8,
    "moe_topk": 2,
    "moe_num_shared_experts": 2,
}


class AriaText(LlamaMote):
    """`model_type` aria_text; the shared experts are one feed-forward of their widths together."""

    @classmethod
    def read(cls, raw: Raw) -> AriaText:
        """Return the decoder that a text config describes."""
        merged = {**_DEFAULTS, **raw}
        require(merged, [("hidden_act", "silu"), ("mlp_bias", False)])
        sizes = read_sizes(merged, qkv_bias=bool(merged.get("attention_bias", False)))
        width = sizes.intermediate_size
        experts = ExpertsConfig(
            num=int(merged["moe_num_experts"]),
            width=width,
            is_ternary=False,
            per_token=int(merged["moe_topk"]),
            is_normalised=True,
            is_stacked=True,
        )
        return cls(replace(sizes, intermediate_size=width * int(merged["moe_num_shared_experts"]), experts=experts))
