"""Tiny nanoVLM checkpoints under its code's names: a grid of tiles with markers, and one tile with a foreign template.

Its code starts from transformers' SigLIP and Llama and maps their weights (huggingface/nanoVLM, `from_pretrained` of
models/vision_transformer.py and models/language_model.py): the reference is those models, mapped back. Its own are what
makes tokens of images and of patches (data/custom_transforms.py, data/processors.py, models/modality_projector.py),
written here. Of an image's whole it is told with a byte a number, as Pillow has it; see test_nanovlm.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import save_byte_tokenizer, save_model
from PIL import Image
from safetensors.numpy import load_file, save_file
from weight_shapes import Config, Shapes, linear_shapes, norm_shapes

START, END, FILE = "<|im_start|>", "<|im_end|>", "<filename>"
SPECIAL = ["<|endoftext|>", START, END, FILE]
CHAT = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}" + CHAT
MARKERS = {f"r{row}c{col}": f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)}


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "tiles-three-heads-tied": _config(
            {"global_image_token": "<|global|>", **MARKERS}, max_img_size=96, resize_to_max_side_len=True
        ),
        "one-tile-shared-keys-untied": _config(
            {},
            vit_img_size=36,
            vit_patch_size=6,
            mp_pixel_shuffle_factor=3,
            lm_hidden_dim=64,
            lm_n_heads=4,
            lm_n_kv_heads=2,
            lm_tie_weights=False,
            lm_chat_template=None,
        ),
    }


def _config(tokens: Config, **changed: Any) -> Config:
    config = {
        "vit_hidden_dim": 36,
        "vit_inter_dim": 52,
        "vit_patch_size": 4,
        "vit_img_size": 32,
        "vit_n_heads": 3,
        "vit_dropout": 0.0,
        "vit_n_blocks": 2,
        "vit_ln_eps": 1e-6,
        "vit_cls_flag": False,
        "vit_model_type": "google/siglip2-base-patch16-512",
        "lm_hidden_dim": 48,
        "lm_inter_dim": 72,
        "lm_rms_eps": 1e-5,
        "lm_re_base": 900,
        "lm_max_position_embeddings": 1024,
        "lm_base_vocab_size": 256 + len(SPECIAL),
        "extra_token_amount": 1 + len(tokens),
        "lm_vocab_size": 256 + len(SPECIAL) + 1 + len(tokens),
        "lm_n_heads": 3,
        "lm_n_kv_heads": 1,
        "lm_dropout": 0.0,
        "lm_n_blocks": 2,
        "lm_attn_scaling": 1.0,
        "lm_max_length": 512,
        "lm_use_tokens": False,
        "lm_tie_weights": True,
        "lm_model_type": "HuggingFaceTB/SmolLM2-360M-Instruct",
        "lm_tokenizer": "HuggingFaceTB/SmolLM2-360M-Instruct",
        "lm_chat_template": CHAT,
        "mp_pixel_shuffle_factor": 2,
        "vlm_extra_tokens": {"image_token": "<|image|>", **tokens},
        "vlm_load_backbone_weights": True,
        "vlm_checkpoint_path": "checkpoints",
        "hf_repo_name": "nanoVLM",
        **changed,
    }
    side = config["vit_img_size"] // config["vit_patch_size"] // config["mp_pixel_shuffle_factor"]
    return {key: value for key, value in {"mp_image_token_length": side**2, **config}.items() if value is not None}


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, and its decoder's tokenizer, which knows no images."""
    save_model(folder, config, shapes_of(config))
    (folder / "config.json").write_text(json.dumps(config, indent=4))  # the code's own keys, tokens in their order
    stored = load_file(folder / "model.safetensors")
    for name in stored:
        if ".ln" in name and name.endswith("weight"):
            stored[name] += np.float32(1)
        if name.endswith(("token_embedding.weight", "position_embedding", "decoder.head.weight")):
            stored[name] *= np.float32(0.5 * math.prod(stored[name].shape[1:]) ** 0.5)
    head = config["lm_hidden_dim"] // config["lm_n_heads"]
    turning = config["lm_re_base"] ** (-np.arange(0, head, 2, dtype=np.float32) / head)
    stored["decoder.rotary_embd.inv_freq"] = turning.astype(np.float32)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    settings = {} if "lm_chat_template" in config else {"chat_template": WITH_SYSTEM}
    save_byte_tokenizer(folder, SPECIAL, eos_token=END, bos_token=START, **settings)


