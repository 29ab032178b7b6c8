"""Names of the tensors that graphs take and give, as the ONNX ecosystem spells them (transformers.js, Optimum).

States have no name here: the manifest lists them (`bundle.states`).
"""

from __future__ import annotations

PIXEL_VALUES = "pixel_values"
"""[I, 3, height, width] float32."""
INPUT_IDS = "input_ids"
"""[B, T] int64."""
ATTENTION_MASK = "attention_mask"
"""[B, T] int64, 1 where a text encoder attends."""
IMAGE_FEATURES = "image_features"
"""[I, P, D] float32."""
IMAGE_EMBEDS = "image_embeds"
"""[I, E] float32."""
TEXT_EMBEDS = "text_embeds"
"""[B, E] float32."""
INPUTS_EMBEDS = "inputs_embeds"
"""[B, T, D] float32: tokens, image features in the places of images."""
POSITION_IDS = "position_ids"
"""[B, T] int64, or [3, B, T]: logical positions, which rotary embedding reads."""
PAST_LENGTHS = "past_lengths"
"""[G, B] int64: rows that a sequence holds in each length group, which attention reads. [B] in format 1."""
LOGITS_INDICES = "logits_indices"
"""[B, N] int64: the new tokens whose logits are wanted."""
IS_IMAGE = "is_image"
"""[B, T] bool, optional: tokens that stand for image features, for decoders with experts of their own for them."""
LOGITS = "logits"
"""[B, N, V] float32."""
