"""Tiny Moondream 2 checkpoints in the authors' layout; crops, tower, decoder and prompts by a reference written here.

Nothing of it is in transformers. The reference follows what the authors' code does (vikhyat/moondream, moondream/torch,
19 June 2025: image_crops.py, vision.py, text.py, rope.py, moondream.py), one crop, one head and one token at a time.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import save_model, write_json
from PIL import Image
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from weight_shapes import Config, Shapes, linear_shapes

TAKES_VIDEOS = False
SPECIAL = ["<|endoftext|>", "<|one|>", "<|two|>", "<|three|>", "<|four|>", "<|coord|>", "<|size|>", "<|7|>", "<|8|>"]
SIZE_ID, ANSWER_ID = 6, 3
HEAD = 64


def geometries() -> dict[str, Config]:
    """Return configs by what is odd about them."""
    return {
        "narrow-tower-three-heads": _config(),
        "shared-keys-wide-margins": _config(
            {"dim": 192, "n_heads": 3, "n_kv_heads": 1, "n_layers": 3, "ff_dim": 80},
            {
                "enc_patch_size": 2,
                "crop_size": 14,
                "overlap_margin": 2,
                "max_crops": 12,
                "enc_dim": 40,
                "enc_n_heads": 2,
            },
        ),
    }


def _config(text: Config | None = None, vision: Config | None = None) -> Config:
    words = {"dim": 128, "ff_dim": 96, "n_layers": 2, "n_heads": 2, "max_context": 256, **(text or {})}
    tower = {
        "enc_dim": 36,
        "enc_patch_size": 4,
        "enc_n_layers": 2,
        "enc_ff_dim": 52,
        "enc_n_heads": 3,
        "crop_size": 20,
        "max_crops": 6,
        "overlap_margin": 1,
        "proj_inner_dim": 60,
        "proj_out_dim": words["dim"],
        **(vision or {}),
    }
    words |= {"vocab_size": 280, "prefix_attn": 1 + (tower["crop_size"] // tower["enc_patch_size"]) ** 2}
    region = {"dim": words["dim"], "coord_feat_dim": 8, "coord_out_dim": 16, "size_feat_dim": 8, "size_out_dim": 16}
    templates = {
        "caption": {
            "short": [1, *_bytes("cap"), 2, *_bytes("s"), 3],
            "normal": [1, *_bytes("cap"), 2, *_bytes("n"), 3],
        },
        "query": {"prefix": [1, *_bytes("query"), 2], "suffix": [3]},
        "detect": {"prefix": [1, *_bytes("find"), 2], "suffix": [3]},
        "point": None,
    }
    stated = {
        "text": words,
        "vision": tower,
        "region": {**region, "inner_dim": 24},
        "tokenizer": {"templates": templates},
    }
    return {"architectures": ["HfMoondream"], "model_type": "moondream1", "config": stated}


def _bytes(text: str) -> list[int]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [len(SPECIAL) + alphabet.index(letter) for letter in text]


def save(folder: Path, config: Config) -> None:
    """Write a whole checkpoint into `folder`, in float32, without a template; ends are those of an older tokenizer."""
    save_model(folder, config, _shapes(config["config"]))
    stored = load_file(folder / "model.safetensors")
    for name, weight in stored.items():
        if name.endswith(("ln.weight", "ln1.weight", "ln2.weight")):
            weight += np.float32(1)
        if name.endswith((".wte", ".pos_emb")):  # as drawn, what stands where would hardly be seen
            weight *= np.float32(0.7 * math.prod(weight.shape[1:]) ** 0.5)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "generation_config.json", {"bos_token_id": 256, "eos_token_id": 256})
    save_tokenizer(folder, SPECIAL)


def save_tokenizer(folder: Path, special: list[str]) -> None:
    """Write a byte-level tokenizer whose special tokens come first."""
    letters = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({text: number for number, text in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.save(str(folder / "tokenizer.json"))


def _shapes(config: Config) -> Shapes:
    words, tower, region = config["text"], config["vision"], config["region"]
    size, patch = tower["enc_dim"], tower["enc_patch_size"]
    at = "model.vision."
    shapes: Shapes = {f"{at}pos_emb": (1, (tower["crop_size"] // patch) ** 2, size)}
    shapes |= linear_shapes(f"{at}patch_emb", size, 3 * patch**2)
    for block in (f"{at}blocks.{number}." for number in range(tower["enc_n_layers"])):
        shapes |= linear_shapes(f"{block}attn.qkv", 3 * size, size) | linear_shapes(f"{block}attn.proj", size, size)
        shapes |= linear_shapes(f"{block}mlp.fc1", tower["enc_ff_dim"], size)
        shapes |= linear_shapes(f"{block}mlp.fc2", size, tower["enc_ff_dim"])
        shapes |= _norms(size, f"{block}ln1", f"{block}ln2")
    shapes |= _norms(size, f"{at}post_ln") | linear_shapes(f"{at}proj_mlp.fc1", tower["proj_inner_dim"], 2 * size)
    shapes |= linear_shapes(f"{at}proj_mlp.fc2", words["dim"], tower["proj_inner_dim"])
    width, at = words["dim"], "model.text."
    rows = width + 2 * HEAD * words.get("n_kv_heads", words["n_heads"])
    shapes |= {f"{at}wte": (words["vocab_size"], width)} | _norms(width, f"{at}post_ln")
    shapes |= linear_shapes(f"{at}lm_head", words["vocab_size"], width)
    for block in (f"{at}blocks.{number}." for number in range(words["n_layers"])):
        shapes |= linear_shapes(f"{block}attn.qkv", rows, width) | linear_shapes(f"{block}attn.proj", width, width)
        shapes |= linear_shapes(f"{block}mlp.fc1", words["ff_dim"], width) | _norms(width, f"{block}ln")
        shapes |= linear_shapes(f"{block}mlp.fc2", width, words["ff_dim"])
    for kind in ("coord", "size"):
        seen, inner, out = (region[key] for key in (f"{kind}_feat_dim", "inner_dim", f"{kind}_out_dim"))
        shapes |= linear_shapes(f"model.region.{kind}_encoder", width, seen)
        shapes |= linear_shapes(f"model.region.{kind}_decoder.fc1", inner, width)
        shapes |= linear_shapes(f"model.region.{kind}_decoder.fc2", out, inner)
        shapes[f"model.region.{kind}_features"] = (1 if kind == "coord" else 2, seen // 2)
    return shapes


def _norms(size: int, *names: str) -> Shapes:
    return {f"{name}.{kind}": (size,) for name in names for kind in ("weight", "bias")}


def conversations(given: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return messages that it takes, by the names of those that others take; an image alone asks for a caption."""
    (*_, large, _) = given["two images"]
    return {"text": given["text"], "one image": given["one image"], "two images": [large]}


