"""Tiny LLaVA checkpoints with two towers; the interleaving as the authors' code has it, on transformers' towers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import llava_config, save_llava
from safetensors.numpy import load_file, save_file
from weight_shapes import Config, Shapes, drawn_weight, linear_shapes, norm_shapes

PROJECTOR, TOWER = "dino_mm_projector.", "dino_tower."


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "resampled-positions-two-layers": _config({"image_size": 56}, vision_feature_layer=-2),
        "own-size-one-matrix-qwen2": _config(
            {"image_size": 32, "mlp_ratio": 2}, "qwen2", mm_projector_type="linear", vision_feature_layer=3
        ),
    }


def _config(dino: Config, decoder: str = "llama", **top: object) -> Config:
    config = llava_config("clip", decoder, **top)
    tower = {"model_type": "dinov2", "hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 3}
    config["dino_config"] = {**tower, "patch_size": 8, "mlp_ratio": 4, **dino}
    return {**config, "model_type": "llava_mof", "architectures": ["LlavaLlamaForCausalLM"]}


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32; the second connector by the authors' names."""
    save_llava(folder, config)
    path = folder / "model.safetensors"
    weights = load_file(path)
    shapes = {f"{TOWER}{name}": shape for name, shape in _dino_shapes(config["dino_config"]).items()}
    out, size = config["text_config"]["hidden_size"], config["dino_config"]["hidden_size"]
    if config.get("mm_projector_type") == "linear":
        weights = {key: each for key, each in weights.items() if not key.startswith("multi_modal_projector.")}
        shapes |= linear_shapes("multi_modal_projector", out, config["vision_config"]["hidden_size"])
        shapes |= linear_shapes(PROJECTOR[:-1], out, size)
    else:
        shapes |= linear_shapes(f"{PROJECTOR}0", out, size) | linear_shapes(f"{PROJECTOR}2", out, out)
    for name, shape in shapes.items():
        drawn = drawn_weight(name, shape)
        weights[name] = np.ones_like(drawn) + drawn if "lambda1" in name else drawn
    save_file(weights, path, {"format": "pt"})


def _dino_shapes(dino: Config) -> Shapes:
    size, patch = dino["hidden_size"], dino["patch_size"]
    inner = int(size * dino["mlp_ratio"])
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, size),
        "embeddings.mask_token": (1, size),
        "embeddings.position_embeddings": (1, (dino["image_size"] // patch) ** 2 + 1, size),
        "embeddings.patch_embeddings.projection.weight": (size, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (size,),
        **norm_shapes(size, "layernorm"),
    }
    for layer in (f"encoder.layer.{number}." for number in range(dino["num_hidden_layers"])):
        shapes |= norm_shapes(size, f"{layer}norm1", f"{layer}norm2")
        for part in ("query", "key", "value"):
            shapes |= linear_shapes(f"{layer}attention.attention.{part}", size, size)
        shapes |= linear_shapes(f"{layer}attention.output.dense", size, size)
        shapes |= linear_shapes(f"{layer}mlp.fc1", inner, size) | linear_shapes(f"{layer}mlp.fc2", size, inner)
        shapes |= {f"{layer}layer_scale{number}.lambda1": (size,) for number in (1, 2)}
    return shapes


def inputs(processor: Any, parts: list[Any]) -> Any:
    """Return a prompt with two tokens for every patch, and pixels."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = [part for part in parts if not isinstance(part, str)]
    patches = 16
    found = processor.tokenizer(text.replace("<image>", "<image>" * 2 * patches), return_tensors="pt")
    if images:
        found["pixel_values"] = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    return found


def model(folder: Path) -> Any:
    """Return the reference: what answers (input_ids, pixel_values) with logits."""
    import torch
    from safetensors.torch import load_file as load_torch
    from torch.nn import functional
    from transformers import Dinov2Config, Dinov2Model, LlavaConfig, LlavaForConditionalGeneration

    config = json.loads((folder / "config.json").read_text())
    weights = load_torch(folder / "model.safetensors")
    found = LlavaForConditionalGeneration(LlavaConfig(**{**config, "model_type": "llava"})).eval()
    for prefix, part in (
        ("language_model.model.", found.model.language_model),
        ("language_model.lm_head.", found.lm_head),
        ("vision_tower.", found.model.vision_tower),
    ):
        if held := {key[len(prefix) :]: weights[key] for key in weights if key.startswith(prefix)}:
            part.load_state_dict(held)
    if config["tie_word_embeddings"]:
        found.tie_weights()
    dino = Dinov2Model(Dinov2Config(**config["dino_config"])).eval()
    renamed = {name: f"attention.{name[0]}_proj" for name in ("query", "key", "value")}  # as transformers 5 names them
    held = {}
    for key in (key for key in weights if key.startswith(TOWER)):
        name = key[len(TOWER) :].replace("attention.output.dense", "attention.o_proj")
        for old, new in renamed.items():
            name = name.replace(f"attention.attention.{old}", new)
        held[name] = weights[key]
    dino.load_state_dict(held)

    def linear(name: str, x: Any) -> Any:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def connected(name: str, parts: tuple[str, str], x: Any) -> Any:
        if config.get("mm_projector_type") == "linear":
            return linear(name, x)
        first, second = parts
        return linear(f"{name}.{second}", functional.gelu(linear(f"{name}.{first}", x)))

    class Reference:
        def __call__(self, input_ids: Any, attention_mask: Any = None, pixel_values: Any = None, **_: Any) -> Any:
            text = found.model.language_model
            embeds = text.embed_tokens(input_ids).clone()
            if pixel_values is not None:
                states = found.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states
                clip = states[config["vision_feature_layer"]][:, 1:]
                own = dino(pixel_values, output_hidden_states=True).hidden_states[-1][:, 1:]  # `x_prenorm`
                merged = torch.stack(
                    [
                        connected("multi_modal_projector", ("linear_1", "linear_2"), clip),
                        connected(PROJECTOR[:-1], ("0", "2"), own),
                    ],
                    dim=2,
                ).flatten(1, 2)  # merged_features[0::2] and [1::2]
                rows = merged.flatten(0, 1)
                embeds[0, (input_ids[0] == config["image_token_index"]).nonzero()[: len(rows), 0]] = rows

            class Answer:
                logits = found.lm_head(text(inputs_embeds=embeds).last_hidden_state)

            return Answer()

    return Reference()
