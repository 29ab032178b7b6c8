"""The shape of the vision-language model, and the dense head that pre-trains its tower."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from reference.layout import COLOUR_CLASSES, GRID, IMAGE_PX, KIND_CLASSES, PATCH_PX, SIZE_CLASSES
from reference.training import ATTENTION

SCALE_FACTOR = 2  # pixel shuffle: 2 x 2 patches make one visual token
VISUAL_TOKENS = (GRID // SCALE_FACTOR) ** 2
HIDDEN = 256
CONTEXT_TOKENS = 2048
_PLANES = (len(KIND_CLASSES), len(COLOUR_CLASSES), len(SIZE_CLASSES), 2)  # of `layout.dense_labels`
_CELLS = GRID // SCALE_FACTOR  # visual tokens a row
_PLACE_SHARE = 0.2  # of the loss
_BACKGROUND_WEIGHT = 0.15  # most patches show nothing; without this they drown the rest
_CENTRE_WEIGHT = 8.0


def config(vocabulary: dict[str, int]) -> SmolVLMConfig:
    """Return the architecture.

    Args:
        vocabulary: Token to id, special tokens included.
    """
    end = vocabulary["<end_of_utterance>"]
    special = {
        "bos_token_id": vocabulary["<|im_start|>"],
        "eos_token_id": end,
        "pad_token_id": vocabulary["<|im_end|>"],
    }
    return SmolVLMConfig(
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": IMAGE_PX,
            "patch_size": PATCH_PX,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(vocabulary),
            "hidden_size": HIDDEN,
            "intermediate_size": 704,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT_TOKENS,
            **special,
        },
        image_token_id=vocabulary["<image>"],
        scale_factor=SCALE_FACTOR,
        tie_word_embeddings=False,
        **special,
    )


def build(vocabulary: dict[str, int], seed: int) -> SmolVLMForConditionalGeneration:
    """Return a model with fresh weights that attends by plain products."""
    torch.manual_seed(seed)
    model = SmolVLMForConditionalGeneration(config(vocabulary))
    model.set_attn_implementation(ATTENTION)
    return model


def image_features(model: SmolVLMForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Return visual tokens.

    Args:
        model: Computes in the arithmetic of its weights.
        pixels: [I, 128, 128, 3] uint8.

    Returns:
        [I, 64, D] in the same arithmetic.
    """
    values = pixels.permute(0, 3, 1, 2).to(model.dtype) / 127.5 - 1
    patches = torch.ones(len(pixels), GRID, GRID, dtype=torch.bool)
    hidden = model.model.vision_model(pixel_values=values, patch_attention_mask=patches).last_hidden_state
    return model.model.connector(hidden)


def make_place_head() -> nn.Linear:
    """Return what `place_loss` reads places by."""
    return nn.Linear(HIDDEN, 2 * _CELLS)