def processor(folder: Path) -> Any:
    """Return the tokenizer and the config."""
    return Tokenizer.from_file(str(folder / "tokenizer.json")), json.loads((folder / "config.json").read_text())[
        "config"
    ]


def inputs(found: Any, parts: list[Any]) -> dict[str, Any]:
    """Return the tokens that the model is given one after the other, and the crops of an image."""
    import torch

    tokenizer, config = found
    tower, templates = config["vision"], config["tokenizer"]["templates"]
    shown = [part for part in parts if not isinstance(part, str)]
    asked = "".join(part for part in parts if isinstance(part, str))
    rows = (tower["crop_size"] // tower["enc_patch_size"]) ** 2
    ids = [0, *[SIZE_ID] * (rows * len(shown))]
    if asked:
        query = templates["query"]
        ids += [*query["prefix"], *tokenizer.encode(asked).ids, *query["suffix"], *query["suffix"]]
    else:
        ids += templates["caption"]["normal"]
    made: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    if shown:
        made["crops"], made["tiling"] = crops_of(shown[0], tower)
    return made


def crops_of(image: Image.Image, tower: Config) -> tuple[Any, tuple[int, int]]:
    """Return [1 + rows * cols, 3, side, side] the whole image and its crops, and (rows, cols)."""
    import torch

    side, margin = tower["crop_size"], tower["overlap_margin"] * tower["enc_patch_size"]
    step = side - 2 * margin
    rows, cols = tiling(image.height - 2 * margin, image.width - 2 * margin, step, tower["max_crops"])
    picture = np.asarray(image.resize((cols * step + 2 * margin, rows * step + 2 * margin), Image.Resampling.LANCZOS))
    cut = [np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))]
    for top in range(0, rows * step, step):
        for left in range(0, cols * step, step):
            cut.append(picture[top : top + side, left : left + side])
    return (torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2) / 255.0 - 0.5) / 0.5, (rows, cols)


