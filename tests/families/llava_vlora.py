"""Tiny VLoRA checkpoints; the model as the paper and its authors' code have it, on transformers' tower and Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import llava_config, save_llava
from safetensors.numpy import load_file, save_file
from weight_shapes import Config

PROJECTOR, GENERATOR = "multi_modal_projector", "model.mm_projector"
NUM_HEADS, RATIO = 16, 4
"""Of the generator: what the authors' `LoRAGenerater` has where nothing is said."""


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "every-other-layer-all-matrices": _config(
            "clip", vlora_type="qkvom", vlora_rank=3, vlora_alpha=5, skip_layers=2
        ),
        "some-matrices-siglip-two-layers": _config(
            "siglip", vlora_type="ovq", vlora_rank=2, skip_layers=1, vision_feature_layer=[-1, 2]
        ),
    }


def _config(tower: str, **top: object) -> Config:
    config = llava_config(tower, "llama", **top)
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 8}
    config["text_config"] |= {**sizes, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False}
    generator = {"vlora_dim": 32, "vlora_depth": 2, "weights_sep": True, "vlora_llm_dim": 48, "vlora_llm_depth": 2}
    return {**config, **generator, "model_type": "llava_vlora", "architectures": ["LlavaLlamaVLoRAForCausalLM"]}


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32; the generator in the place of the connector."""
    save_llava(folder, config)
    path = folder / "model.safetensors"
    weights = {key: each for key, each in load_file(path).items() if not key.startswith(PROJECTOR)}
    rng = np.random.default_rng(7)
    for name, shape in _generator_shapes(config).items():
        scale = 0.05 if "weights_head" in name or name == "Bs" else 0.15
        drawn = rng.standard_normal(shape).astype(np.float32) * np.float32(scale)
        weights[f"{GENERATOR}.{name}"] = 1 + drawn if "norm" in name and name.endswith("weight") else drawn
    save_file(weights, path, {"format": "pt"})


def _patches(config: Config) -> int:
    vision = config["vision_config"]
    return (vision["image_size"] // vision["patch_size"]) ** 2 - (vision["model_type"] == "siglip_vision_model")


def _generator_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    text, size, rank = config["text_config"], config["vlora_dim"], config["vlora_rank"]
    layers, kinds = text["num_hidden_layers"] // config["skip_layers"], len(config["vlora_type"])
    chosen = config["vision_feature_layer"]
    seen = config["vision_config"]["hidden_size"] * (len(chosen) if isinstance(chosen, list) else 1)
    shapes: dict[str, tuple[int, ...]] = {
        "visual_proj.weight": (size, seen),
        "visual_proj.bias": (size,),
        "pos_embed": (1, _patches(config), size),
        "Bs": (1, kinds * layers, text["hidden_size"] * rank),
    }
    for kind in range(kinds):
        prefix = f"gen.{kind}."
        shapes[f"{prefix}queries"] = (1, layers, size)
        shapes |= {f"{prefix}norm.{part}": (size,) for part in ("weight", "bias")}
        shapes[f"{prefix}weights_head.weight"] = (text["hidden_size"] * rank, size)
        shapes[f"{prefix}weights_head.bias"] = (text["hidden_size"] * rank,)
        for block in (f"{prefix}decoders.{number}." for number in range(config["vlora_depth"])):
            for attention in ("self_attn", "multihead_attn"):
                shapes[f"{block}{attention}.in_proj_weight"] = (3 * size, size)
                shapes[f"{block}{attention}.in_proj_bias"] = (3 * size,)
                shapes[f"{block}{attention}.out_proj.weight"] = (size, size)
                shapes[f"{block}{attention}.out_proj.bias"] = (size,)
            for norm in ("norm1", "norm2", "norm3"):
                shapes |= {f"{block}{norm}.{part}": (size,) for part in ("weight", "bias")}
            shapes[f"{block}linear1.weight"], shapes[f"{block}linear1.bias"] = (RATIO * size, size), (RATIO * size,)
            shapes[f"{block}linear2.weight"], shapes[f"{block}linear2.bias"] = (size, RATIO * size), (size,)
    return shapes


def inputs(processor: Any, parts: list[Any]) -> Any:
    """Return a prompt without anything in the place of images, and their pixels."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    images = [part for part in parts if not isinstance(part, str)]
    found = processor.tokenizer(text.replace("<image>", ""), return_tensors="pt")
    if images:
        found["pixel_values"] = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    return found


def model(folder: Path) -> Any:
    """Return the reference: what answers (input_ids, pixel_values, attention_mask) with logits."""
    return _reference(folder)


