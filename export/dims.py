"""What the manifest says of a family's sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from bundle.dims import DecoderDims, DualEncoderDims, EmbedderDims, PairDims, VectorSizes
from bundle.errors import UnsupportedConfigError
from bundle.manifest import BOTH, ComponentName, Task
from export.adapters import AdapterSet
from export.checkpoint import Checkpoint
from export.cross_encoder import CrossEncoder
from export.dual_encoder import DualEncoder
from export.embedding import found_prefixes
from export.family import Family
from export.image_embedder import ImageEmbedder
from export.processor import ProcessorFiles
from export.vision_language import VisionLanguage
from export.weights import WeightSource

_CUTS = ("matryoshka_dimensions", "matryoshka_dims")
"""Of a config, as vLLM reads it and as Jina's have it."""


def task_of(family: Family) -> Task:
    """Return what the bundle does."""
    if not isinstance(family, VisionLanguage) or family.embedding is None:
        return family.task
    if family.embedding.choice is not None:
        return "cross-encoder"
    return BOTH if family.answers else "image-text-embedding"


def decoder_dims(
    family: VisionLanguage, models: dict[ComponentName, ir.Model], beside: AdapterSet | None
) -> DecoderDims | None:
    """Return the sizes of the language model, and its adapters; None: it has none."""
    dims = family.decoder_dims()
    if dims is None or beside is None or not beside.answers:
        return dims
    return dims.model_copy(update={"adapters": beside.told(models)})


def embedder_dims(family: VisionLanguage, source: Checkpoint) -> EmbedderDims | None:
    """Return how vectors are made of the decoder's states; None: it answers alone."""
    if family.embedding is None:
        return None
    how, late = family.embedding, family.embedding.late
    size = how.size(family.state_size)
    return EmbedderDims(
        embedding_size=size,
        matryoshka=_cuts({**family.config, **source.config}, size),
        pooling=how.pooling,
        max_positions=family.max_positions,
        prefixes=found_prefixes(source.folder) if family.states_prefixes else dict(how.prefixes or {}),
        default_type=how.default_type,
        late_size=None if late is None else late.size,
        pools_images=how.pools_images,
        adapters=how.adapters,
    )


def dual_dims(family: DualEncoder, files: ProcessorFiles, weights: WeightSource, source: Checkpoint) -> DualEncoderDims:
    """Return the sizes of a dual encoder.

    Raises:
        UnsupportedConfigError: Its texts cannot be batched, or its vectors not be cut as its config says.
    """
    tower = family.text_tower
    if files.pad_token_id is None:
        raise UnsupportedConfigError("the tokenizer names no pad_token; texts cannot be batched without one")
    scale, bias = family.scores(weights.scalar)
    return DualEncoderDims(
        embedding_size=tower.embedding_size,
        max_text_tokens=tower.max_text_tokens,
        pad_token_id=files.pad_token_id,
        pads_to_max=files.pads_to_max,
        scoring=tower.scoring,
        logit_scale=scale,
        logit_bias=bias,
        matryoshka=_cuts(source.config, tower.embedding_size),
        vectors=family.vectors,
        prompt_template=family.prompt_template,
        data_experts=family.data_experts,
        regions=family.regions,
        replaced_tokens=family.replaced_tokens,
    )


def image_vectors(family: ImageEmbedder, source: Checkpoint) -> VectorSizes:
    """Return the sizes of vectors of images."""
    size = family.embedding_size
    return VectorSizes(embedding_size=size, matryoshka=_cuts(source.config, size))


def pair_dims(family: CrossEncoder, files: ProcessorFiles) -> PairDims:
    """Return the sizes of a cross-encoder.

    Raises:
        UnsupportedConfigError: Its texts cannot be batched.
    """
    if files.pad_token_id is None:
        raise UnsupportedConfigError("the tokenizer names no pad_token; texts cannot be batched without one")
    return PairDims(
        max_text_tokens=family.texts.max_tokens, pad_token_id=files.pad_token_id, num_frames=family.num_frames
    )


def _cuts(config: Mapping[str, Any], embedding_size: int) -> tuple[int, ...]:
    """Return the sizes to which a config says that vectors may be cut; none where it says nothing.

    Raises:
        UnsupportedConfigError: They are no sizes of its vectors.
    """
    name = next((name for name in _CUTS if config.get(name)), _CUTS[0])
    sizes = config.get(name) or []
    if not isinstance(sizes, list) or not all(type(size) is int and 0 < size <= embedding_size for size in sizes):
        raise UnsupportedConfigError(f"config.json: {name} is {sizes!r:.80}; vectors have {embedding_size} numbers")
    return tuple(sorted(set(sizes) - {embedding_size}, reverse=True))
