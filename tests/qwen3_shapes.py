"""The weights of Qwen3-VL's tower and of Qwen3.5's decoder: names and shapes as transformers saves them."""

from __future__ import annotations

from pathlib import Path

from safetensors.numpy import load_file, save_file
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes


def tower_shapes(vision: Config, prefix: str) -> Shapes:
    """Name every weight of the tower and its mergers."""
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    shapes: Shapes = {
        f"{prefix}patch_embed.proj.weight": (width, 3, 2, patch, patch),
        f"{prefix}patch_embed.proj.bias": (width,),
        f"{prefix}pos_embed.weight": (vision["num_position_embeddings"], width),
    }
    for block in (f"{prefix}blocks.{number}." for number in range(vision["depth"])):
        shapes |= linear_shapes(f"{block}attn.qkv", 3 * width, width) | linear_shapes(f"{block}attn.proj", width, width)
        shapes |= linear_shapes(f"{block}mlp.linear_fc1", inner, width)
        shapes |= linear_shapes(f"{block}mlp.linear_fc2", width, inner)
        shapes |= norm_shapes(width, f"{block}norm1", f"{block}norm2")
    mergers = {f"{prefix}merger": width}
    mergers |= {
        f"{prefix}deepstack_merger_list.{n}": 4 * width for n in range(len(vision.get("deepstack_visual_indexes", ())))
    }
    for merger, normed in mergers.items():
        shapes |= norm_shapes(normed, f"{merger}.norm") | linear_shapes(f"{merger}.linear_fc1", 4 * width, 4 * width)
        shapes |= linear_shapes(f"{merger}.linear_fc2", vision["out_hidden_size"], 4 * width)
    return shapes


def gated_decoder_shapes(text: Config, prefix: str) -> Shapes:
    """Name every weight of a decoder of gated delta rules and gated attention but the head."""
    width, inner = text["hidden_size"], text["intermediate_size"]
    found: Shapes = {f"{prefix}embed_tokens.weight": (text["vocab_size"], width), f"{prefix}norm.weight": (width,)}
    for number, kind in enumerate(text["layer_types"]):
        layer = f"{prefix}layers.{number}."
        found |= {f"{layer}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
        for name, rows, columns in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
            found |= linear_shapes(f"{layer}mlp.{name}_proj", rows, columns, bias=False)
        made = _attention_shapes if kind == "full_attention" else _recurrent_shapes
        found |= made(text, layer)
    return found


def _attention_shapes(text: Config, layer: str) -> Shapes:
    width, head, bias = text["hidden_size"], text["head_dim"], text.get("attention_bias", False)
    queries, kv = text["num_attention_heads"] * head, text["num_key_value_heads"] * head
    found: Shapes = {f"{layer}self_attn.{name}_norm.weight": (head,) for name in "qk"}
    for name, rows, columns in (("q", 2 * queries, width), ("k", kv, width), ("v", kv, width), ("o", width, queries)):
        found |= linear_shapes(f"{layer}self_attn.{name}_proj", rows, columns, bias=bias)
    return found


def _recurrent_shapes(text: Config, layer: str) -> Shapes:
    width, heads = text["hidden_size"], text["linear_num_value_heads"]
    values = heads * text["linear_value_head_dim"]
    mixed = 2 * text["linear_num_key_heads"] * text["linear_key_head_dim"] + values
    own = f"{layer}linear_attn."
    found: Shapes = {
        f"{own}conv1d.weight": (mixed, 1, text["linear_conv_kernel_dim"]),
        f"{own}dt_bias": (heads,),
        f"{own}A_log": (heads,),
        f"{own}norm.weight": (text["linear_value_head_dim"],),
    }
    for name, rows in (("qkv", mixed), ("z", values), ("a", heads), ("b", heads)):
        found |= linear_shapes(f"{own}in_proj_{name}", rows, width, bias=False)
    return found | linear_shapes(f"{own}out_proj", width, values, bias=False)


def as_trained(path: Path) -> None:
    """Let drawn weights of such a decoder be like trained ones.

    Its norms are around 0, for they multiply by 1 + w; some heads forget in a token and others in hundreds.
    """
    weights = load_file(path)
    for name, weight in weights.items():
        if name.endswith("norm.weight") and "language_model" in name and "linear_attn" not in name:
            weights[name] = weight - 1
        elif name.endswith("A_log"):
            weights[name] = 10 * weight - 2
    save_file(weights, path, {"format": "pt"})
