"""Settings of a checkpoint that are not built, or that contradict one another, are refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import UnsupportedConfigError
from export.exporter import export_checkpoint

CONFIG, PROCESSOR = "config.json", "processor_config.json"


def _moe(**changes: Any) -> dict[str, Any]:
    stated = {"moe_enable": True, "top_k_experts": -1, "moe_layers_idx": [0, 1], "num_experts": [4, 3]}
    return {"text_config": {"moe": {**stated, **changes}}}


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("aria", CONFIG, {"text_config": {"moe_topk": 10}}, "10 experts are chosen for each token, of 9"),
    ("aria", CONFIG, {"text_config": {"hidden_act": "gelu"}}, "hidden_act is 'gelu'; only 'silu' is built"),
    ("aria", CONFIG, {"vision_feature_layer": -2}, "vision_feature_layer is -2"),
    ("aria", CONFIG, {"projector_patch_to_query_dict": {"50": 3}}, "images are squares of patches"),
    ("aria", PROCESSOR, {"size_conversion": {"980": 6}}, "size_conversion .*980: 6.*5 queries look at"),
    ("deepseek_vl", PROCESSOR, {"num_image_tokens": 576}, "num_image_tokens 576.*make 16 tokens"),
    ("deepseek_vl", CONFIG, {"vision_config": {"model_type": "clip_vision_model"}}, "'clip_vision_model'.*siglip"),
    ("deepseek_vl_hybrid", CONFIG, {"high_res_vision_config": {"global_attn_indexes": []}}, "global_attn_indexes"),
    ("deepseek_vl_hybrid", PROCESSOR, {"image_processor": {"high_res_size": {"height": 64, "width": 64}}}, "48 and 32"),
    ("fast_vlm", CONFIG, {"vision_config": {"architecture": "fastvit_t8"}}, "'fastvit_t8'.*fastvit_mci3"),
    ("fast_vlm", CONFIG, {"vision_config": {"model_args": {"layers": [1] * 5}}}, "inference_mode is not true"),
    ("fast_vlm", CONFIG, {"vision_config": {"model_args": {"inference_mode": True, "in_chans": 4}}}, "in_chans"),
    ("fast_vlm", CONFIG, {"image_seq_length": 5}, "image_seq_length 5"),
    ("fast_vlm", CONFIG, {"vision_feature_layer": -2}, "vision_feature_layer is -2"),
    ("fast_vlm", PROCESSOR, {"patch_size": 32}, "patch_size 32.*square of 64"),
    (
        "glm_ocr",
        CONFIG,
        {"vision_config": {"rope_parameters": {"rope_theta": 500.0}}},
        "rope_theta 500.0: built is 10000",
    ),
    ("glm_ocr", CONFIG, {"vision_config": {"out_hidden_size": 44}}, "width 44, the decoder's hidden_size is 40"),
    (
        "glm_ocr",
        PROCESSOR,
        {"image_processor": {"size": {"shortest_edge": 511, "longest_edge": 8192}}},
        "areas of 2 equal frames, multiples of 2",
    ),
    ("idefics2", PROCESSOR, {"image_seq_len": 64}, "image_seq_len is 64; only 5 is built"),
    ("idefics2", CONFIG, {"perceiver_config": {"num_key_value_heads": 4}}, "6 heads .* share 4"),
    ("granite4_vision", CONFIG, {"downsample_rate": "3/8"}, "downsample_rate '3/8': built are n/2n"),
    ("granite4_vision", CONFIG, {"downsample_rate": "3/6"}, "2n dividing the 4 patches"),
    ("granite4_vision", CONFIG, {"spatial_target_layers": [1, 2, 3, 4]}, "each once, 4 of them"),
    ("granite4_vision", CONFIG, {"spatial_target_layers": [1, 2, 4]}, "each once, 4 of them"),
    ("granite4_vision", CONFIG, {"spatial_target_layers": [4, 1, 2, 6]}, "before layer 6 of the decoder"),
    ("granite4_vision", PROCESSOR, {"downsample_rate": "1/2"}, "downsample_rate '1/2', and config.json has '2/4'"),
    (
        "idefics2",
        PROCESSOR,
        {"image_processor": {"size": {"shortest_edge": 6, "longest_edge": 9}}},
        "patch of 7 pixels",
    ),
    (
        "idefics2",
        PROCESSOR,
        {"image_processor": {"size": {"shortest_edge": 20, "longest_edge": 99}}},
        "98 pixels at most",
    ),
    ("janus", PROCESSOR, {"num_image_tokens": 576}, "num_image_tokens 576.*make 16 tokens"),
    ("janus", CONFIG, {"vision_config": {"use_qk_norm": True}}, "use_qk_norm is True"),
    ("janus", CONFIG, {"vision_config": {"attention_bias": False}}, "attention_bias is False"),
    ("janus", CONFIG, {"vision_config": {"projection_dim": 2048}}, "projection_dim 2048, but .* hidden_size is 40"),
    ("lfm3_vl", CONFIG, {"vision_config": {"conv_kernel_size": 4}}, "an odd side of convolutions"),
    ("lfm3_vl", CONFIG, {"vision_config": {"layer_types": ["mamba"] * 4}}, "layer_types .*mamba.*full_attention"),
    ("lfm3_vl", CONFIG, {"vision_config": {"rope_parameters": {"rope_type": "default"}}}, "built is rope_type axial"),
    ("lfm3_vl", CONFIG, {"text_config": {"layer_types": ["conv"] * 5}}, "attention of one at least"),
    ("lfm3_vl", CONFIG, {"text_config": {"sliding_window": None}}, "sliding_window None"),
    (
        "lfm3_vl",
        CONFIG,
        {"text_config": {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}},
        "full_attention .*yarn.*proportional",
    ),
    ("llava_pooled", CONFIG, {"pool_out_size": 9}, "pool_out_size 9: pool_adapter wants 1 to 4"),
    ("llava_pooled", CONFIG, {"vision_feature_select_strategy": "full"}, "means are over patches alone"),
    ("hunyuan_vl", CONFIG, {"vision_config": {"interpolate_mode": "bicubic"}}, "only 'bilinear' is built"),
    ("hunyuan_vl", CONFIG, {"vision_config": {"head_dim": 16}}, "head_dim 16: .* of 12 numbers"),
    (
        "hunyuan_vl",
        CONFIG,
        {"text_config": {"rope_parameters": {"type": "xdrope", "xdrope_section": [4, 4]}}},
        r"mrope_section \[4, 4\]: wanted are 3",
    ),
    ("hunyuan_vl", PROCESSOR, {"cat_extra_token": False}, "cat_extra_token is false"),
    ("hunyuan_vl", PROCESSOR, {"image_processor": {"merge_size": 1}}, "squares of 12 pixels"),
    ("lighton_ocr", PROCESSOR, {"image_processor": {"patch_size": 5}}, "squares of 6 or 12 pixels"),
    ("mistral3", CONFIG, {"vision_feature_layer": [-1, -2]}, "one hidden state is read, of -3 to 2"),
    ("mistral3", CONFIG, {"vision_config": {"head_dim": 16}}, "heads of 16; heads that make up the width"),
    ("mistral3", CONFIG, {"vision_config": {"model_type": "clip_vision_model"}}, "only 'pixtral' is built"),
    ("mistral3", CONFIG, {"vision_config": {"rope_parameters": {"rope_type": "yarn"}}}, "turns by 'axial' alone"),
    ("mistral3", CONFIG, {"vision_config": {"patch_size": [6, 8]}}, r"patch_size \[6, 8\]"),
    ("mistral3", CONFIG, {"text_config": {"rope_parameters": {"rope_type": "default"}}}, "llama_4_scaling_beta"),
    ("mistral3", PROCESSOR, {"spatial_merge_size": 1}, "tokens of 6 pixels a side, the model's are of 12"),
    ("mistral3", PROCESSOR, {"image_break_token": "[ROW]"}, r"the token that ends a row of an image '\[ROW\]'"),
    ("mistral3", PROCESSOR, {"image_processor": {"size": 68}}, "size = 68"),
    ("mm1", CONFIG, {"projector_config": {"num_query_tokens": 8}}, "num_query_tokens 8: wanted is a square, of 1 to 4"),
    ("mm1", CONFIG, {"projector_config": {"num_query_tokens": 25}}, "num_query_tokens 25"),
    ("mm1", CONFIG, {"projector_config": {"mlp_depth": 0}}, "depth 2 and mlp_depth 0"),
    ("mm1", CONFIG, {"projector_config": {"num_eos_tokens": 1}}, "num_eos_tokens"),
    ("mm1", CONFIG, {"projector_config": {"projector_type": "d-abs"}}, "d-abs"),
    ("mm1", CONFIG, {"vision_feature_select_strategy": "full"}, "the connector convolves patches alone"),
    ("perception_lm", CONFIG, {"vision_config": {"architecture": "vit_base"}}, "'vit_base'.*vit_pe_core"),
    ("perception_lm", CONFIG, {"vision_config": {"model_args": {"swiglu_mlp": True}}}, "holds swiglu_mlp"),
    ("perception_lm", CONFIG, {"vision_config": {"model_args": {"img_size": [32, 40]}}}, "only squares"),
    ("perception_lm", CONFIG, {"vision_config": {"model_args": {"global_pool": "map"}}}, "global_pool"),
    ("perception_lm", CONFIG, {"vision_use_cls_token": False}, "vision_use_cls_token is False"),
    ("perception_lm", CONFIG, {"projector_pooling_ratio": 3}, "projector_pooling_ratio 3"),
    ("perception_lm", PROCESSOR, {"pooling_ratio": 1}, "pooling_ratio 1, but the model's is 2"),
    ("qianfan_ocr", CONFIG, {"text_config": {"quantization_config": {"bits": 4}}}, "stands in text_config"),
    ("qianfan_ocr", PROCESSOR, {"image_placeholder_token": "<picture>"}, "'<picture>'; built is '<image>'"),
    ("qianfan_ocr", PROCESSOR, {"image_seq_length": 256}, "image_seq_length 256.*make 4 tokens"),
    ("qianfan_ocr", CONFIG, {"vision_feature_layer": -2}, "vision_feature_layer is -2"),
    (
        "internvl_chat",
        CONFIG,
        {"llm_config": {"architectures": ["Qwen2ForCausalLM"]}},
        "Qwen2ForCausalLM and intern_vit_patch: built are Qwen2ForCausalLM, .* with intern_vit_6b, and InternLM2VE",
    ),
    ("internvl_chat", CONFIG, {"llm_config": {"quantization_config": {"bits": 4}}}, "stands in llm_config"),
    ("internvl_chat", CONFIG, {"ps_version": "v1"}, "ps_version is 'v1'; only 'v2'"),
    ("internvl_chat", CONFIG, {"select_layer": -4}, "select_layer is -4"),
    ("internvl_chat", CONFIG, {"template": "phi3-chat"}, "template is 'phi3-chat'"),
    ("internvl_chat", CONFIG, {"force_image_size": 48}, "force_image_size is 48; only 24"),
    ("internvl_chat", CONFIG, {"downsample_ratio": 0.2}, "n dividing the 8 patches"),
    (
        "internvl_vit",
        CONFIG,
        {"template": "phi3-chat"},
        "template is 'phi3-chat'; the conversations built are internlm2",
    ),
    (
        "internvl_vit",
        CONFIG,
        {"llm_config": {"architectures": ["Phi3ForCausalLM"]}},
        "Phi3ForCausalLM and intern_vit_6b",
    ),
    ("internvl_vit", CONFIG, {"use_llm_lora": 16}, "use_llm_lora is 16"),
    ("internvl_vit", CONFIG, {"vision_config": {"norm_type": "group_norm"}}, "norm_type 'group_norm'"),
    ("llava_stablelm_dynmoe", CONFIG, _moe(top_k_experts=2), "top_k_experts is 2; only -1 is built"),
    ("llava_stablelm_dynmoe", CONFIG, _moe(num_experts=[4]), r"num_experts \[4\] for moe_layers_idx \[0, 1\]"),
    (
        "llava_stablelm_dynmoe",
        CONFIG,
        _moe(moe_layers_idx=[0, 2]),
        r"experts in layers \[0, 2\]; wanted are layers 0 to 1",
    ),
    ("pixtral", CONFIG, {"vision_feature_select_strategy": "default"}, "no class token to drop; built is 'full'"),
    ("pixtral", PROCESSOR, {"patch_size": 4}, "tokens of 4 pixels a side, the model's are of 8"),
    ("video_llama_3", CONFIG, {"text_config": {"model_type": "qwen3"}}, "model_type is 'qwen3'; only 'qwen2'"),
    ("video_llama_3", CONFIG, {"vision_config": {"rope_parameters": {"rope_type": "default"}}}, "only 'axial'"),
    ("video_llama_3", PROCESSOR, {"image_processor": {"patch_size": 14}}, "squares of 8 pixels"),
    ("vipllava", CONFIG, {"vision_config": {"model_type": "siglip_vision_model"}}, "only 'clip_vision_model'"),
    ("vipllava", CONFIG, {"vision_feature_layers": [-2, 9]}, "hidden states -5 to 4"),
    ("wepoints", CONFIG, {"llm_config": {"model_type": "phi"}}, "'phi': the decoders built are qwen2 and qwen3"),
    ("llava_linear", CONFIG, {"mm_projector_type": "mlp3x_gelu"}, "'mlp3x_gelu'.*mlp2x_gelu, linear and"),
    ("llava_onevision", CONFIG, {"vision_aspect_ratio": "anyres"}, "vision_aspect_ratio is 'anyres' in config.json"),
    ("llava_onevision", PROCESSOR, {"vision_aspect_ratio": "anyres_max_3"}, "'anyres_max_3' in the processor"),
    ("llava_onevision", PROCESSOR, {"num_image_tokens": 729}, "num_image_tokens 729.*make 16 tokens"),
]


@pytest.mark.parametrize(("family", "file", "told", "named"), REFUSED)
def test_a_setting_that_cannot_be_kept_is_refused(
    family: str, file: str, told: dict[str, Any], named: str, sample_of: Any, tmp_path: Path
) -> None:
    checkpoint = sample_of(family, 0).checkpoint
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | {key: _changed(content.get(key), told[key]) for key in told}))
    with pytest.raises(UnsupportedConfigError, match=named):
        export_checkpoint(folder, tmp_path / "bundle", name="tiny")


def _changed(value: Any, told: Any) -> Any:
    return {**value, **told} if isinstance(value, dict) and isinstance(told, dict) else told