def tiling(height: int, width: int, step: int, most: int) -> tuple[int, int]:
    """Return how many crops down and across (`select_tiling`)."""
    if min(height, width) <= step:
        return 1, 1
    needed = -(-height // step), -(-width // step)
    if math.prod(needed) > most:
        shrunk = math.sqrt(most / math.prod(needed))
        return max(1, int(needed[0] * shrunk)), max(1, int(needed[1] * shrunk))
    down = max(needed[0], int(math.sqrt(most * height / width)))
    across = max(needed[1], int(math.sqrt(most * width / height)))
    if down * across > most and across > down:
        across = most // down
    elif down * across > most:
        down = most // across
    return max(1, down), max(1, across)


def model(folder: Path) -> Any:
    """Return the reference: what answers (input_ids, crops, tiling) with logits.

    Raises:
        ValueError: A weight is left over, those of the head of coordinates aside.
    """
    import torch
    from safetensors.torch import load_file as load_torch

    config = json.loads((folder / "config.json").read_text())["config"]
    weights, read = load_torch(folder / "model.safetensors"), set[str]()

    def weight(name: str) -> Any:
        read.add(f"model.{name}")
        return weights[f"model.{name}"]

    class Reference:
        def __call__(self, input_ids: Any, attention_mask: Any = None, crops: Any = None, tiling: Any = None) -> Any:
            x, seen = weight("text.wte")[input_ids[0]], 0
            if crops is not None:
                features = image_features(weight, config["vision"], crops, tiling)
                seen = 1 + len(features)
                x = torch.cat([x[:1], features, x[seen:]])
            # all up to the image's end see one another, others what stands before them
            mask = torch.tril(torch.ones(len(x), len(x), dtype=torch.bool))
            mask[:seen, :seen] = True
            for number in range(config["text"]["n_layers"]):
                x = decoder_layer(weight, f"text.blocks.{number}.", config["text"], x, mask)
            logits = linear(weight, "text.lm_head", norm(weight, "text.post_ln", x))[None]
            if crops is not None and (unread := {name for name in weights if ".region." not in name} - read):
                raise ValueError(f"not read: {unread}")

            class Answer:
                pass

            answer = Answer()
            answer.logits = logits  # type: ignore[attr-defined]
            return answer

    return Reference()


def linear(weight: Any, name: str, x: Any) -> Any:
    return x @ weight(f"{name}.weight").T + weight(f"{name}.bias")


def norm(weight: Any, name: str, x: Any) -> Any:
    import torch

    return torch.layer_norm(x, x.shape[-1:], weight(f"{name}.weight"), weight(f"{name}.bias"), 1e-5)


def two(weight: Any, name: str, x: Any) -> Any:
    from torch.nn import functional

    return linear(weight, f"{name}.fc2", functional.gelu(linear(weight, f"{name}.fc1", x), approximate="tanh"))


def attended(query: Any, key: Any, value: Any, mask: Any = None) -> Any:
    """Return what one head gives, [T, C]."""
    scores = query @ key.T / math.sqrt(query.shape[-1])
    return (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(-1) @ value


def image_features(weight: Any, config: Config, crops: Any, tiling: tuple[int, int]) -> Any:
    """Return [patches, D] of one image."""
    import torch
    from torch.nn import functional

    side, margin = config["crop_size"] // config["enc_patch_size"], config["overlap_margin"]
    whole, *parts = (crop_states(weight, config, crop) for crop in crops)
    (rows, cols), step = tiling, side - 2 * margin
    picture = torch.zeros(rows * step + 2 * margin, cols * step + 2 * margin, config["enc_dim"])
    # later crops are laid over earlier ones without the margin that those share with them, and the reverse
    for number, part in enumerate(parts):
        row, col = divmod(number, cols)
        top, left = margin * (row > 0), margin * (col > 0)
        bottom, right = side - margin * (row < rows - 1), side - margin * (col < cols - 1)
        inner = part.unflatten(0, (side, side))[top:bottom, left:right]
        picture[row * step + top : row * step + bottom, col * step + left : col * step + right] = inner
    pooled = functional.adaptive_avg_pool2d(picture.permute(2, 0, 1), side).flatten(1).T
    return two(weight, "vision.proj_mlp", torch.cat([whole, pooled], dim=1))


def crop_states(weight: Any, config: Config, crop: Any) -> Any:
    """Return [patches, D] of one crop [3, side, side]."""
    import torch

    patch, side, heads = config["enc_patch_size"], config["crop_size"], config["enc_n_heads"]
    corners = [(top, left) for top in range(0, side, patch) for left in range(0, side, patch)]
    flat = torch.stack([crop[:, top : top + patch, left : left + patch].flatten() for top, left in corners])
    x = linear(weight, "vision.patch_emb", flat) + weight("vision.pos_emb")[0]
    for block in (f"vision.blocks.{number}." for number in range(config["enc_n_layers"])):
        parts = linear(weight, f"{block}attn.qkv", norm(weight, f"{block}ln1", x)).chunk(3, dim=1)
        of_heads = zip(*(part.chunk(heads, dim=1) for part in parts), strict=True)
        x = x + linear(weight, f"{block}attn.proj", torch.cat([attended(*each) for each in of_heads], dim=1))
        x = x + two(weight, f"{block}mlp", norm(weight, f"{block}ln2", x))
    return norm(weight, "vision.post_ln", x)


def decoder_layer(weight: Any, block: str, config: Config, x: Any, mask: Any) -> Any:
    """Return what a layer makes of x [T, D]; queries, then keys, then values, share one matrix."""
    import torch

    heads, kv = config["n_heads"], config.get("n_kv_heads", config["n_heads"])
    normed = norm(weight, f"{block}ln", x)
    both = linear(weight, f"{block}attn.qkv", normed).split([heads * HEAD, kv * HEAD, kv * HEAD], dim=1)
    queries, keys, values = (part.split(HEAD, dim=1) for part in both)
    given = [
        attended(turned(queries[head]), turned(keys[head * kv // heads]), values[head * kv // heads], mask)
        for head in range(heads)
    ]
    return x + linear(weight, f"{block}attn.proj", torch.cat(given, dim=1)) + two(weight, f"{block}mlp", normed)


def turned(x: Any) -> Any:
    """Return [T, 64] whose first 32 numbers turn in pairs (i, i + 16), which then stand side by side (`rope.py`)."""
    import torch

    angles = torch.arange(len(x))[:, None] * 10_000.0 ** (-torch.arange(0, 32, 2) / 32)
    pairs = torch.complex(x[:, :16], x[:, 16:32]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([torch.view_as_real(pairs).flatten(1), x[:, 32:]], dim=1)
