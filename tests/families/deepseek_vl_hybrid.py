"""Tiny hybrid DeepSeek-VL checkpoints: SAM's tower beside SigLIP's, each with colours of its own."""

from __future__ import annotations

from pathlib import Path

from checkpoints import save_model
from family_deepseek_vl import config as plain_config
from family_deepseek_vl import save_beside_weights
from family_deepseek_vl import shapes as plain_shapes
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes

LARGE_PX = 48


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "windows-tied-first-global-layer-last": _config({"global_attn_indexes": [2]}),
        "untied-no-even-windows": _config(
            {"global_attn_indexes": [0, 1], "window_size": 5, "num_attention_heads": 2, "mlp_dim": 52},
            tie_word_embeddings=False,
        ),
    }


def _config(large: Config, **top: bool) -> Config:
    tower = {
        "model_type": "sam_vision_model",
        "hidden_size": 24,
        "output_channels": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": LARGE_PX,
        "patch_size": 4,
        "window_size": 4,
        "mlp_dim": 40,
        **large,
    }
    words = {"num_attention_heads": 2, "head_dim": 24}
    return plain_config("DeepseekVLHybrid", "deepseek_vl_hybrid", words, high_res_vision_config=tower, **top)


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    save_model(folder, config, _shapes(config))
    side = config["vision_config"]["image_size"]
    save_beside_weights(
        folder,
        config,
        "DeepseekVLHybrid",
        size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        high_res_size={"height": LARGE_PX, "width": LARGE_PX},
        high_res_image_mean=[0.2, 0.5, 0.7],
        high_res_image_std=[0.3, 0.4, 0.2],
    )


def _shapes(config: Config) -> Shapes:
    text, small, large = config["text_config"], config["vision_config"], config["high_res_vision_config"]
    shapes = {name: shape for name, shape in plain_shapes(config).items() if ".aligner." not in name}
    half, channels = text["hidden_size"] // 2, large["output_channels"]
    shapes |= linear_shapes("model.aligner.vision_proj", half, small["hidden_size"])
    shapes |= linear_shapes("model.aligner.high_res_vision_proj", half, 4 * channels)
    shapes |= linear_shapes("model.aligner.proj", text["hidden_size"], text["hidden_size"])
    shapes |= _neck(large, "model.high_res_vision_neck.")
    shapes["model.high_res_vision_proj.conv1.weight"] = (2 * channels, channels, 3, 3)
    shapes["model.high_res_vision_proj.conv2.weight"] = (4 * channels, 2 * channels, 3, 3)
    shapes["model.high_res_vision_alpha"] = (1,)
    return shapes | _sam(large, "model.high_res_vision_model.vision_encoder.")


def _sam(large: Config, prefix: str) -> Shapes:
    width, grid = large["hidden_size"], large["image_size"] // large["patch_size"]
    shapes: Shapes = {
        f"{prefix}patch_embed.projection.weight": (width, 3, large["patch_size"], large["patch_size"]),
        f"{prefix}patch_embed.projection.bias": (width,),
        f"{prefix}pos_embed": (1, grid, grid, width),
    }
    for number in range(large["num_hidden_layers"]):
        layer = f"{prefix}layers.{number}."
        side = grid if number in large["global_attn_indexes"] else large["window_size"]
        shapes |= norm_shapes(width, f"{layer}layer_norm1", f"{layer}layer_norm2")
        shapes |= linear_shapes(f"{layer}attn.qkv", 3 * width, width)
        shapes |= linear_shapes(f"{layer}attn.proj", width, width)
        shapes |= {
            f"{layer}attn.rel_pos_{axis}": (2 * side - 1, width // large["num_attention_heads"]) for axis in "hw"
        }
        shapes |= linear_shapes(f"{layer}mlp.lin1", large["mlp_dim"], width)
        shapes |= linear_shapes(f"{layer}mlp.lin2", width, large["mlp_dim"])
    return shapes | _neck(large, f"{prefix}neck.")


def _neck(large: Config, prefix: str) -> Shapes:
    width, channels = large["hidden_size"], large["output_channels"]
    shapes = norm_shapes(channels, f"{prefix}layer_norm1", f"{prefix}layer_norm2")
    shapes[f"{prefix}conv1.weight"] = (channels, width, 1, 1)
    shapes[f"{prefix}conv2.weight"] = (channels, channels, 3, 3)
    return shapes
