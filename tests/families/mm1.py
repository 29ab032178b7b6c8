"""Tiny MM1 checkpoints, against a connector written from Honeybee's paper and code in transformers' LLaVA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from checkpoints import TEMPLATE, TILE_PX, llava_config, save_llava, save_model
from family_llava_next import pinpoints
from weight_shapes import Config, Shapes, linear_shapes, llava_shapes, norm_shapes

PROJECTOR = "multi_modal_projector."


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them: cells that overlap, as sides do not divide; MM1.5's tiles."""
    three = {"num_query_tokens": 9, "hidden_size": 32, "depth": 2, "mlp_depth": 2}
    tiled = {"num_query_tokens": 4, "hidden_size": 20, "depth": 1, "mlp_depth": 1, "pos_emb": False, "prenorm": True}
    return {
        "clip-overlapping-cells": _config("clip", three),
        "siglip-of-two-layers-in-tiles": _config(
            "siglip",
            tiled,
            vision_feature_select_strategy="full",
            vision_feature_layer=[-1, 2],
            image_grid_pinpoints=pinpoints(),
        ),
    }


def _config(tower: str, projector: Config, **top: Any) -> Config:
    config = llava_config(tower, "llama", **top)
    config["text_config"]["tie_word_embeddings"] = False
    return {**config, "model_type": "mm1", "projector_config": projector}


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_llava(folder, config)
    shapes = {name: shape for name, shape in llava_shapes(config).items() if not name.startswith(PROJECTOR)}
    save_model(folder, config, shapes | _projector_shapes(config))
    if "image_grid_pinpoints" in config:
        path = folder / "processor_config.json"
        settings = json.loads(path.read_text())
        images = {name: value for name, value in settings["image_processor"].items() if name not in ("do_convert_rgb",)}
        images |= {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": pinpoints()}
        images |= {"crop_size": {"height": TILE_PX, "width": TILE_PX}, "do_center_crop": False}
        path.write_text(json.dumps({**settings, "image_processor": images}))


def processor(folder: Path) -> Any:
    """Return transformers' processor of images, and the tokenizer."""
    import transformers

    settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    kind = getattr(transformers, f"{settings.pop('image_processor_type')}Pil")
    config = json.loads((folder / "config.json").read_text())
    return kind(**settings), transformers.TokenizersBackend.from_pretrained(folder, chat_template=TEMPLATE), config


def inputs(found: Any, parts: list[Any]) -> dict[str, Any]:
    """Return ids and pixels of one message: an image's tiles, then the whole of it (MM1.5, section 3.4)."""
    import torch

    images, tokenizer, config = found
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True, chat_template=TEMPLATE
    )
    tiles = []
    for part in parts:
        if isinstance(part, str):
            continue
        pixels = torch.as_tensor(images(images=[part], return_tensors="pt")["pixel_values"])
        of_image = pixels[0] if pixels.dim() == 5 else pixels
        whole = len(of_image) > 1
        tiles.append(torch.cat([of_image[1:], of_image[:1]]) if whole else of_image)
    per_tile = config["projector_config"]["num_query_tokens"]
    counts = iter([len(each) * per_tile for each in tiles])
    first, *rest = text.split("<image>")
    ids = tokenizer(first + "".join("<image>" * next(counts) + piece for piece in rest), return_tensors="pt")
    made = {"input_ids": ids["input_ids"]}
    return {**made, "pixel_values": torch.cat(tiles)} if tiles else made


def model(folder: Path) -> Any:
    """Return transformers' LLaVA with the reference in the place of its connector."""
    from safetensors.torch import load_file
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = json.loads((folder / "config.json").read_text())
    found = LlavaForConditionalGeneration(LlavaConfig(**{**config, "model_type": "llava"}))
    weights = load_file(folder / "model.safetensors")
    of_connector = {key[len(PROJECTOR) :]: weights.pop(key) for key in sorted(weights) if key.startswith(PROJECTOR)}
    found.model.multi_modal_projector = reference(config)
    found.model.multi_modal_projector.load_state_dict(of_connector)
    for prefix, part in (
        ("language_model.model.", found.model.language_model),
        ("language_model.lm_head.", found.lm_head),
        ("vision_tower.", found.model.vision_tower),
    ):
        part.load_state_dict({key[len(prefix) :]: weights[key] for key in weights if key.startswith(prefix)})
    return found.eval()