def _reference(folder: Path) -> Any:
    import torch
    from safetensors.torch import load_file as load_torch
    from torch import nn
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = json.loads((folder / "config.json").read_text())
    weights = load_torch(folder / "model.safetensors")
    usual = LlavaConfig(**{**config, "model_type": "llava"})
    found = LlavaForConditionalGeneration(usual).eval()
    places = {
        "language_model.model.": found.model.language_model,
        "language_model.lm_head.": found.lm_head,
        "vision_tower.": found.model.vision_tower,
    }
    for prefix, part in places.items():
        part.load_state_dict({key[len(prefix) :]: weights[key] for key in weights if key.startswith(prefix)})
    found.model.multi_modal_projector = nn.Identity()  # features as the tower gives them
    text, size, rank = config["text_config"], config["vlora_dim"], config["vlora_rank"]
    num_layers, kinds, every = text["num_hidden_layers"], config["vlora_type"], config["skip_layers"]
    changed = num_layers // every

    class Block(nn.Module):
        """Figure 3: self-attention of the queries, cross-attention to the image, feed-forward; norms before each."""

        def __init__(self) -> None:
            super().__init__()
            self.self_attn, self.multihead_attn = (
                nn.MultiheadAttention(size, NUM_HEADS, batch_first=True) for _ in range(2)
            )
            self.linear1, self.linear2 = nn.Linear(size, RATIO * size), nn.Linear(RATIO * size, size)
            self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(size) for _ in range(3))

        def forward(self, query: Any, seen: Any) -> Any:
            own = self.norm1(query)
            query = query + self.self_attn(own, own, own, need_weights=False)[0]
            query = query + self.multihead_attn(self.norm2(query), seen, seen, need_weights=False)[0]
            return query + self.linear2(nn.functional.gelu(self.linear1(self.norm3(query))))

    class Generator(nn.Module):
        """Section 3.3: k queries, N blocks, and a linear layer that makes a matrix of each."""

        def __init__(self) -> None:
            super().__init__()
            self.queries = nn.Parameter(torch.zeros(1, changed, size))
            self.decoders = nn.ModuleList([Block() for _ in range(config["vlora_depth"])])
            self.norm, self.weights_head = nn.LayerNorm(size), nn.Linear(size, text["hidden_size"] * rank)

        def forward(self, seen: Any) -> Any:
            query = self.queries.expand(len(seen), -1, -1)
            for block in self.decoders:
                query = block(query, seen)
            return self.weights_head(self.norm(query)).view(len(seen), changed, text["hidden_size"], rank)

    class Weights(nn.Module):
        """Of every kind of matrix its own generator (`weights_sep`), and B, which no image changes (equation 5)."""

        def __init__(self) -> None:
            super().__init__()
            self.visual_proj = nn.Linear(weights[f"{GENERATOR}.visual_proj.weight"].shape[1], size)
            self.pos_embed = nn.Parameter(torch.zeros(1, _patches(config), size))
            self.gen = nn.ModuleList([Generator() for _ in kinds])
            self.Bs = nn.Parameter(torch.zeros(1, len(kinds) * changed, text["hidden_size"] * rank))

    made = Weights().eval()
    made.load_state_dict(
        {key.removeprefix(f"{GENERATOR}."): weights[key] for key in weights if key.startswith(GENERATOR)}
    )
    second = made.Bs.view(len(kinds), changed, text["hidden_size"], rank) * config.get("vlora_alpha", rank) / rank
    first: dict[tuple[str, int], Any] = {}

    def hook(kind: str, layer: int) -> Any:
        def add(module: Any, given: Any, output: Any) -> Any:
            if not first:
                return output
            low = given[0] @ first[kind, layer]  # equation 4: W x + Delta W x, Delta W of low rank
            return output + low @ second[kinds.index(kind), layer // every].T

        return add

    for number, layer in enumerate(found.model.language_model.layers):
        parts = {letter: getattr(layer.self_attn, f"{letter}_proj") for letter in "qkvo"} | {"m": layer.mlp}
        if (number + 1) % every == 0:
            for kind in kinds:
                parts[kind].register_forward_hook(hook(kind, number))

    class Reference:
        """The decoder, whose hooks add what images change."""

        def __call__(self, input_ids: Any, attention_mask: Any = None, pixel_values: Any = None, **_: Any) -> Any:
            first.clear()
            if pixel_values is not None:
                features = found.model.get_image_features(pixel_values=pixel_values)
                features = features if isinstance(features, (list, tuple)) else features.pooler_output
                seen = made.visual_proj(torch.stack(list(features))) + made.pos_embed
                for kind, generator in zip(kinds, made.gen, strict=True):
                    of_images = generator(seen).sum(0)  # several images: their changes are added
                    for place in range(changed):
                        first[kind, (place + 1) * every - 1] = of_images[place]
            hidden = found.model.language_model(input_ids=input_ids).last_hidden_state

            class Answer:
                logits, hidden_states = found.lm_head(hidden), (hidden,)

            return Answer()

    return Reference()
