"""The frozen decoder in training: visual tokens and questions in, loss of the answers out, gradients to the tokens."""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import DynamicCache, SmolVLMForConditionalGeneration

from reference.batches import Batch
from reference.dialogues import REAL, Encoder
from reference.training import arithmetic_of, attention_of


class FrozenDecoder:
    """SmolLM2, whose weights never change, in quick arithmetic; what every prompt begins with is computed once."""

    def __init__(self, model: SmolVLMForConditionalGeneration, encode: Encoder) -> None:
        """Take the decoder out of a whole model.

        Args:
            model: Its language model is turned to that arithmetic in place.
            encode: From text to token ids.
        """
        model.set_attn_implementation(attention_of(model.device))
        self._arithmetic = arithmetic_of(model.device)
        self._layers = model.model.text_model.to(self._arithmetic).requires_grad_(False)
        self._image_id = model.config.image_token_id
        start = torch.tensor([encode(REAL.start)], device=model.device)
        self._start_tokens = start.shape[1]
        causal = torch.full((self._start_tokens,) * 2, -1e4, dtype=self._arithmetic, device=model.device).triu(1)
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
            torch.from_numpy(array).to(self.table.device)
            for array in (batch.ids, batch.positions, batch.segments, batch.rows)
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
        is_before = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
        is_seen = functional.pad(is_before & ((key == 0) | (key == query)), (self._start_tokens, 0), value=True)
        mask = torch.zeros(is_seen.shape, dtype=self._arithmetic, device=segments.device)
        return mask.masked_fill(~is_seen, -1e4).unsqueeze(1)
