"""Tiny TextHawk checkpoints; the resampler as the papers describe it, on transformers' tower and decoder.

Pixels are those of transformers' GotOcr2ImageProcessor, tiles of a grid and the whole image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from checkpoints import TEMPLATE, llava_config, save_llava
from safetensors.numpy import load_file, save_file
from weight_shapes import Config, Shapes, drawn_weight, linear_shapes, norm_shapes

PROJECTOR = "multi_modal_projector."
MOST_TILES = 6


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "four-depths-qwen2": _config(
            "qwen2", {"query_stride": 2, "window": 2}, {"image_size": 32}, vision_feature_layer=[-1, 3, 2, 1]
        ),
        "lines-of-three-llama-three-heads": _config(
            "llama",
            {"query_stride": 2, "window": 3, "num_attention_heads": 3, "hidden_size": 30},
            {"image_size": 24, "patch_size": 4},
            vision_feature_layer=[4, 1],
        ),
    }


def _config(decoder: str, resampler: Config, vision: Config, **top: object) -> Config:
    config = llava_config("siglip", decoder, vision_feature_select_strategy="full", **top)
    config["vision_config"] |= vision
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 36}
    return {
        **config,
        "architectures": ["TextHawkForConditionalGeneration"],
        "model_type": "texthawk",
        "resampler_config": {**sizes, **resampler},
    }


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32; the resampler in the place of the connector."""
    save_llava(folder, config)
    path = folder / "model.safetensors"
    weights = {key: each for key, each in load_file(path).items() if not key.startswith(PROJECTOR)}
    for name, shape in _shapes(config).items():
        weights[f"{PROJECTOR}{name}"] = drawn_weight(name, shape)
    weights[f"{PROJECTOR}positions.scale"][:] = 3.0  # as drawn, places would change too little to be seen
    save_file(weights, path, {"format": "pt"})
    settings, side = folder / "processor_config.json", config["vision_config"]["image_size"]
    found = json.loads(settings.read_text())
    found["image_processor"] |= {
        "image_processor_type": "TextHawkImageProcessor",
        "size": {"height": side, "width": side},
        "min_patches": 1,
        "max_patches": MOST_TILES,
    }
    settings.write_text(json.dumps(found))


def _shapes(config: Config) -> Shapes:
    told, seen = config["resampler_config"], config["vision_config"]["hidden_size"]
    size, inner, out = told["hidden_size"], told["intermediate_size"], config["text_config"]["hidden_size"]
    shapes: Shapes = {"positions.rows": (2, size), "positions.cols": (2, size), "positions.scale": (1,)}
    shapes |= linear_shapes("query_proposal.fc1", inner, seen) | linear_shapes("query_proposal.fc2", inner, inner)
    shapes |= linear_shapes("query_proposal.proj", size, inner)
    for number in range(len(config["vision_feature_layer"])):
        layer = f"layers.{number}."
        for name, columns in (("self_attn", size), ("cross_attn", seen))[not number :]:
            shapes |= linear_shapes(f"{layer}{name}.q_proj", size, size)
            shapes |= linear_shapes(f"{layer}{name}.k_proj", size, columns)
            shapes |= linear_shapes(f"{layer}{name}.v_proj", size, columns)
            shapes |= linear_shapes(f"{layer}{name}.o_proj", size, size)
            shapes |= norm_shapes(size, f"{layer}{name}_norm")
        shapes |= norm_shapes(seen, f"{layer}seen_norm") | norm_shapes(size, f"{layer}mlp_norm")
        shapes |= linear_shapes(f"{layer}mlp.fc1", inner, size) | linear_shapes(f"{layer}mlp.fc2", size, inner)
    return shapes | norm_shapes(size, "norm") | linear_shapes("projection", out, told["window"] * size)


def processor(folder: Path) -> Any:
    """Return transformers' processor of images, the tokenizer, and the config."""
    import transformers

    settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    images = transformers.GotOcr2ImageProcessorPil(
        **{**settings, "image_processor_type": "GotOcr2ImageProcessor", "crop_to_patches": True}
    )
    config = json.loads((folder / "config.json").read_text())
    return images, transformers.TokenizersBackend.from_pretrained(folder, chat_template=TEMPLATE), config


def inputs(found: Any, parts: list[Any]) -> dict[str, Any]:
    """Return ids, and canvases of one message: of each image, the whole of it, then the grid (figure 3 a)."""
    import torch
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    images, tokenizer, config = found
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True, chat_template=TEMPLATE
    )
    side, canvases, counts = config["vision_config"]["image_size"], [], []
    for image in (part for part in parts if not isinstance(part, str)):
        tiles = torch.as_tensor(images(images=[image], return_tensors="pt")["pixel_values"])
        size = (image.height, image.width)
        cols, rows = get_optimal_tiled_canvas(size, (side, side), 1, MOST_TILES)
        if len(tiles) > 1:
            canvases.append((tiles[-1:], 1, 1))
        canvases.append((tiles[: rows * cols], rows, cols))
        counts.append(sum(len(each) for each, _, _ in canvases[-2 if len(tiles) > 1 else -1 :]))
    told = config["resampler_config"]
    queries = config["vision_config"]["image_size"] // config["vision_config"]["patch_size"] // told["query_stride"]
    per_tile, numbers = queries**2 // told["window"], iter(counts)
    first, *rest = text.split("<image>")
    ids = tokenizer(first + "".join("<image>" * (next(numbers) * per_tile) + piece for piece in rest))["input_ids"]
    made = {"input_ids": torch.tensor([ids])}
    return {**made, "canvases": canvases} if canvases else made


