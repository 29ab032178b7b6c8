"""Names and sizes of the weights of BLIP-2 and InstructBLIP: a tower, a Q-Former, an OPT."""

from __future__ import annotations

from weight_shapes import Config, Shapes, linear_shapes, norm_shapes


def opt_shapes(text: Config, prefix: str) -> Shapes:
    """Name the weights of an OPT without its head."""
    width, inner = text["hidden_size"], text["ffn_dim"]
    shapes: Shapes = {
        f"{prefix}embed_tokens.weight": (text["vocab_size"], width),
        f"{prefix}embed_positions.weight": (text["max_position_embeddings"] + 2, width),
        **norm_shapes(width, f"{prefix}final_layer_norm"),
    }
    for layer in (f"{prefix}layers.{number}." for number in range(text["num_hidden_layers"])):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear_shapes(f"{layer}self_attn.{name}", width, width)
        shapes |= linear_shapes(f"{layer}fc1", inner, width) | linear_shapes(f"{layer}fc2", width, inner)
        shapes |= norm_shapes(width, f"{layer}self_attn_layer_norm", f"{layer}final_layer_norm")
    return shapes


def tower_shapes(vision: Config) -> Shapes:
    """Name the weights of the tower."""
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    shapes: Shapes = {
        "vision_model.embeddings.class_embedding": (1, 1, width),
        "vision_model.embeddings.position_embedding": (1, (vision["image_size"] // patch) ** 2 + 1, width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        **norm_shapes(width, "vision_model.post_layernorm"),
    }
    for layer in (f"vision_model.encoder.layers.{number}." for number in range(vision["num_hidden_layers"])):
        shapes |= linear_shapes(f"{layer}self_attn.qkv", 3 * width, width)
        shapes |= linear_shapes(f"{layer}self_attn.projection", width, width)
        shapes |= linear_shapes(f"{layer}mlp.fc1", inner, width) | linear_shapes(f"{layer}mlp.fc2", width, inner)
        shapes |= norm_shapes(width, f"{layer}layer_norm1", f"{layer}layer_norm2")
    return shapes


def qformer_shapes(queries: Config, image_width: int, *, reads: bool = False) -> Shapes:
    """Name the weights of the Q-Former; `reads`: it has words, and what it makes of them."""
    width, inner = queries["hidden_size"], queries["intermediate_size"]
    shapes = norm_shapes(width, "qformer.embeddings.layernorm" if reads else "qformer.layernorm")
    if reads:
        shapes["qformer.embeddings.word_embeddings.weight"] = (queries["vocab_size"], width)
        shapes["qformer.embeddings.position_embeddings.weight"] = (queries["max_position_embeddings"], width)
    for number in range(queries["num_hidden_layers"]):
        layer = f"qformer.encoder.layer.{number}."
        looks = {"attention": width}
        looks |= {} if number % queries.get("cross_attention_frequency", 2) else {"crossattention": image_width}
        for name, seen in looks.items():
            shapes |= linear_shapes(f"{layer}{name}.attention.query", width, width)
            shapes |= linear_shapes(f"{layer}{name}.attention.key", width, seen)
            shapes |= linear_shapes(f"{layer}{name}.attention.value", width, seen)
            shapes |= linear_shapes(f"{layer}{name}.output.dense", width, width)
            shapes |= norm_shapes(width, f"{layer}{name}.output.LayerNorm")
        for suffix in ("_query", "") if reads else ("_query",):
            shapes |= linear_shapes(f"{layer}intermediate{suffix}.dense", inner, width)
            shapes |= linear_shapes(f"{layer}output{suffix}.dense", width, inner)
            shapes |= norm_shapes(width, f"{layer}output{suffix}.LayerNorm")
    return shapes
