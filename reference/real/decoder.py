"""The frozen decoder in training: visual tokens and questions in, loss of the answers out, gradients to the tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional
from transformers import DynamicCache, SmolVLMForConditionalGeneration

from reference.dialogues import REAL, Batch, Encoder
from reference.training import ATTENTION


class FrozenDecoder:
    """SmolLM2 in bfloat16, whose weights never change; what every prompt begins with is computed once."""

    def __init__(self, model: SmolVLMForConditionalGeneration, encode: Encoder) -> None:
        """Take the decoder out of a whole model.

        Args:
            model: Its language model is turned to bfloat16 in place.
            encode: From text to token ids.
        """
        model.set_attn_implementation(ATTENTION)
        self._layers = model.model.text_model.to(torch.bfloat16).requires_grad_(False)
        self._image_id = model.config.image_token_id
        start = torch.tensor([encode(REAL.start)])
        self._start_tokens = start.shape[1]
        causal = torch.full((self._start_tokens,) * 2, -1e4, dtype=torch.bfloat16).triu(1)
        with torch.no_grad():
            cache = self._layers(
                input_ids=start, attention_mask=causal[None, None], past_key_values=DynamicCache(), use_cache=True
            ).past_key_values
        self._start = [(layer.keys, layer.values) for layer in cache.layers]

    @property
    def table(self) -> torch.Tensor:
        """Return the token table [V, D], which is the head's too."""
        return self._layers.embed_tokens.weight

    def logits(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return float32 logits [N, V] of the rows that are learnt.

        Args:
            features: [I, 64, D] visual tokens, in the order of their placeholders.
            batch: What is asked about the images.
        """
        ids, positions, segments, rows = (
            torch.from_numpy(array) for array in (batch.ids, batch.positions, batch.segments, batch.rows)
        )
        embeds = self._layers.embed_tokens(ids)
        is_image = (ids == self._image_id).unsqueeze(-1)
        embeds = embeds.masked_scatter(is_image, features.to(embeds.dtype))
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._start):
            cache.update(keys.expand(len(ids), -1, -1, -1), values.expand(len(ids), -1, -1, -1), layer)
        hidden = self._layers(
            inputs_embeds=embeds,
            attention_mask=self._mask(segments),
            position_ids=positions + self._start_tokens,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return functional.linear(hidden[rows[:, 0], rows[:, 1]], self.table).float()

    def _mask(self, segments: torch.Tensor) -> torch.Tensor:
        """Return the additive mask [B, 1, T, S]: causal inside a conversation and towards what precedes them all."""
        length = segments.shape[1]
        query, key = segments[:, :, None], segments[:, None, :]
        is_seen = torch.ones(length, length, dtype=torch.bool).tril() & ((key == 0) | (key == query))
        is_seen = torch.cat([torch.ones(len(segments), length, self._start_tokens, dtype=torch.bool), is_seen], 2)
        return torch.zeros(is_seen.shape, dtype=torch.bfloat16).masked_fill(~is_seen, -1e4).unsqueeze(1)


def graded(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of logits [N, V], and per kind the share of answers whose every token is right."""
    targets, weights = torch.from_numpy(batch.targets), torch.from_numpy(batch.weights)
    each = functional.cross_entropy(logits, targets, reduction="none")
    loss = (each * weights).sum() / weights.sum()
    is_wrong = (logits.argmax(-1) != targets).numpy()
    wrong = np.bincount(batch.answers, weights=is_wrong, minlength=len(batch.kinds)) > 0
    kinds = np.array(batch.kinds)
    return loss, {"loss": float(loss.detach()), **{k: float(1 - wrong[kinds == k].mean()) for k in sorted(set(kinds))}}
