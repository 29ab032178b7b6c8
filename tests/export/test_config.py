"""Configs read as transformers reads them: defaults, spellings, rotary scaling."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from bundle.errors import UnsupportedConfigError
from export.config import VisionConfig
from export.decoders.table import load_decoder
from export.models import clip as clip_model
from export.models import siglip as siglip_model
from export.rope import RopeConfig
from export.towers import clip, idefics3, siglip

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 2048,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.5,
}


@pytest.fixture(scope="module", autouse=True)
def _transformers() -> None:
    """Import both here, so that collecting takes neither."""
    global torch, transformers
    import torch
    import transformers


@pytest.mark.parametrize(
    ("defaults", "reference"),
    [
        (clip.VISION_DEFAULTS, "CLIPVisionConfig"),
        (clip_model.TEXT_DEFAULTS, "CLIPTextConfig"),
        (siglip.VISION_DEFAULTS, "SiglipVisionConfig"),
        (siglip_model.TEXT_DEFAULTS, "SiglipTextConfig"),
        (idefics3.VISION_DEFAULTS, "Idefics3VisionConfig"),
    ],
)
def test_keys_that_a_tower_leaves_out_have_transformers_defaults(defaults: dict[str, Any], reference: str) -> None:
    config = getattr(transformers, reference)()
    assert defaults == {key: getattr(config, key) for key in defaults}


DECODERS = [
    ("gemma", "GemmaConfig"),
    ("llama", "LlamaConfig"),
    ("phi", "PhiConfig"),
    ("qwen2", "Qwen2Config"),
    ("qwen3", "Qwen3Config"),
    ("stablelm", "StableLmConfig"),
]


@pytest.mark.parametrize(("kind", "reference"), DECODERS)
def test_keys_that_a_decoder_leaves_out_have_transformers_defaults(kind: str, reference: str) -> None:
    expected, found = getattr(transformers, reference)(), load_decoder({"model_type": kind}).config
    assert found.vocab_size == expected.vocab_size
    assert found.hidden_size == expected.hidden_size
    assert found.intermediate_size == expected.intermediate_size
    assert found.num_layers == expected.num_hidden_layers
    assert (found.num_heads, found.num_kv_heads) == (expected.num_attention_heads, expected.num_key_value_heads)
    heads = expected.num_attention_heads
    assert found.head_size == (getattr(expected, "head_dim", None) or expected.hidden_size // heads)
    assert found.max_positions == expected.max_position_embeddings
    eps = expected.layer_norm_eps if hasattr(expected, "layer_norm_eps") else expected.rms_norm_eps
    assert (found.hidden_act, found.rms_norm_eps) == (expected.hidden_act, eps)
    assert found.rope.theta == expected.rope_parameters["rope_theta"]
    assert found.rope.part == expected.rope_parameters.get("partial_rotary_factor", 1.0)


def test_scale_factor_default_is_transformers() -> None:
    assert transformers.Idefics3Config().scale_factor == 2


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default", "rope_theta": 1234.0},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        LLAMA3,
        YARN,
        {**YARN, "truncate": False, "mscale": None, "beta_fast": 20.0, "beta_slow": 2.0},
        {**YARN, "attention_factor": 0.7, "original_max_position_embeddings": 128},
        {name: YARN[name] for name in ("rope_type", "rope_theta", "factor")},
    ],
    ids=["default", "linear", "dynamic", "llama3", "yarn", "yarn-not-rounded", "yarn-attention", "yarn-bare"],
)
def test_inverse_frequencies_equal_transformers(parameters: dict[str, Any]) -> None:
    config = transformers.LlamaConfig(rope_parameters=parameters, max_position_embeddings=16_384, head_dim=64)
    rope = RopeConfig.read({"rope_parameters": parameters, "max_position_embeddings": 16_384})
    found = rope.inverse_frequencies(64)
    if parameters["rope_type"] == "default":
        expected = 1.0 / (1234.0 ** (torch.arange(0, 64, 2).float() / 64))
    else:
        expected, scale = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[parameters["rope_type"]](
            config, torch.device("cpu")
        )
        assert rope.scale == pytest.approx(scale)
    assert found.dtype == np.float32
    # a power rounds differently by library
    assert_allclose(found, expected.numpy(), rtol=1e-6)


def test_what_stands_still_is_not_scaled() -> None:
    rope = RopeConfig.read({"rope_parameters": {**YARN, "attention_factor": 0.7}}, default_part=0.5)
    assert_allclose(rope.scales(16), [0.7] * 4 + [1.0] * 4)
    whole = RopeConfig.read({"rope_parameters": {**YARN, "attention_factor": 0.7}})
    assert whole.scales(16) == pytest.approx(0.7)


def test_older_rope_spelling_reads_as_the_newer() -> None:
    older = {"rope_theta": 500_000.0, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}}
    oldest = {"rope_scaling": {"type": "linear", "factor": 2.0}}
    newer = {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}}
    assert RopeConfig.read(older) == RopeConfig.read({"rope_parameters": LLAMA3})
    assert RopeConfig.read(oldest) == RopeConfig.read(newer)


def test_older_rope_spelling_beside_the_newer_counts_as_in_transformers() -> None:
    both = {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "rope_scaling": {"type": "linear", "factor": 2.0},
    }
    expected = transformers.LlamaConfig(**copy.deepcopy(both)).rope_parameters
    found = RopeConfig.read(both)
    assert (found.kind, found.theta, found.factor) == ("linear", expected["rope_theta"], expected["factor"])


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"rope_type": "default", "rope_theta": None}, "rope_theta None"),
        ({"rope_type": "default", "rope_theta": 0}, "rope_theta 0"),
        ({"rope_type": "longrope", "factor": 2.0}, "longrope"),
        ({"rope_type": "yarn", "factor": 2.0}, "original_max_position_embeddings"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64}, "wants factor"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention"),
    ],
)
def test_rope_that_is_not_built_is_named(parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=named):
        RopeConfig.read({"rope_parameters": parameters})


@pytest.mark.parametrize(("part", "named"), [(0.2, "3 of the 16"), (0.05, "0 of the 16"), (1.5, "24 of the 16")])
def test_part_of_a_head_that_is_no_pairs_is_refused(part: float, named: str) -> None:
    with pytest.raises(UnsupportedConfigError, match=named):
        RopeConfig.read({"partial_rotary_factor": part}, default_part=0.5).turned_size(16)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_qwen_with_sliding_layers_is_refused(kind: str) -> None:
    with pytest.raises(UnsupportedConfigError, match="sliding"):
        load_decoder({"model_type": kind, "layer_types": ["full_attention", "sliding_attention"]})


@pytest.mark.parametrize(
    ("window", "found"), [({}, 4096), ({"sliding_window": 8191}, 8191), ({"sliding_window": 8192}, None)]
)
def test_mistral_has_a_window_where_that_is_shorter_than_its_context(window: dict[str, int], found: int | None) -> None:
    """A window of 4096 is transformers' default."""
    decoder = load_decoder({"model_type": "mistral", "max_position_embeddings": 8192, **window})
    assert decoder.window_tokens == found


