"""Tiny Granite 4 Vision checkpoints: Q-Formers in windows of a tile, features before several layers of a Granite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blip_shapes import qformer_shapes
from checkpoints import (
    CLIP_MEAN,
    CLIP_STD,
    CONTROL,
    CONTROL_IDS,
    NAMED,
    RESCALING,
    TEMPLATE,
    TILE_PX,
    llava_config,
    save_byte_tokenizer,
    save_model,
    save_processor,
    write_json,
)
from weight_shapes import Config, Shapes, decoder_shapes, linear_shapes, norm_shapes, tower_shapes

GRIDS = ((1, 1), (1, 3), (2, 1), (2, 2), (3, 2))
WIDTH = 128  # heads of the Q-Formers are 64 wide, whatever a config says


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "siglip-first-layer-among-the-takers": _config(
            "siglip",
            {},
            deepstack_layer_map=[[-3, 3], [2, 0]],
            spatial_target_layers=[4, 1, 2, 5],
            vision_feature_select_strategy="full",
            downsample_rate="2/4",
        ),
        "clip-tied-embeddings-left-empty": _config(
            "clip",
            {
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "attention_bias": True,
                "hidden_size": 56,
                "embedding_multiplier": 0.6,
                "attention_multiplier": 0.2,
                "residual_multiplier": 0.4,
            },
            deepstack_layer_map=[[1, 3]],
            spatial_target_layers=[2, 1, 5, 4],
            spatial_vision_layer=-2,
            downsample_rate="1/2",
            qformer_config={
                "model_type": "blip_2_qformer",
                "num_hidden_layers": 2,
                "intermediate_size": 40,
                "hidden_act": "relu",
            },
            tie_word_embeddings=True,
        ),
    }


def _config(tower: str, text: Config, **top: Any) -> Config:
    words = {
        "model_type": "granite4_vision_text",
        "hidden_size": 40,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "num_hidden_layers": 6,
        "embedding_multiplier": 1.6,
        "attention_multiplier": 0.1,
        "residual_multiplier": 0.3,
        "logits_scaling": 1.7,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": top.get("tie_word_embeddings", False),
        **text,
    }
    config = llava_config(tower, "granite", **{"tie_word_embeddings": False, **top})
    config["text_config"] |= words
    config["vision_config"] |= {"hidden_size": WIDTH, "num_attention_heads": 2}
    config["image_grid_pinpoints"] = [[rows * TILE_PX, cols * TILE_PX] for rows, cols in GRIDS]
    named = {"architectures": ["Granite4VisionForConditionalGeneration"], "model_type": "granite4_vision"}
    queries = {"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 56}
    config.setdefault("qformer_config", {**queries, "cross_attention_frequency": 1})
    return {**config, **named}


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32."""
    is_clip = config["vision_config"]["model_type"] == "clip_vision_model"
    side = {"height": TILE_PX, "width": TILE_PX}
    images = {
        "image_processor_type": "LlavaNextImageProcessor",
        "image_grid_pinpoints": config["image_grid_pinpoints"],
        "size": side,
        "crop_size": side,
        "do_center_crop": False,
        "do_resize": True,
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        **RESCALING,
    }
    settings = {
        "patch_size": config["vision_config"]["patch_size"],
        "num_additional_image_tokens": int(is_clip),
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
        "downsample_rate": config["downsample_rate"],
    }
    save_model(folder, config, _shapes(config))
    write_json(folder / "generation_config.json", CONTROL_IDS)
    save_processor(folder, "Granite4VisionProcessor", images, image_token="<image>", **settings)
    save_byte_tokenizer(folder, CONTROL, **NAMED)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _shapes(config: Config) -> Shapes:
    text, size = config["text_config"], config["text_config"]["hidden_size"]
    shapes = decoder_shapes({**text, "model_type": "llama"}, "model.language_model.")
    shapes |= tower_shapes(config["vision_config"], "model.vision_tower.")
    shapes["model.image_newline"] = (size,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], size)
    query_side, side = (int(part) for part in config["downsample_rate"].split("/"))
    queries = {**config["qformer_config"], "hidden_size": WIDTH}
    numbers = range(len(config["deepstack_layer_map"]))
    ways = [f"model.layerwise_projectors.{number}." for number in numbers]
    for way in [*ways, *(f"model.spatial_projectors.{number}." for number in range(4))]:
        shapes |= {f"{way}{name}": shape for name, shape in qformer_shapes(queries, WIDTH).items()}
        shapes |= norm_shapes(WIDTH, f"{way}norm") | linear_shapes(f"{way}out_linear", size, WIDTH)
        shapes |= {f"{way}query": (1, query_side**2, WIDTH), f"{way}image_positions": (1, side**2, WIDTH)}
    return shapes