def place_loss(head: nn.Linear, features: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each token's column and row, from features [I, 64, D].

    What a patch shows does not depend on where it is, so nothing else would keep the place in the features; the
    decoder needs it to say left or right, and to read letters in their order.
    """
    logits = head(features).float().view(-1, _CELLS, _CELLS, 2, _CELLS)
    own = torch.arange(_CELLS, device=logits.device).expand(len(logits), _CELLS, _CELLS)  # [I, row, column] -> column
    columns = functional.cross_entropy(logits[:, :, :, 0].flatten(0, 2), own.flatten())
    return columns + functional.cross_entropy(logits[:, :, :, 1].flatten(0, 2), own.transpose(1, 2).flatten())


class DenseHead(nn.Module):
    """Reads from each visual token what its four patches show."""

    def __init__(self) -> None:
        """Make one linear layer for all planes of `layout.dense_labels`, and one for the token's column and row."""
        super().__init__()
        self.dense_head = nn.Linear(HIDDEN, SCALE_FACTOR**2 * sum(_PLANES))
        self.place_head = make_place_head()

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        """Return per plane the logits [I, 64, 4, classes], float32, of features [I, 64, D]."""
        logits = self.dense_head(features).float()
        return list(logits.view(*features.shape[:2], SCALE_FACTOR**2, -1).split(_PLANES, dim=-1))

    @staticmethod
    def targets(labels: torch.Tensor) -> torch.Tensor:
        """Return labels [I, 4, 16, 16] in the order of visual tokens: [I, 4, 64, 4]."""
        half = GRID // SCALE_FACTOR
        cells = labels.view(-1, len(_PLANES), half, SCALE_FACTOR, half, SCALE_FACTOR)
        return cells.permute(0, 1, 2, 4, 3, 5).reshape(-1, len(_PLANES), half * half, SCALE_FACTOR**2)

    def loss(self, features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the weighted cross-entropy and accuracies over patches that show something.

        Args:
            features: [I, 64, D].
            labels: [I, 4, 16, 16] uint8.
        """
        targets = self.targets(labels.long())
        is_shown = targets[:, 0] > 0
        weight = torch.where(is_shown, 1.0, _BACKGROUND_WEIGHT)
        total = torch.zeros(())
        correct = []
        for plane, (logits, share) in enumerate(zip(self(features), (1.0, 1.0, 0.3, 0.3), strict=True)):
            target = targets[:, plane]
            each = functional.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none").view_as(target)
            scale = torch.where(target > 0, _CENTRE_WEIGHT, 1.0) * weight if plane == 3 else weight
            total = total + share * (each * scale).sum() / scale.sum()
            correct.append(logits.argmax(-1) == target)
        place = place_loss(self.place_head, features)
        total = total + _PLACE_SHARE * place
        first_digit = len(KIND_CLASSES) - 10
        kinds = targets[:, 0]
        facts = {
            "dense": float(total.detach()),
            "shape": _share(correct[0], (kinds > 0) & (kinds < 9)),
            "character": _share(correct[0], (kinds >= 9) & (kinds < first_digit)),
            "digit": _share(correct[0], kinds >= first_digit),
            "colour": _share(correct[1], is_shown),
            "centre": _share(correct[3], targets[:, 3] > 0),
            "place_loss": float(place.detach()),
        }
        return total, facts


def _share(correct: torch.Tensor, where: torch.Tensor) -> float:
    return float((correct & where).sum() / where.sum().clamp(min=1))


def attention_mask(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the additive mask [B, 1, T, T] of packed sequences.

    Args:
        segments: [B, T] int64 as in `batches.Batch`: causal inside a conversation and towards the prefix.
        dtype: Of the mask.
    """
    length = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    is_causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    is_seen = is_causal & ((key == 0) | (key == query))
    zeros = torch.zeros(is_seen.shape, dtype=dtype, device=segments.device)
    return zeros.masked_fill(~is_seen, -1e4).unsqueeze(1)


def answer_logits(
    model: SmolVLMForConditionalGeneration, features: torch.Tensor, ids: torch.Tensor, positions: torch.Tensor,
    segments: torch.Tensor, rows: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Return float32 logits [N, V] of the rows that are learnt.

    Args:
        model: Computes in the arithmetic of its weights.
        features: [I, 64, D] visual tokens, in the order of their placeholders.
        ids: [B, T] token ids.
        positions: [B, T] rotary positions.
        segments: [B, T] conversations, see `attention_mask`.
        rows: [N, 2] (sequence, position).
    """
    embeds = model.get_input_embeddings()(ids)
    is_image = (ids == model.config.image_token_id).unsqueeze(-1)
    embeds = embeds.masked_scatter(is_image, features.to(embeds.dtype))
    hidden = model.model.text_model(
        inputs_embeds=embeds,
        attention_mask=attention_mask(segments, embeds.dtype),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[rows[:, 0], rows[:, 1]]).float()
