"""Florence-2 as Microsoft publishes it: `model_type` florence2 with a DaViT of its own code.

Facts are those of the code beside the checkpoints (microsoft/Florence-2-large: modeling_florence2.py,
processing_florence2.py). It computes what transformers' model computes; settings, keys and the tokenizer differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bundle.errors import CheckpointError, UnsupportedConfigError
from export.checkpoint import StoredTensor, WeightTensor
from export.config import Raw, require, sub_config
from export.models.florence2 import LANGUAGE, PROJECTION, SHARED, Florence2
from export.quantized.method import QuantizationMethod, refuse_codes

_MARK, _OTHER = "dim_embed", "embed_dim"
"""How `vision_config` calls its widths here, and in transformers' layout."""
_SOURCES = ["spatial_avg_pool", "temporal_avg_pool"]
_READ = (
    "depths",
    "num_heads",
    "num_groups",
    "patch_size",
    "patch_stride",
    "patch_padding",
    "patch_prenorm",
    "window_size",
    "projection_dim",
)
"""Settings of the tower that the code reads; of all others (`mlp_ratio`, `qkv_bias`) it has the defaults."""
_NUM_PLACES = 1000
_PAIRS = ("cap", "ncap", "dcap", "grounding", "seg")
_LATER_PAIRS = ("region_cap", "region_to_desciption", "proposal", "poly")
_DEFAULTS: Raw = {"vocab_size": 51_289}
_BIASES = "final_logits_bias"
_STORED_PROJECTION = "image_projection"
_TABLES = (SHARED, f"{LANGUAGE}.encoder.embed_tokens.weight", f"{LANGUAGE}.decoder.embed_tokens.weight")
_HEAD = "lm_head.weight"


def _both(*names: str) -> list[str]:
    return [mark for name in names for mark in (f"<{name}>", f"</{name}>")]


OWN_TOKENS = (
    *_both("od", "ocr"),
    *(f"<loc_{place}>" for place in range(_NUM_PLACES)),
    *_both(*_PAIRS),
    "<sep>",
    *_both(*_LATER_PAIRS),
    "<and>",
)
"""What the processor adds behind the tokenizer's tokens whenever it is opened, in this order and this spelling."""


def open_florence2(config: Raw) -> Florence2:
    """Return the Florence-2 of a config, in Microsoft's layout or in transformers'.

    Raises:
        UnsupportedConfigError: It is of both, or has a setting that is not built.
    """
    vision = sub_config(config, "vision_config")
    is_davit = vision.get("model_type") == "davit"
    if _MARK not in vision and not is_davit:
        return Florence2(config)
    if _OTHER in vision or _MARK not in vision:
        raise UnsupportedConfigError(
            f"vision_config has {', '.join(sorted({_MARK, _OTHER, 'model_type'} & vision.keys()))}: Microsoft's layout "
            f"says {_MARK} (of a davit), transformers' says {_OTHER}; take config.json and weights of one repository"
        )
    return Florence2Authors(config)


class Florence2Authors(Florence2):
    """`model_type` florence2, in the layout of Microsoft's own code.

    There is no token for an image: `<mask>`, which no question or answer of the model has, marks it in the template.
    """

    image_token: ClassVar[str] = "<mask>"
    default_tokens: ClassVar[Mapping[str, str]] = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    }
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^language_model\.lm_head\.", "lm_head."),
        (rf"^language_model\.(?:model\.)?(?!{_BIASES})", f"{LANGUAGE}."),
        (r"^vision_tower\.", "model.vision_tower."),
        (r"^(model\.vision_tower\.convs\.\d+)\.proj\.", r"\1.conv."),
        (r"\.(conv[12])\.fn\.dw\.", r".\1."),
        (r"\.(?:window|channel)_attn\.norm\.", ".norm1."),
        (r"\.(window|channel)_attn\.fn\.", r".\1_attn."),
        (r"\.ffn\.norm\.", ".norm2."),
        (r"\.ffn\.fn\.net\.", ".ffn."),
        (r"^image_pos_embed\.", "model.multi_modal_projector.image_position_embed."),
        (r"^image_proj_norm\.", "model.multi_modal_projector.image_proj_norm."),
        (r"^visual_temporal_embed\.", "model.multi_modal_projector.visual_temporal_embed."),
    )

    def __init__(self, config: Raw) -> None:
        require(config, [("quantization_config", None)])
        text = {key: value for key, value in sub_config(config, "text_config").items() if key != "model_type"}
        tower = _as_transformers(sub_config(config, "vision_config"))
        super().__init__({**config, "text_config": {**_DEFAULTS, **text}, "vision_config": tower})

    @property
    def stated_generation(self) -> Raw:
        """How answers are searched for: settings that the decoder's config keeps here."""
        text = sub_config(self.config, "text_config")
        return {key: text[key] for key in ("num_beams", "no_repeat_ngram_size") if key in text}

    def own_tokens(self, ids: Mapping[str, int]) -> Mapping[str, int]:
        """Return the places of boxes and the marks of tasks, behind the tokenizer's own.

        Raises:
            UnsupportedConfigError: The table of words has no rows for them.
        """
        first, lacking = max(ids.values()) + 1, [token for token in OWN_TOKENS if token not in ids]
        if first + len(lacking) > self.vocab_size:
            raise UnsupportedConfigError(
                f"tokenizer.json ends with token {first - 1}, and the processor adds {len(lacking)} behind it; the "
                f"table has {self.vocab_size} rows. Tokenizer and weights do not belong together."
            )
        return {token: first + number for number, token in enumerate(lacking)}

    def stored_weights(self) -> QuantizationMethod:
        """Return that a matrix lies the other way round, and one table under several names."""
        return _StoredAsPublished(is_tied=bool(self.config["tie_word_embeddings"]))


