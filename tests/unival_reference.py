"""UnIVAL's image and text part in torch, written from its paper (arXiv 2307.16184) and OFA's (2202.03052).

Neither class loads here: both want fairseq. Beside each choice stands what it follows; where the papers are silent, the
authors' code (github.com/mshukor/UnIVAL, models/unival) says what is done. Weights are read by the names of that code.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as fn


class Reference:
    """The model of a checkpoint, in float64.

    Args:
        folder: Of the checkpoint.
        config: Its arguments, all of them.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        stored = load_file(folder / "model.safetensors")
        self.weights = {name: tensor.double() for name, tensor in stored.items()}
        self.config = config
        self.heads = config["encoder_attention_heads"]
        head = config["encoder_embed_dim"] // self.heads
        self.scale = (head * config["attn_scale_factor"]) ** -0.5  # OFA 2.1: head scaling; code: attn_scale_factor

    def __call__(self, pixel_values: Tensor, question_ids: Tensor, decoder_ids: Tensor) -> Tensor:
        """Return scores [1, T, V] of one image [1, 3, H, W], its question [1, Q] and what is said so far [1, T]."""
        states, places = self.encoded(pixel_values.double(), question_ids)
        return self.decoded(states, places, decoder_ids)

    # OFA 2.1: ResNet modules convolve an image to patch features, which are projected
    def seen(self, pixels: Tensor) -> Tensor:
        root = "encoder.embed_images."
        x = fn.relu(self.batch_normed(fn.conv2d(pixels, self.weights[f"{root}conv1.weight"], None, 2, 3), f"{root}bn1"))
        x = fn.max_pool2d(x, 3, 2, 1)
        stage = 1
        while f"{root}layer{stage}.0.conv1.weight" in self.weights:
            block = 0
            while f"{root}layer{stage}.{block}.conv1.weight" in self.weights:
                stride = 2 if stage > 1 and block == 0 else 1
                x = self.bottleneck(x, f"{root}layer{stage}.{block}.", stride)
                block += 1
            stage += 1
        return x

    def bottleneck(self, x: Tensor, at: str, stride: int) -> Tensor:
        inner = fn.relu(self.batch_normed(fn.conv2d(x, self.weights[f"{at}conv1.weight"]), f"{at}bn1"))
        kernel = self.weights[f"{at}conv2.weight"]
        inner = fn.relu(self.batch_normed(fn.conv2d(inner, kernel, None, stride, 1), f"{at}bn2"))
        inner = self.batch_normed(fn.conv2d(inner, self.weights[f"{at}conv3.weight"]), f"{at}bn3")
        if f"{at}downsample.0.weight" in self.weights:
            x = fn.conv2d(x, self.weights[f"{at}downsample.0.weight"], None, stride)
            x = self.batch_normed(x, f"{at}downsample.1")
        return fn.relu(inner + x)

    def batch_normed(self, x: Tensor, at: str) -> Tensor:
        mean, var = self.weights[f"{at}.running_mean"], self.weights[f"{at}.running_var"]
        return fn.batch_norm(x, mean, var, self.weights[f"{at}.weight"], self.weights[f"{at}.bias"])

    def encoded(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        config, root = self.config, "encoder."
        map_ = self.seen(pixels)
        height, width = map_.shape[-2:]
        rows = self.linear(map_.flatten(2).transpose(1, 2), f"{root}image_proj")
        # code, get_patch_images_info: place 0 is no patch's, and a row of the grid has image_bucket_size places
        spots = (torch.arange(height)[:, None] * config["image_bucket_size"] + torch.arange(width) + 1).flatten()
        of_image = self.weights[f"{root}embed_image_positions.weight"][spots]
        of_words = self.weights[f"{root}embed_positions.weight"][torch.arange(ids.shape[1])]
        words = self.weights[f"{root}embed_tokens.weight"][ids]
        if not config["no_scale_embedding"]:
            words, rows = words * math.sqrt(words.shape[-1]), rows * math.sqrt(rows.shape[-1])
        if config["entangle_position_embedding"]:
            words, rows = words + of_words, rows + of_image
        kinds = self.weights.get(f"{root}type_embedding.weight")
        if kinds is not None:  # code, forward_embedding: 0 for text, the number of the kind plus 1 for others
            words, rows = words + kinds[0], rows + kinds[1]
        words = self.normed_if_any(words, f"{root}layernorm_embedding")
        rows = self.normed_if_any(rows, f"{root}patch_layernorm_embedding")
        x = torch.cat([rows, words], 1)
        # OFA 2.1 and TUPE: places are normed and compared apart from what stands there
        places = torch.cat([self.normed(of_image, f"{root}image_pos_ln"), self.normed(of_words, f"{root}pos_ln")])
        scores = self.compared(places, places, f"{root}pos_q_linear", f"{root}pos_k_linear")
        num = rows.shape[1]
        for layer in range(config["encoder_layers"]):
            bias = scores.clone()
            bias[:, num:, num:] += self.apart_words(ids.shape[1], f"{root}token_rel_pos_table_list.{layer}.weight")
            bias[:, :num, :num] += self.apart_patches(height, width, f"{root}image_rel_pos_table_list.{layer}.weight")
            at = f"{root}layers.{layer}."
            given = self.normed(x, f"{at}self_attn_layer_norm")
            x = x + self.normed_if_any(self.attention(given, given, bias, f"{at}self_attn"), f"{at}attn_ln")
            x = self.fed_forward(x, at)
        return self.normed(x, f"{root}layer_norm"), places

    def decoded(self, states: Tensor, places: Tensor, ids: Tensor) -> Tensor:
        config, root, num = self.config, "decoder.", ids.shape[1]
        own = self.weights[f"{root}embed_positions.weight"][torch.arange(num)]
        x = self.weights["encoder.embed_tokens.weight"][ids]  # code: share_all_embeddings
        if not config["no_scale_embedding"]:
            x = x * math.sqrt(x.shape[-1])
        if not config["disable_entangle"]:
            x = x + own
        x = self.normed_if_any(x, f"{root}layernorm_embedding")
        normed = self.normed(own, f"{root}pos_ln")
        among = self.compared(normed, normed, f"{root}self_pos_q_linear", f"{root}self_pos_k_linear")
        # code, get_pos_info: the encoder's places as it normed them
        across = self.compared(normed, places, f"{root}cross_pos_q_linear", f"{root}cross_pos_k_linear")
        future = torch.full((num, num), -math.inf, dtype=torch.float64).triu(1)
        for layer in range(config["decoder_layers"]):
            at = f"{root}layers.{layer}."
            bias = among + self.apart_words(num, f"{root}token_rel_pos_table_list.{layer}.weight") + future
            given = self.normed(x, f"{at}self_attn_layer_norm")
            x = x + self.normed_if_any(self.attention(given, given, bias, f"{at}self_attn"), f"{at}self_attn_ln")
            given = self.normed(x, f"{at}encoder_attn_layer_norm")
            looked = self.attention(given, states, across, f"{at}encoder_attn")
            x = x + self.normed_if_any(looked, f"{at}cross_attn_ln")
            x = self.fed_forward(x, at)
        x = self.normed(x, f"{root}layer_norm")
        return x @ self.weights["encoder.embed_tokens.weight"].T

    def attention(self, x: Tensor, looked_at: Tensor, bias: Tensor, at: str) -> Tensor:
        query, key, value = (
            self.linear(given, f"{at}.{name}_proj").unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for given, name in ((x, "q"), (looked_at, "k"), (looked_at, "v"))
        )
        weights = ((query * self.scale) @ key.transpose(-1, -2) + bias).softmax(-1)
        heads = (weights @ value).transpose(1, 2)
        gains = self.weights.get(f"{at}.c_attn")
        if gains is not None:  # NormFormer (arXiv 2110.09456, 3.2), OFA 2.1
            heads = heads * gains[:, None]
        return self.linear(heads.flatten(2), f"{at}.out_proj")

    def fed_forward(self, x: Tensor, at: str) -> Tensor:
        inner = fn.gelu(self.linear(self.normed(x, f"{at}final_layer_norm"), f"{at}fc1"))
        inner = self.normed_if_any(inner, f"{at}ffn_layernorm")  # NormFormer 3.3
        residual = x * self.weights[f"{at}w_resid"] if f"{at}w_resid" in self.weights else x
        return residual + self.linear(inner, f"{at}fc2")

    def compared(self, own: Tensor, others: Tensor, query: str, key: str) -> Tensor:
        """Return [H, n, m] scores of places."""
        queries = self.linear(own, query).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        keys = self.linear(others, key).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        return queries * self.scale @ keys.transpose(-1, -2)

    def apart_words(self, num: int, table: str) -> Tensor:
        """Return [H, n, n] by distance: near ones exactly, far ones by their logarithm (code, token_bucket_size)."""
        size, most = self.config["token_bucket_size"], 1024
        middle, buckets = size // 2, torch.empty(num, num, dtype=torch.long)
        for i in range(num):
            for j in range(num):
                far = i - j
                if abs(far) > middle:
                    share = math.log(abs(far) / middle) / math.log((most - 1) / middle)
                    far = int(math.copysign(math.ceil(share * (middle - 1)) + middle, far))
                buckets[i, j] = far + size - 1
        return self.weights[table][buckets].permute(2, 0, 1)

    def apart_patches(self, height: int, width: int, table: str) -> Tensor:
        """Return [H, n, n] by how far two patches are apart in height and in width."""
        side = self.config["image_bucket_size"]
        buckets = torch.empty(height * width, height * width, dtype=torch.long)
        for i in range(height * width):
            for j in range(height * width):
                down, right = i // width - j // width, i % width - j % width
                buckets[i, j] = (down + side - 1) * (2 * side - 1) + right + side - 1
        return self.weights[table][buckets].permute(2, 0, 1)

    def linear(self, x: Tensor, at: str) -> Tensor:
        return fn.linear(x, self.weights[f"{at}.weight"], self.weights[f"{at}.bias"])

    def normed(self, x: Tensor, at: str) -> Tensor:
        return fn.layer_norm(x, x.shape[-1:], self.weights[f"{at}.weight"], self.weights[f"{at}.bias"])

    def normed_if_any(self, x: Tensor, at: str) -> Tensor:
        return self.normed(x, at) if f"{at}.weight" in self.weights else x
