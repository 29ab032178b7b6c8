"""LLM2CLIP: transformers' CLIP tower and Llama, and an adapter written from the paper's published code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import encoder_files as files
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn

SPECIAL = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
HEADER = "<|start_header_id|>user<|end_header_id|>\n\n"
WORDS = r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
"""Of Llama 3's pattern as much as texts here tell apart."""
VISION = {"hidden_size": 40, "intermediate_size": 56, "num_attention_heads": 5, "num_hidden_layers": 2}
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
REFUSED = [
    ({"vision_config": {"hidden_act": "relu6"}}, "relu6"),
    ({"tokenizer.json": {"post_processor": None}}, "a user's turn as 4 tokens"),
]


def geometries() -> list[files.Config]:
    """Return heads that queries share in twos and threes, positions scaled as Llama 3.1's, and odd adapters."""
    far = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    far |= {"original_max_position_embeddings": 16, "rope_theta": 500000.0}
    two = {**LLAMA, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    three = {**LLAMA, "hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
    clip = {"model_type": "clip", "architectures": ["LLM2CLIPModel"], "vocab_size": 512}
    small, large = {"image_size": 36, "patch_size": 12}, {"image_size": 50, "patch_size": 8}
    return [
        {**clip, "projection_dim": 20, "vision_config": VISION | small, "llama": two},
        {**clip, "projection_dim": 44, "vision_config": VISION | large, "llama": {**three, "rope_scaling": far}},
    ]


class Adapter(nn.Module):
    """microsoft/LLM2CLIP, eva_clip's TextProj: four residual blocks over a unit vector, a norm and a matrix."""

    def __init__(self, size: int, embedding_size: int) -> None:
        super().__init__()
        blocks = [_block(size) for _ in range(4)]
        self.adaptor = nn.Sequential(*blocks, nn.LayerNorm(size), nn.Linear(size, embedding_size))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.normalize(x, dim=-1)
        *blocks, norm, last = self.adaptor
        for block in blocks:
            x = x + block["fn"](block["ln"](x))
        return last(norm(x))


def _block(size: int) -> nn.ModuleDict:
    wide = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Dropout(0), nn.Linear(2 * size, size))
    return nn.ModuleDict({"ln": nn.LayerNorm(size), "fn": wide})


def _parts(config: files.Config) -> tuple[Any, Any, Adapter]:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, LlamaConfig, LlamaModel

    vision = CLIPVisionConfig(**config["vision_config"], projection_dim=config["projection_dim"])
    llama = LlamaConfig(**config["llama"], vocab_size=_vocab_size(), eos_token_id=3)
    parts = CLIPVisionModelWithProjection(vision), LlamaModel(llama)
    adapter = Adapter(llama.hidden_size, config["projection_dim"])
    for part in (*parts, adapter):
        files.draw(part)
    return *(part.eval() for part in parts), adapter.eval()


def save_model(folder: Path, config: files.Config) -> None:
    """Write CLIP's part with the adapter, and the language model in a folder of its own, as they are published."""
    from safetensors.torch import save_file

    images, llama, adapter = _parts(config)
    folder.mkdir(parents=True)
    weights = {**images.state_dict(), **{f"text_adapter.{key}": value for key, value in adapter.state_dict().items()}}
    save_file({**weights, "logit_scale": torch.tensor(2.6592)}, folder / "model.safetensors")
    files.write_json(folder / "config.json", {key: value for key, value in config.items() if key != "llama"})
    llama.save_pretrained(folder / "language_model")
    stated = {**config["llama"], "vocab_size": _vocab_size(), "eos_token_id": 3}
    files.write_json(folder / "language_model" / "config.json", stated)
    files.write_json(folder / "reference.json", config)


def save_processor(folder: Path, config: files.Config) -> None:
    """Write CLIP's image processor, and a tokenizer with Llama 3's marks."""
    files.save_images(folder, "CLIPImageProcessor", **files.cropped(config["vision_config"]["image_size"]))
    backend = _tokenizer()
    backend.save(str(folder / "tokenizer.json"))
    named = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[3]}
    files.write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **named},
    )


def _vocab_size() -> int:
    return _tokenizer().get_vocab_size()


def _tokenizer() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("u", "s"), ("e", "r"), ("us", "er"), ("Ċ", "Ċ"), ("c", "a"), ("ca", "t")]
    words = [*SPECIAL, *letters, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    backend.post_processor = processors.TemplateProcessing(single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], 0)])
    return backend


def model(folder: Path) -> Any:
    """Return the three parts."""
    return _parts(json.loads((folder / "reference.json").read_text()))


def processor(folder: Path) -> Any:
    """Return what writes texts as LLM2Vec does; `own` counts the tokens that its mean takes."""
    apart = files.Apart(folder)
    apart.tokenizer.pad_token = SPECIAL[3]

    def call(images: list[Image.Image], text: list[str], **options: Any) -> Any:
        turns = [f"{HEADER}{each.rstrip()}<|eot_id|>" for each in text]
        own = [len(apart.tokenizer(f"{each.rstrip()}<|eot_id|>", add_special_tokens=False).input_ids) for each in text]
        return {**apart(images, turns, **options), "own": own}

    return call


def expected(parts: Any, inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return vectors of images, of texts, and logits."""
    images, llama, adapter = parts
    mask = inputs["attention_mask"]
    seen = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1).bool()
    bias = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    hidden = llama(input_ids=inputs["input_ids"], attention_mask=bias).last_hidden_state
    ends = mask.sum(-1).tolist()
    means = [row[end - own : end].mean(0) for row, end, own in zip(hidden, ends, inputs["own"], strict=True)]
    of_images, of_texts = images(inputs["pixel_values"]).image_embeds, adapter(torch.stack(means))
    units = [nn.functional.normalize(each, dim=-1) for each in (of_images, of_texts)]
    return of_images, of_texts, torch.tensor(2.6592).exp() * units[0] @ units[1].T