def _as_transformers(vision: Raw) -> dict[str, Any]:
    """Return the tower's part of the config in transformers' words.

    Raises:
        UnsupportedConfigError: Places, times or features of another kind.
    """
    places, times = (vision.get(key) or {} for key in ("image_pos_embed", "visual_temporal_embedding"))
    kinds, sources = (places.get("type"), times.get("type")), vision.get("image_feature_source", _SOURCES)
    if kinds != ("learned_abs_2d", "COSINE"):
        raise UnsupportedConfigError(
            f"vision_config: image_pos_embed of type {kinds[0]!r} and visual_temporal_embedding of type {kinds[1]!r}; "
            "built are learned_abs_2d and COSINE"
        )
    if list(sources) != _SOURCES:
        raise UnsupportedConfigError(f"vision_config.image_feature_source {sources!r}; built is {_SOURCES}")
    own = {_OTHER: vision[_MARK], "max_position_embeddings": places.get("max_pos_embeddings", 50)}
    return {**own, **{key: vision[key] for key in _READ if key in vision}}


@dataclass(frozen=True)
class _Turned:
    """A matrix that a checkpoint has as [in, out].

    Attributes:
        stored: As it lies there.
    """

    stored: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in]."""
        return self.stored.shape[::-1]

    def read(self) -> npt.NDArray[np.float32]:
        """Return [out, in]."""
        return np.ascontiguousarray(self.stored.read().T)


class _StoredAsPublished(QuantizationMethod):
    """Microsoft's tensors, under transformers' names.

    Args:
        is_tied: The output matrix is the table of words.
    """

    def __init__(self, *, is_tied: bool) -> None:
        super().__init__({})
        self._tables = (*_TABLES, _HEAD) if is_tied else _TABLES

    def restored(self, stored: Mapping[str, StoredTensor], linears: AbstractSet[str]) -> dict[str, WeightTensor]:
        """Return the projection as transformers has it, one table of words, and all others as they are.

        Raises:
            CheckpointError: The weights are in transformers' layout, names of one table have different numbers, or
                scores have biases, which the code adds and never trains.
        """
        refuse_codes(stored, "Microsoft's layout is read in full precision alone")
        if _STORED_PROJECTION not in stored:
            raise CheckpointError(
                f"the checkpoint has no {_STORED_PROJECTION}: its config.json is of Microsoft's layout "
                f"(vision_config.{_MARK}) and its weights are not; take both of one repository"
            )
        found: dict[str, WeightTensor] = dict(stored)
        self._drop_biases(found)
        self._keep_one_table(found)
        found[PROJECTION] = _Turned(stored[_STORED_PROJECTION])
        del found[_STORED_PROJECTION]
        return found

    @staticmethod
    def _drop_biases(found: dict[str, WeightTensor]) -> None:
        name = f"language_model.{_BIASES}"
        if name in found and found.pop(name).read().any():
            raise CheckpointError(f"{name} is not 0 everywhere; scores with biases are not built for Florence-2")

    def _keep_one_table(self, found: dict[str, WeightTensor]) -> None:
        names = [name for name in self._tables if name in found]
        if not names:
            return
        kept = found[names[0]]
        for name in names[1:]:
            if found[name].shape != kept.shape or not np.array_equal(found[name].read(), kept.read()):
                raise CheckpointError(f"{name} differs from {names[0]}; Florence-2 has one table of words for both")
            del found[name]
        found[SHARED] = kept
        for name in self._tables:
            if name != SHARED:
                found.pop(name, None)