def test_mistral_without_a_window_is_read_by_transformers_defaults() -> None:
    expected, found = transformers.MistralConfig(), load_decoder({"model_type": "mistral", "sliding_window": None})
    assert expected.sliding_window == 4096
    assert found.config == dataclasses.replace(
        load_decoder({"model_type": "llama"}).config,
        intermediate_size=expected.intermediate_size,
        num_kv_heads=expected.num_key_value_heads,
        max_positions=expected.max_position_embeddings,
        rms_norm_eps=expected.rms_norm_eps,
    )


def test_gemma_that_sees_what_comes_is_refused() -> None:
    with pytest.raises(UnsupportedConfigError, match="use_bidirectional_attention"):
        load_decoder({"model_type": "gemma", "use_bidirectional_attention": True})


def test_old_clip_configs_read_as_transformers_reads_them() -> None:
    raw = {
        "text_config": {"hidden_size": 64, "num_hidden_layers": 7, "eos_token_id": 2},
        "text_config_dict": {"hidden_size": 128},
        "vision_config": {"hidden_size": 96},
    }
    expected = transformers.CLIPConfig(**raw)
    found = clip_model.Clip(raw)
    assert found._text["hidden_size"] == expected.text_config.hidden_size
    assert found._text["num_hidden_layers"] == expected.text_config.num_hidden_layers
    assert found._text["eos_token_id"] == expected.text_config.eos_token_id
    assert found._vision.tower.hidden_size == expected.vision_config.hidden_size


def test_square_sizes_may_be_written_as_pairs() -> None:
    config = VisionConfig.read({"image_size": [64, 64], "patch_size": [8, 8]}, clip.VISION_DEFAULTS)
    assert config.grid == 8