def reference(config: Config) -> Any:
    """Return the connector in torch: L residual blocks, an adaptive average, L residual blocks (Honeybee, section 4.2).

    The blocks are RegNet's bottlenecks with squeeze-and-excitation, depthwise between two matrices, with SiLU and a
    norm over the channels of each place, which the authors' code takes from timm: each block's squeeze is a quarter of
    its input, and a shortcut of another width is a matrix and a norm.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    class Normed(nn.Module):
        def __init__(self, width: int, size: int, side: int, groups: int = 1) -> None:
            super().__init__()
            self.conv = nn.Conv2d(width, size, side, padding=side // 2, groups=groups, bias=False)
            self.bn = nn.LayerNorm(size, eps=1e-5)

        def forward(self, x: Any) -> Any:
            return self.bn(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    class Squeeze(nn.Module):
        def __init__(self, size: int, inner: int) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Conv2d(size, inner, 1), nn.Conv2d(inner, size, 1)

        def forward(self, x: Any) -> Any:
            return x * self.fc2(functional.silu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()

    class Block(nn.Module):
        def __init__(self, width: int, size: int) -> None:
            super().__init__()
            self.conv1, self.conv2, self.conv3 = (
                Normed(width, size, 1),
                Normed(size, size, 3, size),
                Normed(size, size, 1),
            )
            self.se = Squeeze(size, round(width / 4))
            self.downsample = nn.Identity() if width == size else Normed(width, size, 1)

        def forward(self, x: Any) -> Any:
            inner = self.se(functional.silu(self.conv2(functional.silu(self.conv1(x)))))
            return functional.silu(self.conv3(inner) + self.downsample(x))

    def stage(depth: int, width: int, size: int) -> Any:
        blocks = nn.Sequential()
        for number in range(depth):
            blocks.add_module(f"b{number + 1}", Block(size if number else width, size))
        return blocks

    told = config["projector_config"]
    width, grid, size, out = _sizes(config)

    class Abstractor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            side = round(told["num_query_tokens"] ** 0.5)
            if told.get("pos_emb", True):
                self.pos_emb = nn.Parameter(torch.zeros(1, grid**2, width))
            if told.get("prenorm", False):
                self.prenorm = nn.LayerNorm(width)
            before, behind = stage(told["depth"], width, size), stage(told["depth"], size, size)
            self.net = nn.Sequential(before, nn.AdaptiveAvgPool2d(side), behind)
            matrices: list[Any] = [nn.Linear(size, out)]
            for _ in range(told["mlp_depth"] - 1):
                matrices += [nn.SiLU(), nn.Linear(out, out)]
            self.readout = nn.Sequential(*matrices)

        def forward(self, x: Any) -> Any:
            x = self.prenorm(x) if hasattr(self, "prenorm") else x
            x = x + self.pos_emb if hasattr(self, "pos_emb") else x
            pooled = self.net(x.transpose(1, 2).unflatten(2, (grid, grid)))
            return self.readout(pooled.flatten(2).transpose(1, 2))

    return Abstractor()


def _sizes(config: Config) -> tuple[int, int, int, int]:
    vision, layers = config["vision_config"], config["vision_feature_layer"]
    width = vision["hidden_size"] * (len(layers) if isinstance(layers, list) else 1)
    grid = vision["image_size"] // vision["patch_size"]
    return width, grid, config["projector_config"]["hidden_size"], config["text_config"]["hidden_size"]


def _projector_shapes(config: Config) -> Shapes:
    told, (width, grid, size, out) = config["projector_config"], _sizes(config)
    shapes: Shapes = {f"{PROJECTOR}pos_emb": (1, grid**2, width)} if told.get("pos_emb", True) else {}
    shapes |= norm_shapes(width, f"{PROJECTOR}prenorm") if told.get("prenorm", False) else {}
    for stage, columns in (("0", width), ("2", size)):
        for number in range(told["depth"]):
            shapes |= _block_shapes(f"{PROJECTOR}net.{stage}.b{number + 1}.", size if number else columns, size)
    for number in range(told["mlp_depth"]):
        shapes |= linear_shapes(f"{PROJECTOR}readout.{2 * number}", out, out if number else size)
    return shapes


def _block_shapes(block: str, width: int, size: int) -> Shapes:
    inner = round(width / 4)
    shapes: Shapes = {f"{block}conv{n}.conv.weight": kernel for n, kernel in enumerate(_kernels(width, size), 1)}
    shapes |= norm_shapes(size, *(f"{block}conv{number}.bn" for number in (1, 2, 3)))
    for name, rows, columns in (("fc1", inner, size), ("fc2", size, inner)):
        shapes |= {f"{block}se.{name}.weight": (rows, columns, 1, 1), f"{block}se.{name}.bias": (rows,)}
    if width != size:
        shapes |= {f"{block}downsample.conv.weight": (size, width, 1, 1)} | norm_shapes(size, f"{block}downsample.bn")
    return shapes


def _kernels(width: int, size: int) -> list[tuple[int, ...]]:
    return [(size, width, 1, 1), (size, 1, 3, 3), (size, size, 1, 1)]
