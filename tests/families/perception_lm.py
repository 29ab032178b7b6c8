"""Tiny Perception LM checkpoints: grids of tiles, a class token or none, scaled layers or a last norm."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import sys
from functools import lru_cache, reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
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
from PIL import Image
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, norm_shapes

TILE_PX, MOST_TILES = 32, 6


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    plain = {"class_token": False, "num_heads": 2, "embed_dim": 24, "patch_size": 4, "ref_feat_shape": [5, 5]}
    return {
        "scaled-layers-class-token-means-of-four": _config({"init_values": 0.1, "use_post_transformer_norm": False}, 2),
        "no-class-token-last-norm-means-of-sixteen": _config(plain, 4, "vit_pe_core_gigantic_patch14_448"),
    }


def _config(tower: Config, pooling: int, architecture: str = "vit_pe_core_large_patch14_336") -> Config:
    whole, is_tied = llava_config("siglip", "llama"), pooling == 2
    arguments = {
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 3,
        "mlp_ratio": 1.5,
        "patch_size": 8,
        "img_size": [TILE_PX, TILE_PX],
        "global_pool": "",
        "ref_feat_shape": [4, 4],
        **tower,
    }
    return {
        "architectures": ["PerceptionLMForConditionalGeneration"],
        "model_type": "perception_lm",
        "image_token_id": IMAGE_TOKEN_ID,
        "video_token_id": 3,
        "projector_pooling_ratio": pooling,
        "vision_use_cls_token": arguments.get("class_token", True),
        "tie_word_embeddings": is_tied,
        "text_config": whole["text_config"] | {"tie_word_embeddings": is_tied},
        "vision_config": {"model_type": "timm_wrapper", "architecture": architecture, "model_args": arguments},
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    images = {
        "image_processor_type": "PerceptionLMImageProcessorFast",
        "vision_input_type": "thumb+tile",
        "tile_size": TILE_PX,
        "max_num_tiles": MOST_TILES,
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_resize": True,
        **RESCALING,
    }
    told = {"patch_size": config["vision_config"]["model_args"]["patch_size"]}
    save_processor(folder, "PerceptionLMProcessor", images, pooling_ratio=config["projector_pooling_ratio"], **told)
    tokens = {"image_token": "<image>", "video_token": "<fake_token_around_image>"}
    save_byte_tokenizer(folder, CONTROL, **NAMED, extra_special_tokens=tokens)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


class PillowTiles:
    """Transformers' choice of grids, and Pillow's pixels: its own are torchvision's."""

    model_input_names = ("pixel_values",)

    def __call__(self, images: Any, **options: Any) -> dict[str, Any]:
        shown = images if isinstance(images, list) else [images]
        return {"pixel_values": [self._tiles(image) for image in shown]}

    def _tiles(self, image: Image.Image) -> np.ndarray:
        cols, rows = canvas_of(*image.size, TILE_PX, MOST_TILES)
        canvas = image.resize((cols * TILE_PX, rows * TILE_PX), Image.Resampling.BICUBIC)
        tiles = [image.resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)]
        for row in range(rows):
            for col in range(cols):
                left, top = col * TILE_PX, row * TILE_PX
                tiles.append(canvas.crop((left, top, left + TILE_PX, top + TILE_PX)))
        pixels = np.stack([np.asarray(tile) for tile in tiles]).transpose(0, 3, 1, 2)
        normed: np.ndarray = (pixels.astype(np.float32) / 255 - 0.5) / 0.5
        return normed


_GRIDS = ("_factors", "_find_supported_aspect_ratios", "_get_image_height_width")
_CHOICES = ("_fit_image_to_canvas", "_find_closest_aspect_ratio")


@lru_cache(maxsize=1)
def _grids() -> Any:
    """Return a class of the methods by which transformers' own chooses grids; its file wants torchvision."""
    import transformers

    folder = Path(transformers.__file__).parent / "models" / "perception_lm"
    tree = ast.parse((folder / "image_processing_perception_lm.py").read_text())
    (kind,) = (
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "PerceptionLMImageProcessor"
    )
    methods = [node for node in kind.body if isinstance(node, ast.FunctionDef) and node.name in (*_GRIDS, *_CHOICES)]
    if len(methods) != len(_GRIDS) + len(_CHOICES):
        raise ValueError("transformers' class has not these methods any more")
    kind.bases, kind.decorator_list, kind.body = [], [], list(methods)
    found: dict[str, Any] = {"math": math, "reduce": reduce}
    exec(compile(ast.Module([kind], []), "perception_lm", "exec"), found)
    return found["PerceptionLMImageProcessor"]


