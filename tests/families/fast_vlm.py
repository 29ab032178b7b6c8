"""Tiny FastVLM checkpoints: FastViTHD's five stages, tied and untied Qwen2."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from checkpoints import (
    CONTROL,
    CONTROL_IDS,
    IMAGE_TOKEN_ID,
    NAMED,
    RESCALING,
    TEMPLATE,
    llava_config,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, norm_shapes

PATCH_PX = 64


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "tied-two-tokens-a-side": _config("fastvit_mci3", [1, 2, 1, 1, 2], [8, 16, 16, 32, 64], 4),
        "untied-three-tokens-a-side": _config(
            "fastvit_mci4", [2, 1, 1, 2, 1], [12, 24, 24, 96, 96], 9, mlp_ratios=[3, 2, 3, 1.5, 2]
        ),
    }


def _config(architecture: str, layers: list[int], widths: list[int], num_tokens: int, **arguments: Any) -> Config:
    is_tied = not arguments
    whole = llava_config("siglip", "qwen2", tie_word_embeddings=is_tied)
    sizes = {"layers": layers, "embed_dims": widths, "mlp_ratios": [4] * 5, **arguments}
    tower = {
        "model_type": "timm_wrapper",
        "architecture": architecture,
        "hidden_size": 2 * widths[-1],
        "model_args": {"inference_mode": True, **sizes},
    }
    return {
        "architectures": ["FastVlmForConditionalGeneration"],
        "model_type": "fast_vlm",
        "image_token_index": IMAGE_TOKEN_ID,
        "image_seq_length": num_tokens,
        "tie_word_embeddings": is_tied,
        "text_config": whole["text_config"] | {"tie_word_embeddings": is_tied},
        "vision_config": tower,
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    side = PATCH_PX * round(config["image_seq_length"] ** 0.5)
    images = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_resize": True,
        "resample": 3,
        "image_mean": [0.0] * 3,
        "image_std": [1.0] * 3,
        **RESCALING,
    }
    save_processor(folder, "LlavaProcessor", images, image_token="<image>", patch_size=PATCH_PX)
    save_byte_tokenizer(folder, CONTROL, **NAMED)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def model(folder: Path) -> Any:
    """Return transformers' model around a FastViTHD written from the papers: timm's wants torchvision."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel, FastVlmConfig, FastVlmForConditionalGeneration

    reference = _reference()
    AutoConfig.register("fastvit_reference", reference.FastViTReferenceConfig, exist_ok=True)
    AutoModel.register(reference.FastViTReferenceConfig, reference.FastViTReference, exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    stated = config.pop("vision_config")
    sizes = stated["model_args"]
    tower = reference.FastViTReferenceConfig(
        hidden_size=stated["hidden_size"],
        layers=sizes["layers"],
        widths=sizes["embed_dims"],
        ratios=sizes["mlp_ratios"],
    )
    found = FastVlmForConditionalGeneration(FastVlmConfig(**{**config, "vision_config": tower}))
    weights = load_file(folder / "model.safetensors")
    if config["tie_word_embeddings"]:
        weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    found.load_state_dict(weights)
    return found.eval()


def _reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fastvit", Path(__file__).parents[1] / "fastvit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _shapes(config: Config) -> Shapes:
    text, sizes = config["text_config"], config["vision_config"]["model_args"]
    shapes = decoder_shapes(text, "model.language_model.")
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    projector, width = "model.multi_modal_projector", config["vision_config"]["hidden_size"]
    shapes |= linear_shapes(f"{projector}.linear_1", text["hidden_size"], width)
    shapes |= linear_shapes(f"{projector}.linear_2", text["hidden_size"], text["hidden_size"])
    return shapes | _tower_shapes(sizes, "model.vision_tower.timm_model.")


def _tower_shapes(sizes: Config, prefix: str) -> Shapes:
    widths, first = sizes["embed_dims"], sizes["embed_dims"][0]
    shapes = _convolution(f"{prefix}stem.0.reparam_conv", first, 3, 3)
    shapes |= _convolution(f"{prefix}stem.1.reparam_conv", first, 1, 3)
    shapes |= _convolution(f"{prefix}stem.2.reparam_conv", first, first, 1)
    for stage, (width, depth) in enumerate(zip(widths, sizes["layers"], strict=True)):
        before = f"{prefix}stages.{stage}."
        if stage:
            shapes |= _convolution(f"{before}downsample.proj.0.reparam_conv", width, 1, 7)
            shapes |= _convolution(f"{before}downsample.proj.1.reparam_conv", width, width, 1)
        if stage >= 3:
            shapes |= _convolution(f"{before}pos_emb.reparam_conv", width, 1, 7)
        inner = int(width * sizes["mlp_ratios"][stage])
        for block in (f"{before}blocks.{number}." for number in range(depth)):
            shapes |= _block(block, width, inner, attends=stage >= 3)
    last = 2 * widths[-1]
    shapes |= _convolution(f"{prefix}final_conv.reparam_conv", last, 1, 3)
    shapes |= _convolution(f"{prefix}final_conv.se.fc1", last // 16, last, 1)
    return shapes | _convolution(f"{prefix}final_conv.se.fc2", last, last // 16, 1)


def _block(block: str, width: int, inner: int, *, attends: bool) -> Shapes:
    shapes = _convolution(f"{block}mlp.fc1", inner, width, 1) | _convolution(f"{block}mlp.fc2", width, inner, 1)
    shapes[f"{block}mlp.conv.conv.weight"] = (width, 1, 7, 7)
    shapes |= norm_shapes(width, f"{block}mlp.conv.bn")
    shapes |= {f"{block}mlp.conv.bn.running_{name}": (width,) for name in ("mean", "var")}
    shapes[f"{block}mlp.conv.bn.num_batches_tracked"] = ()
    if not attends:
        shapes[f"{block}layer_scale.gamma"] = (width, 1, 1)
        return shapes | _convolution(f"{block}token_mixer.reparam_conv", width, 1, 3)
    shapes |= {f"{block}layer_scale_{number}.gamma": (width, 1, 1) for number in (1, 2)}
    shapes |= norm_shapes(width, f"{block}norm")
    shapes[f"{block}token_mixer.qkv.weight"] = (3 * width, width)
    return shapes | linear_shapes(f"{block}token_mixer.proj", width, width)


def _convolution(name: str, outer: int, inner: int, side: int) -> Shapes:
    return {f"{name}.weight": (outer, inner, side, side), f"{name}.bias": (outer,)}
