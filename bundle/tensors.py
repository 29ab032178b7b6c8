"""Names of the tensors that graphs take and give, as the ONNX ecosystem spells them (transformers.js, Optimum).

States have no name here: the manifest lists them (`bundle.states`).
"""

from __future__ import annotations

PIXEL_VALUES = "pixel_values"
"""[I, 3, height, width] float32."""
QUESTION_IDS = "question_ids"
"""[I, Q] int64: the question that each image is shown with, for vision encoders that read it beside the pixels; all
of a run are as long."""
INPUT_IDS = "input_ids"
"""[B, T] int64."""
TOKEN_TYPE_IDS = "token_type_ids"
"""[B, T] int64, of two texts read together 0 for tokens of the first and 1 for those of the second."""
ATTENTION_MASK = "attention_mask"
"""[B, T] int64, 1 where a text encoder attends."""
IMAGE_FEATURES = "image_features"
"""[I, P, D] float32."""
IMAGE_ATTENTION = "image_attention"
"""[I, P] float32, optional: attention that each row of features receives in the vision tower's last layer that is read,
from the class token or else from all patches; means over heads, sums over the patches of a row."""
IMAGE_KEYS = "image_keys"
"""[I, P, C] float32, optional: keys of that layer, means over heads and over the patches of a row."""
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
DEEP_FEATURES = "deep_features"
"""[B, T, n*D] float32: what a decoder's first n layers add to their hidden states where an image is; 0 elsewhere.
Image features are then [I, P, (1 + n)*D]: the first D become embeddings."""
PER_LAYER_INPUTS = "per_layer_inputs"
"""[B, T, L*P] float32: P numbers of each token for each of L layers, which a table of its own gives beside embeddings
(Gemma 3n and 4). `embed_tokens` gives them, the decoder takes them."""
SEEN_AROUND = "seen_around"
"""[2, B, T] int64: how many rows before its own and how many behind it a stretch begins and ends that a new token sees
whatever window a layer has, for decoders whose attention looks forward; one that begins behind it has a number below 0.
Rows behind it are written by the same run, or are there."""
MEMORY_SEEN = "memory_seen"
"""[B, T, 3] int64: which rows of the states of kind "memory" a token sees, from the first number to before the second,
and 1 where an image stands before it; all 0 without images."""
LAST_QUERIES = "last_queries."
"""[B, W, H*C] float32, optional, with the layer's number behind it: queries of the last W new tokens, or of all where
those are fewer, rotated."""
HEAD_OUTPUTS = "head_outputs."
"""[B, 1, H*C] float32, optional, with the layer's number behind it: what the attention heads give for the last new
token, before the output projection. Of bundles exported with task vectors, as the next two."""
HEAD_VALUES = "head_values"
"""[B, L, H*C] float32: what may take the place of the attention heads' outputs, by layer."""
HEAD_MASK = "head_mask"
"""[B, T, L*H] bool: the heads of each layer whose outputs `head_values` replaces, by token."""
FULL_LAYERS = "full_layers"
"""[B, T, n] bool: which of the n layers whose feed-forwards may be skipped a token runs through in full. Of bundles
exported with --skip-visual."""
HIDDEN_STATES = "hidden_states"
"""[B, T, D] float32: what a segment of a decoder gives, and the next one takes as `inputs_embeds`."""
QUERIES = "queries"
"""[B, T, H*C] float32, optional: of a segment's last layer, rotated."""
KEYS = "keys"
"""[B, T, K*C] float32, optional: of a segment's last layer, rotated; of the new tokens alone."""
BOXES = "boxes"
"""[I, R, 4] float32: left, top, right, bottom of regions, as shares of the pixels that an image encoder takes; all 0 of
a whole image, which is then seen as a model without regions sees it."""
TASK_DISTANCES = "task_distances"
"""[B, N] float32, optional: how far a text is from what each of N models was trained on (bundle.data_experts)."""
PAIR_SCORES = "scores"
"""[B] float32: how well the text and the image of a pair go together; larger is better."""
TOKEN_EMBEDS = "token_embeds"
"""[B, N, E] float32: what a decoder that embeds gives of the wanted tokens, in the place of logits."""
LATE_EMBEDS = "late_embeds"
"""[B, N, M] float32, optional: the same through the projection of a model that makes a vector of an input and, where
that is asked for, one of each of its tokens."""
ADAPTERS = "adapters"
"""[B] int64: which of the adapters in the decoder each sequence runs through, by its number in the manifest. Of bundles
that hold several."""
LOGITS = "logits"
"""[B, N, V] float32."""
SEQLENS_K = "seqlens_k"
"""[B] int32, or [G, B]: the last row that holds a token after the run. CUDA form, in the place of `past_lengths`."""
TOTAL_SEQUENCE_LENGTH = "total_sequence_length"
"""[] int32 in host memory: more rows than any sequence holds after the run. CUDA form."""
LOGITS_ROWS = "logits_rows"
"""[B, N] int64: the tokens whose logits are wanted, counted through all B x T. CUDA form: `logits_indices`."""
GREEDY_IDS = "greedy_ids"
"""[B, N] int64, optional: the ids of the largest logits. CUDA form."""
