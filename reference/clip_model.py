"""The shape of the dual encoder, its tokenizer, and a warm start of its tower from the vision-language model."""

from __future__ import annotations

import pathlib
import random

import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from reference import captions
from reference.captions import captioned_scene, describe
from reference.layout import GRID, IMAGE_PX, PATCH_PX
from reference.training import ATTENTION

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TEXT_TOKENS = 77  # CLIP's own limit
_WIDTH = 128
_LAYERS = 6  # four from the vision-language model's tower, then two new ones
_VOCABULARY_TOKENS = 1024  # an upper limit; merges end when the captions have no more
_CORPUS_CAPTIONS = 20_000


def train_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer of CLIP's kind (lower case, byte-level, "</w>" ends a word) learnt from captions."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", invert=True),
         pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )  # fmt: skip
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_TOKENS,
        min_frequency=_CORPUS_CAPTIONS // 100,  # words of the templates, not random texts
        special_tokens=[START, END],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    rng = random.Random(0)
    words = (describe(captioned_scene(rng, "train")) for _ in range(_CORPUS_CAPTIONS))
    labels = [*captions.SHAPE_LABELS.values(), *captions.COLOUR_LABELS.values()] * _CORPUS_CAPTIONS
    tokenizer.train_from_iterator((text for source in (words, labels[:_CORPUS_CAPTIONS]) for text in source), trainer)
    learnt = tokenizer.get_vocab()
    merges = [tuple(m) for m in _merges(tokenizer)]
    # Every byte may also end a word, so that no input is unknown.
    symbols = [START, END, *sorted(alphabet), *(f"{symbol}</w>" for symbol in sorted(alphabet))]
    symbols += [left + right for left, right in merges if left + right not in symbols]
    symbols += sorted(set(learnt) - set(symbols))
    vocabulary = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TEXT_TOKENS)


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    import json

    return [m if isinstance(m, list) else m.split(" ") for m in json.loads(tokenizer.to_str())["model"]["merges"]]


def build(tokens: CLIPTokenizer, seed: int) -> CLIPModel:
    """Return a model with fresh weights that attends by plain products."""
    torch.manual_seed(seed)
    ids = {
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokens),
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "max_position_embeddings": MAX_TEXT_TOKENS,
            "projection_dim": _WIDTH,
            **ids,
        },
        vision_config={
            "hidden_size": _WIDTH,
            "intermediate_size": 4 * _WIDTH,
            "num_hidden_layers": _LAYERS,
            "num_attention_heads": 2,
            "image_size": IMAGE_PX,
            "patch_size": PATCH_PX,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "projection_dim": _WIDTH,
        },
        projection_dim=_WIDTH,
    )
    model = CLIPModel(config)
    model.set_attn_implementation(ATTENTION)
    return model


@torch.no_grad()
def warm_start(model: CLIPModel, checkpoint: pathlib.Path) -> None:
    """Copy the trained tower of the vision-language model into the first layers of the image encoder.

    The two differ at the entrance: CLIP adds a class token, normalises there, and its patches have no bias (which
    goes into the positions instead).

    Args:
        model: Changed in place.
        checkpoint: `model.safetensors` of the vision-language model.
    """
    prefix = "model.vision_model."
    tower = {k.removeprefix(prefix): v.float() for k, v in load_file(checkpoint).items() if k.startswith(prefix)}
    vision = model.vision_model
    vision.embeddings.patch_embedding.weight.copy_(tower["embeddings.patch_embedding.weight"])
    positions = tower["embeddings.position_embedding.weight"] + tower["embeddings.patch_embedding.bias"]
    vision.embeddings.position_embedding.weight[1 : 1 + GRID * GRID].copy_(positions)
    spread = float(positions.std(dim=-1).mean())
    vision.pre_layrnorm.weight.fill_(max(spread, 0.1))
    state = vision.encoder.state_dict()
    layers = {k.removeprefix("encoder."): v for k, v in tower.items() if k.startswith("encoder.layers.")}
    unknown = sorted(set(layers) - set(state))
    if unknown:
        raise ValueError(f"{checkpoint} holds tower weights that CLIP has no place for: {unknown[:3]}")
    vision.encoder.load_state_dict({**state, **layers})


def embed_images(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """Return unit vectors [I, 128], float32, of pixels [I, 128, 128, 3] uint8."""
    values = pixels.permute(0, 3, 1, 2).to(model.dtype) / 127.5 - 1
    pooled = model.vision_model(pixel_values=values).pooler_output
    return functional.normalize(model.visual_projection(pooled).float(), dim=-1)


def embed_texts(model: CLIPModel, ids: torch.Tensor) -> torch.Tensor:
    """Return unit vectors [N, 128], float32, of token ids [N, T] that end in the end token, padded with it."""
    length = ids.shape[1]
    causal = torch.full((length, length), -1e4, dtype=model.dtype).triu(1)
    pooled = model.text_model(input_ids=ids, attention_mask=causal[None, None]).pooler_output
    return functional.normalize(model.text_projection(pooled).float(), dim=-1)