def shapes_of(config: Config) -> Shapes:
    """Name every weight."""
    size, patch = config["vit_hidden_dim"], config["vit_patch_size"]
    at = "vision_encoder.patch_embedding."
    shapes: Shapes = {
        f"{at}conv.weight": (size, 3, patch, patch),
        f"{at}conv.bias": (size,),
        f"{at}position_embedding": (1, (config["vit_img_size"] // patch) ** 2, size),
        **norm_shapes(size, "vision_encoder.layer_norm"),
    }
    for block in (f"vision_encoder.blocks.{number}." for number in range(config["vit_n_blocks"])):
        shapes |= linear_shapes(f"{block}attn.qkv_proj", 3 * size, size) | norm_shapes(size, f"{block}ln1")
        shapes |= linear_shapes(f"{block}attn.out_proj", size, size) | norm_shapes(size, f"{block}ln2")
        shapes |= linear_shapes(f"{block}mlp.fc1", config["vit_inter_dim"], size)
        shapes |= linear_shapes(f"{block}mlp.fc2", size, config["vit_inter_dim"])
    width, inner = config["lm_hidden_dim"], config["lm_inter_dim"]
    shapes |= {
        "MP.proj.weight": (width, size * config["mp_pixel_shuffle_factor"] ** 2),
        "decoder.norm.weight": (width,),
    }
    # of a tied matrix, safetensors keeps the first name
    table = "head" if config["lm_tie_weights"] else "token_embedding"
    shapes |= {f"decoder.{name}.weight": (config["lm_vocab_size"], width) for name in {"head", table}}
    kv = width // config["lm_n_heads"] * config["lm_n_kv_heads"]
    for block in (f"decoder.blocks.{number}." for number in range(config["lm_n_blocks"])):
        shapes |= {f"{block}norm{number}.weight": (width,) for number in (1, 2)}
        shapes |= {f"{block}attn.{name}_proj.weight": (width, width) for name in ("q", "out")}
        shapes |= {f"{block}attn.{name}_proj.weight": (kv, width) for name in ("k", "v")}
        shapes |= {f"{block}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes[f"{block}mlp.down_proj.weight"] = (width, inner)
    return shapes


def processor(folder: Path) -> Any:
    """Return the tokenizer as the code opens it, and the config."""
    from transformers import AutoTokenizer

    config = json.loads((folder / "config.json").read_text())
    given = {"extra_special_tokens": config["vlm_extra_tokens"]} if "vlm_extra_tokens" in config else {}
    if "lm_chat_template" in config:
        given["chat_template"] = config["lm_chat_template"]
    return AutoTokenizer.from_pretrained(folder, **given), config


def inputs(found: Any, parts: list[Any]) -> dict[str, Any]:
    """Return the tokens of one message, images before its text, and the tiles of all of them."""
    import torch

    tokenizer, config = found
    shown = [part for part in parts if not isinstance(part, str)]
    text = "".join(part for part in parts if isinstance(part, str))
    cut = [tiles_of(image, config) for image in shown]
    message = {"role": "user", "content": image_string(config, [grid for _, grid in cut]) + text}
    ids = tokenizer.apply_chat_template([message], tokenize=True, add_generation_prompt=True, return_dict=False)
    made: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    return {**made, "tiles": torch.cat([tiles for tiles, _ in cut])} if shown else made


def image_string(config: Config, grids: list[tuple[int, int]]) -> str:
    """Return what stands for images before a text (`get_image_string`)."""
    tokens, written = config["vlm_extra_tokens"], ""
    rows = tokens["image_token"] * config["mp_image_token_length"]
    if "max_img_size" not in config:
        return rows * len(grids)
    for number, (down, across) in enumerate(grids):
        written += f"<image: {number}>" if len(grids) > 1 else ""
        written += tokens["global_image_token"] + rows
        if down * across > 1:
            written += "".join(
                f"{tokens[f'r{1 + at // across}c{1 + at % across}']}{rows}" for at in range(down * across)
            )
    return written


def tiles_of(image: Image.Image, config: Config) -> tuple[Any, tuple[int, int]]:
    """Return [n, 3, side, side] the whole and the tiles of an image, and how many down and across."""
    import torch

    side = config["vit_img_size"]
    if "max_img_size" not in config:
        return _numbers(image.resize((side, side), Image.Resampling.BILINEAR))[None], (1, 1)
    picture = stretched(image, config)
    pixels = _numbers(picture)
    down, across = pixels.shape[1] // side, pixels.shape[2] // side
    cut = [
        pixels[:, row * side : (row + 1) * side, col * side : (col + 1) * side]
        for row in range(down)
        for col in range(across)
    ]
    whole = [_numbers(picture.resize((side, side), Image.Resampling.BILINEAR))] if len(cut) > 1 else []
    return torch.stack([*whole, *cut]), (down, across)


def stretched(image: Image.Image, config: Config) -> Image.Image:
    """Return an image whose sides are whole tiles (`DynamicResize`)."""
    side, most, (width, height) = config["vit_img_size"], config["max_img_size"], image.size
    long = most if config.get("resize_to_max_side_len") else min(most, math.ceil(max(width, height) / side) * side)
    short = max(math.ceil(min(width, height) * (long / max(width, height)) / side) * side, side)
    return image.resize((long, short) if width >= height else (short, long), Image.Resampling.BICUBIC)


def _numbers(image: Image.Image) -> Any:
    import torch

    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def model(folder: Path) -> Any:
    """Return the reference: what answers (input_ids, tiles) with logits.

    Raises:
        ValueError: A weight is left over.
    """
    from safetensors.torch import load_file as load_torch

    config = json.loads((folder / "config.json").read_text())
    weights = load_torch(folder / "model.safetensors")
    weights.pop("decoder.rotary_embd.inv_freq")
    tower, decoder = _siglip(config, weights), _llama(config, weights)
    matrix, factor = weights.pop("MP.proj.weight"), config["mp_pixel_shuffle_factor"]
    if weights:
        raise ValueError(f"left over: {sorted(weights)}")
    token = config["lm_base_vocab_size"] if "vlm_extra_tokens" in config else 256 + SPECIAL.index(FILE)

    class Reference:
        def __call__(self, input_ids: Any, attention_mask: Any = None, tiles: Any = None) -> Any:
            embeds = decoder.model.embed_tokens(input_ids).clone()
            if tiles is not None:
                states = tower(tiles).last_hidden_state
                squares = [_squares(tile, factor) @ matrix.T for tile in states]
                rows = [row for tile in squares for row in tile]
                places = (input_ids[0] == token).nonzero()[: len(rows), 0]  # an answer may say it
                for place, row in zip(places, rows, strict=True):
                    embeds[0, place] = row
            return decoder(inputs_embeds=embeds)

    return Reference()


def _squares(states: Any, factor: int) -> Any:
    """Return [n, factor * factor * D] the squares of patches, each row by row (`pixel_shuffle`)."""
    import torch

    side = math.isqrt(len(states))
    rows = states.unflatten(0, (side, side))
    return torch.stack(
        [
            rows[top : top + factor, left : left + factor].flatten()
            for top in range(0, side, factor)
            for left in range(0, side, factor)
        ]
    )


def _siglip(config: Config, weights: dict[str, Any]) -> Any:
    """Return transformers' tower, and take its weights out of those."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=config["vit_hidden_dim"],
            intermediate_size=config["vit_inter_dim"],
            num_hidden_layers=config["vit_n_blocks"],
            num_attention_heads=config["vit_n_heads"],
            image_size=config["vit_img_size"],
            patch_size=config["vit_patch_size"],
            layer_norm_eps=config["vit_ln_eps"],
            vision_use_head=False,
        )
    ).eval()
    found = {}
    for name in [name for name in weights if name.startswith("vision_encoder.")]:
        weight, key = weights.pop(name), name.removeprefix("vision_encoder.")
        for theirs, ours in (
            ("patch_embedding.conv", "embeddings.patch_embedding"),
            ("patch_embedding.position_embedding", "embeddings.position_embedding.weight"),
            ("layer_norm.", "post_layernorm."),
            ("blocks.", "encoder.layers."),
            (".ln", ".layer_norm"),
            (".attn.", ".self_attn."),
        ):
            key = key.replace(theirs, ours)
        if "qkv_proj" in key:
            found |= {key.replace("qkv", part): each for part, each in zip("qkv", weight.chunk(3), strict=True)}
        else:
            found[key] = weight[0] if "position" in key else weight
    own = set(tower.state_dict())
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in own) else ""
    tower.load_state_dict({f"{prefix}{key}": weight for key, weight in found.items()})
    return tower


def _llama(config: Config, weights: dict[str, Any]) -> Any:
    """Return transformers' decoder, and take its weights out of those."""
    from transformers import LlamaConfig, LlamaForCausalLM

    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["lm_vocab_size"],
            hidden_size=config["lm_hidden_dim"],
            intermediate_size=config["lm_inter_dim"],
            num_hidden_layers=config["lm_n_blocks"],
            num_attention_heads=config["lm_n_heads"],
            num_key_value_heads=config["lm_n_kv_heads"],
            max_position_embeddings=config["lm_max_position_embeddings"],
            rms_norm_eps=config["lm_rms_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": config["lm_re_base"]},
        )
    ).eval()
    found = {}
    for name in [name for name in weights if name.startswith("decoder.")]:
        weight, key = weights.pop(name), name.removeprefix("decoder.")
        for theirs, ours in (
            ("blocks.", "layers."),
            (".attn.out_proj.", ".self_attn.o_proj."),
            (".attn.", ".self_attn."),
            (".norm1.", ".input_layernorm."),
            (".norm2.", ".post_attention_layernorm."),
            ("token_embedding.", "embed_tokens."),
        ):
            key = key.replace(theirs, ours)
        found["lm_head.weight" if key == "head.weight" else f"model.{key}"] = weight
    found.setdefault("model.embed_tokens.weight", found["lm_head.weight"])
    decoder.load_state_dict(found)
    return decoder
