"""Tiny ADEM-VL checkpoints; the model as its authors' code has it, on transformers' tower and Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import llava_config, save_llava
from safetensors.numpy import load_file, save_file
from weight_shapes import Config, Shapes

TAKES_VIDEOS = False
PROJECTOR = "multi_modal_projector"
OWN = ("adapter_proj.", "adapter_proj_cls.", "adapter_emb")
AUTHORS = "module.backbone.visual.transformer.resblocks."
SHARE_IN_TOWER = 0.1


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "two-scales-grouped-heads": _config(
            {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 16},
            down_sample_num=[16, 4],
            alpha=0.1,
            beta=0.7,
            drop_ratio=0.3,
        ),
        "overlapping-squares-nothing-dropped": _config(
            {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 8},
            down_sample_num=[9],
            alpha=0.1,
            beta=0.5,
            drop_ratio=0.05,
            vision_feature_layer=3,
        ),
    }


def _config(heads: Config, **top: object) -> Config:
    config = llava_config("clip", "llama", **top)
    config["text_config"] |= {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False, **heads}
    sizes = {"adapter_dim": 6, "hidden_proj": 14, "no_cls": False}
    return {**config, **sizes, "model_type": "llava_adem", "architectures": ["ADEMVLForConditionalGeneration"]}


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32; what the authors train by the names of their file."""
    save_llava(folder, config)
    path = folder / "model.safetensors"
    weights = {key: each for key, each in load_file(path).items() if not key.startswith(PROJECTOR)}
    rng = np.random.default_rng(11)
    for name, shape in _adapter_shapes(config).items():
        fan = shape[-1] if name.endswith("weight") else 25
        drawn = rng.standard_normal(shape) * (0.4 if "emb" in name else 0.9 / fan**0.5)
        weights[name] = drawn.astype(np.float32)
    save_file(weights, path, {"format": "pt"})
    settings = folder / "processor_config.json"
    found = json.loads(settings.read_text())
    side = config["vision_config"]["image_size"]
    found["image_processor"] |= {  # torchvision's Resize to a square, timm's mean and deviation
        "size": {"height": side, "width": side},
        "do_center_crop": False,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    settings.write_text(json.dumps(found))


def _adapter_shapes(config: Config) -> Shapes:
    vision, size = config["vision_config"], config["text_config"]["hidden_size"]
    width, inner, rows = vision["hidden_size"], config["hidden_proj"], sum(config["down_sample_num"])
    shapes: Shapes = dict.fromkeys(("adapter_emb1", "adapter_emb2"), (1, rows, size))
    for name in ("adapter_proj", "adapter_proj_cls"):
        shapes |= {f"{name}.fc1.weight": (inner, width), f"{name}.fc1.bias": (inner,)}
        shapes |= {f"{name}.fc2.weight": (size, inner), f"{name}.fc2.bias": (size,)}
    for number in range(vision["num_hidden_layers"]):
        adapter = f"{AUTHORS}{number}.adapter_mlp."
        shapes[f"{adapter}fc1.weight"] = (config["adapter_dim"], width)
        shapes[f"{adapter}fc2.weight"] = (width, config["adapter_dim"])
    return shapes


def conversations(given: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return messages with one image at most, by the names of those that others take."""
    (_, tall, _, _, _) = given["two images"]
    return {**given, "two images": ["Compare ", tall, " to nothing please."]}


def inputs(processor: Any, parts: list[Any]) -> Any:
    """Return a prompt with one token for an image, and its pixels."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = [part for part in parts if not isinstance(part, str)]
    found = processor.tokenizer(text, return_tensors="pt")
    if images:
        found["pixel_values"] = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    return found


def model(folder: Path) -> Any:
    """Return the reference: what answers (input_ids, pixel_values) with logits."""
    import torch
    from safetensors.torch import load_file as load_torch
    from torch.nn import functional
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = json.loads((folder / "config.json").read_text())
    weights = load_torch(folder / "model.safetensors")
    found = LlavaForConditionalGeneration(LlavaConfig(**{**config, "model_type": "llava"})).eval()
    places = {
        "language_model.model.": found.model.language_model,
        "language_model.lm_head.": found.lm_head,
        "vision_tower.": found.model.vision_tower,
    }
    for prefix, part in places.items():
        part.load_state_dict({key[len(prefix) :]: weights[key] for key in weights if key.startswith(prefix)})
    text, tower = found.model.language_model, found.model.vision_tower

    def beside(number: int) -> Any:
        """`forward_clip`: what the adapter makes of the feed-forward's input."""
        first, second = (weights[f"{AUTHORS}{number}.adapter_mlp.fc{part}.weight"] for part in (1, 2))

        def add(module: Any, given: Any, output: Any) -> Any:
            return output + SHARE_IN_TOWER * functional.gelu(given[0] @ first.T) @ second.T

        return add

    for number, layer in enumerate(getattr(tower, "vision_model", tower).encoder.layers):
        layer.mlp.register_forward_hook(beside(number))

    def projected(name: str, x: Any) -> Any:
        """`Projector`."""
        one, two = (weights[f"{name}.fc{part}.weight"] for part in (1, 2))
        inner = functional.silu(x @ one.T + weights[f"{name}.fc1.bias"])
        return inner @ two.T + weights[f"{name}.fc2.bias"]

    rows: dict[str, Any] = {}

    def fuse(module: Any, given: Any, output: Any) -> Any:
        """`Adapter.forward` with an image, the feed-forward's input as queries; section 3's adaptive fusion."""
        image, drop = rows["image"], config["drop_ratio"]
        score = functional.silu(given[0]) @ functional.silu(image + weights["adapter_emb1"]).permute(0, 2, 1)
        if drop > 0:
            ordered, _ = score.sort(dim=2)
            threshold = ordered[:, :, int(drop * score.size(2))].unsqueeze(2)
            score = torch.where(score < threshold, torch.zeros_like(score), score)
        return output + config["alpha"] * (score @ (image + weights["adapter_emb2"]))

    for layer in text.layers:
        layer.mlp.register_forward_hook(fuse)

    def seen(pixel_values: Any) -> tuple[Any, Any]:
        """Return what the class token becomes in the prompt, and the rows of all scales (`Avg2dSampler`)."""
        states = tower(pixel_values, output_hidden_states=True).hidden_states[config["vision_feature_layer"]]
        features = getattr(tower, "vision_model", tower).post_layernorm(states)
        side = round((features.shape[1] - 1) ** 0.5)
        square = features[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        sides = [round(number**0.5) for number in config["down_sample_num"]]
        scales = [functional.adaptive_avg_pool2d(square, each).flatten(2).transpose(1, 2) for each in sides]
        image = projected("adapter_proj", torch.cat(scales, 1)) * config["beta"]
        return projected("adapter_proj_cls", features[:, :1]), image

    class Reference:
        """The decoder, whose hooks fuse what was seen; zeros where nothing was."""

        def __call__(self, input_ids: Any, attention_mask: Any = None, pixel_values: Any = None, **_: Any) -> Any:
            embeds = text.embed_tokens(input_ids)
            rows["image"] = torch.zeros_like(weights["adapter_emb1"])
            if pixel_values is not None:
                first, rows["image"] = seen(pixel_values)
                embeds[input_ids == config["image_token_index"]] = first[:, 0]

            class Answer:
                logits = found.lm_head(text(inputs_embeds=embeds).last_hidden_state)

            return Answer()

    return Reference()
