"""The weights that the DeepSeek-OCR models share: SAM's tower with two convolutions behind it, a decoder of experts."""

from __future__ import annotations

from pathlib import Path

from safetensors.numpy import load_file, save_file
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, norm_shapes


def sam_shapes(sam: Config, prefix: str, *, by_authors: bool) -> Shapes:
    """Name every weight of SAM's tower as transformers names them, or as the authors do."""
    width, patch, channels = (sam[key] for key in ("hidden_size", "patch_size", "output_channels"))
    grid, head, inner = sam["image_size"] // patch, width // sam["num_attention_heads"], sam["mlp_dim"]
    layers, norm = ("blocks", "norm") if by_authors else ("layers", "layer_norm")
    neck = [f"neck.{number}" for number in range(4)] if by_authors else None
    conv1, norm1, conv2, norm2 = neck or ("neck.conv1", "neck.layer_norm1", "neck.conv2", "neck.layer_norm2")
    first, second = ("net_2", "net_3") if by_authors else ("proj.conv1", "proj.conv2")
    embed = f"{prefix}patch_embed.{'proj' if by_authors else 'projection'}"
    shrunk = sam["downsample_channels"]
    shapes: Shapes = {
        f"{prefix}pos_embed": (1, grid, grid, width),
        f"{embed}.weight": (width, 3, patch, patch),
        f"{embed}.bias": (width,),
        f"{prefix}{conv1}.weight": (channels, width, 1, 1),
        f"{prefix}{conv2}.weight": (channels, channels, 3, 3),
        f"{prefix}{first}.weight": (shrunk[0], channels, 3, 3),
        f"{prefix}{second}.weight": (shrunk[1], shrunk[0], 3, 3),
        **norm_shapes(channels, f"{prefix}{norm1}", f"{prefix}{norm2}"),
    }
    for number in range(sam["num_hidden_layers"]):
        layer = f"{prefix}{layers}.{number}."
        side = grid if number in sam["global_attn_indexes"] else sam["window_size"]
        shapes |= {f"{layer}attn.rel_pos_{axis}": (2 * side - 1, head) for axis in "hw"}
        shapes |= linear_shapes(f"{layer}attn.qkv", 3 * width, width) | linear_shapes(f"{layer}attn.proj", width, width)
        shapes |= linear_shapes(f"{layer}mlp.lin1", inner, width) | linear_shapes(f"{layer}mlp.lin2", width, inner)
        shapes |= norm_shapes(width, f"{layer}{norm}1", f"{layer}{norm}2")
    return shapes


def clip_layers_shapes(clip: Config, prefix: str) -> Shapes:
    """Name every weight of CLIP's layers on patches of SAM's, as the authors do; CLIP's own patches are never read."""
    width, inner = clip["hidden_size"], clip["intermediate_size"]
    shapes: Shapes = {
        f"{prefix}embeddings.class_embedding": (width,),
        f"{prefix}embeddings.patch_embedding.weight": (width, 3, 14, 14),
        f"{prefix}embeddings.position_embedding.weight": ((clip["image_size"] // clip["patch_size"]) ** 2 + 1, width),
        **norm_shapes(width, f"{prefix}pre_layrnorm"),
    }
    for layer in (f"{prefix}transformer.layers.{number}." for number in range(clip["num_hidden_layers"])):
        shapes |= norm_shapes(width, f"{layer}layer_norm1", f"{layer}layer_norm2")
        shapes |= linear_shapes(f"{layer}self_attn.qkv_proj", 3 * width, width)
        shapes |= linear_shapes(f"{layer}self_attn.out_proj", width, width)
        shapes |= linear_shapes(f"{layer}mlp.fc1", inner, width) | linear_shapes(f"{layer}mlp.fc2", width, inner)
    return shapes


def mixture_shapes(text: Config, prefix: str) -> Shapes:
    """Name every weight of a decoder of experts without its head."""
    width, inner = text["hidden_size"], text["moe_intermediate_size"]
    sparse = [number for number, kind in enumerate(text["mlp_layer_types"]) if kind == "sparse"]
    of_experts = tuple(f"{prefix}layers.{number}.mlp." for number in sparse)
    shapes = {name: shape for name, shape in decoder_shapes(text, prefix).items() if not name.startswith(of_experts)}
    for layer in of_experts:
        shapes |= linear_shapes(f"{layer}gate", text["n_routed_experts"], width, bias=False)
        shapes |= _feed_forward(f"{layer}shared_experts.", width, inner * text["n_shared_experts"])
        for expert in range(text["n_routed_experts"]):
            shapes |= _feed_forward(f"{layer}experts.{expert}.", width, inner)
    return shapes


def silence(folder: Path, token_id: int) -> None:
    """Let no answer of a checkpoint hold a token: its score is never the largest."""
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][token_id] = 0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _feed_forward(prefix: str, width: int, inner: int) -> Shapes:
    parts = (("gate", inner, width), ("up", inner, width), ("down", width, inner))
    return {f"{prefix}{name}_proj.weight": (rows, columns) for name, rows, columns in parts}