def canvas_of(width_px: int, height_px: int, tile_px: int, most_tiles: int) -> tuple[int, int]:
    """Return (cols, rows) as transformers chooses them."""
    chooser = _grids()()
    chooser.max_num_tiles = most_tiles
    found: tuple[int, int] | None = chooser._fit_image_to_canvas(width_px, height_px, tile_px)
    nearest: tuple[int, int] = found or chooser._find_closest_aspect_ratio(width_px, height_px, tile_px)
    return nearest


def processor(folder: Path) -> Any:
    """Return transformers' processor around `PillowTiles`; what several images have is put behind one another."""
    import torch
    from transformers import AutoTokenizer, PerceptionLMProcessor

    class StillProcessor(PerceptionLMProcessor):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["tokenizer"]

        def __init__(self, tokenizer: Any, **options: Any) -> None:
            self.image_processor = PillowTiles()
            self.patch_size, self.pooling_ratio = options["patch_size"], options["pooling_ratio"]
            self.image_token, self.image_token_id = tokenizer.image_token, tokenizer.image_token_id
            self.tokenizer = tokenizer
            self.chat_template = options["chat_template"]

        def __call__(self, text: str, images: Any = None, **options: Any) -> Any:
            found = {} if images is None else self.image_processor(images)
            pieces = text.split(self.image_token)
            for number in range(len(pieces) - 1):
                pieces[number] += self.replace_image_token(found, number)
            encoded = self.tokenizer("".join(pieces), return_tensors="pt")
            if images is not None:
                encoded["pixel_values"] = torch.from_numpy(np.concatenate(found["pixel_values"])[None])
            return encoded

    told = json.loads((folder / "processor_config.json").read_text())
    tokenizer, template = AutoTokenizer.from_pretrained(folder), (folder / "chat_template.jinja").read_text()
    options = {"patch_size": told["patch_size"], "pooling_ratio": told["pooling_ratio"]}
    return StillProcessor(tokenizer, chat_template=template, **options)


def model(folder: Path) -> Any:
    """Return transformers' model around a tower written from the paper: timm's wants torchvision."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel, PerceptionLMConfig, PerceptionLMForConditionalGeneration

    reference = _reference()
    AutoConfig.register("perception_reference", reference.PerceptionReferenceConfig, exist_ok=True)
    AutoModel.register(reference.PerceptionReferenceConfig, reference.PerceptionReference, exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    tower = reference.PerceptionReferenceConfig(model_args=config.pop("vision_config")["model_args"])
    found = PerceptionLMForConditionalGeneration(PerceptionLMConfig(**{**config, "vision_config": tower}))
    weights = load_file(folder / "model.safetensors")
    if config["tie_word_embeddings"]:
        weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    found.load_state_dict(weights)
    return found.eval()


def _reference() -> ModuleType:
    path = Path(__file__).parents[1] / "perception_encoder.py"
    spec = importlib.util.spec_from_file_location("perception_encoder", path)
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
    projector = "model.multi_modal_projector"
    shapes |= linear_shapes(f"{projector}.linear_1", text["hidden_size"], sizes["embed_dim"])
    shapes |= linear_shapes(f"{projector}.linear_2", text["hidden_size"], text["hidden_size"])
    return shapes | _tower_shapes(sizes, "model.vision_tower.timm_model.")


def _tower_shapes(sizes: Config, prefix: str) -> Shapes:
    width, patch, has_class = sizes["embed_dim"], sizes["patch_size"], sizes.get("class_token", True)
    num_rows = (TILE_PX // patch) ** 2 + has_class
    shapes: Shapes = {f"{prefix}patch_embed.proj.weight": (width, 3, patch, patch)}
    shapes[f"{prefix}pos_embed"] = (1, num_rows, width)
    if has_class:
        shapes[f"{prefix}cls_token"] = (1, 1, width)
    shapes |= norm_shapes(width, f"{prefix}norm_pre")
    if sizes.get("use_post_transformer_norm", True):
        shapes |= norm_shapes(width, f"{prefix}norm")
    inner = int(width * sizes["mlp_ratio"])
    for block in (f"{prefix}blocks.{number}." for number in range(sizes["depth"])):
        shapes |= norm_shapes(width, f"{block}norm1", f"{block}norm2")
        shapes |= linear_shapes(f"{block}attn.qkv", 3 * width, width)
        shapes |= linear_shapes(f"{block}attn.proj", width, width)
        shapes |= linear_shapes(f"{block}mlp.fc1", inner, width) | linear_shapes(f"{block}mlp.fc2", width, inner)
        if sizes.get("init_values") is not None:
            shapes |= {f"{block}gamma_{number}": (width,) for number in (1, 2)}
    return shapes