def model(folder: Path) -> Any:
    """Return the reference: what answers (input_ids, canvases) with logits."""
    import torch
    from safetensors.torch import load_file as load_torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = json.loads((folder / "config.json").read_text())
    weights = load_torch(folder / "model.safetensors")
    own = {key[len(PROJECTOR) :]: weights.pop(key) for key in sorted(weights) if key.startswith(PROJECTOR)}
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
    resampled = reference(config, own)

    class Reference:
        def __call__(self, input_ids: Any, attention_mask: Any = None, canvases: Any = (), **_: Any) -> Any:
            embeds, features = found.model.language_model.embed_tokens(input_ids).clone(), []
            for tiles, rows, cols in canvases:
                states = found.model.vision_tower(tiles, output_hidden_states=True).hidden_states
                features.append(resampled([states[layer] for layer in config["vision_feature_layer"]], rows, cols))
            if features:
                rows = torch.cat(features)
                places = (input_ids[0] == config["image_token_index"]).nonzero()[: len(rows), 0]  # an answer may say it
                embeds[0, places] = rows

            class Answer:
                logits = found.lm_head(found.model.language_model(inputs_embeds=embeds).last_hidden_state)

            return Answer()

    return Reference()


def reference(config: Config, weights: dict[str, Any]) -> Any:
    """Return (depths [tiles, patches, V], rows, cols) -> tokens [n, out], of one canvas."""
    import torch
    from torch.nn import functional

    told, vision = config["resampler_config"], config["vision_config"]
    grid, heads = vision["image_size"] // vision["patch_size"], told["num_attention_heads"]
    stride, window = told["query_stride"], told["window"]
    side = grid // stride

    def linear(name: str, x: Any) -> Any:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Any) -> Any:
        return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    def two(name: str, x: Any) -> Any:
        return linear(f"{name}.fc2", functional.gelu(linear(f"{name}.fc1", x)))

    def arc(name: str, places: Any) -> Any:
        """2404.09204, scalable positional embeddings: spherical interpolation between two anchors of length 1."""
        first, last = functional.normalize(weights[f"positions.{name}"], dim=1)
        angle = torch.arccos(first @ last)
        return torch.stack(
            [(torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * last) / torch.sin(angle) for t in places]
        )

    def positions(rows: int, cols: int, each: int) -> Any:
        """Factorised: of each tile [each * each], a row's and a column's; places are middles, over the canvas."""
        down = arc("rows", (torch.arange(rows * each) + 0.5) / (rows * each))
        across = arc("cols", (torch.arange(cols * each) + 0.5) / (cols * each))
        canvas = (down[:, None] + across[None]) * weights["positions.scale"]
        tiles = [
            canvas[row * each : (row + 1) * each, col * each : (col + 1) * each].flatten(0, 1)
            for row in range(rows)
            for col in range(cols)
        ]
        return torch.stack(tiles)

    def attended(name: str, x: Any, seen: Any, of_queries: Any, of_keys: Any) -> Any:
        query, key = linear(f"{name}.q_proj", x) + of_queries, linear(f"{name}.k_proj", seen) + of_keys
        parts = (
            each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (query, key, linear(f"{name}.v_proj", seen))
        )
        return linear(f"{name}.o_proj", functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))

    def run(depths: list[Any], rows: int, cols: int) -> Any:
        of_queries, of_keys = positions(rows, cols, side), positions(rows, cols, grid)
        # query proposal network: two layers with GELU, max pooling, a linear projection
        proposed = two("query_proposal", depths[0]).transpose(1, 2).unflatten(2, (grid, grid))
        pooled = functional.max_pool2d(proposed, stride).flatten(2).transpose(1, 2)
        x = linear("query_proposal.proj", pooled)
        for number, seen in enumerate(depths):  # multi-level cross-attention: each layer its own stage (figure 3 b)
            layer = f"layers.{number}."
            if number:
                normed = norm(f"{layer}self_attn_norm", x)
                x = x + attended(f"{layer}self_attn", normed, normed, of_queries, of_queries)
            seen, normed = norm(f"{layer}seen_norm", seen), norm(f"{layer}cross_attn_norm", x)
            x = x + attended(f"{layer}cross_attn", normed, seen, of_queries, of_keys)
            x = x + two(f"{layer}mlp", norm(f"{layer}mlp_norm", x))
        x = norm("norm", x)
        lines = []  # rearrangement: neighbours of a line become one token, lines in the order of reading
        for row in range(rows):
            for line in range(side):
                for col in range(cols):
                    of_line = x[row * cols + col].unflatten(0, (side, side))[line]
                    lines.append(of_line.reshape(side // window, -1))
        return linear("projection", torch.cat(lines))

    return run
