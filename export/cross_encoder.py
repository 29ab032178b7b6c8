"""One encoder over two things that are compared, a text and an image or two texts, and a score."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.manifest import ComponentName, Task, TensorSpec
from export.config import Raw
from export.family import Family, GraphPlan, pixels
from export.nn.dialect import Dialect
from export.nn.module import Module

_IDS, _MASK, _TYPES = (
    TensorSpec(name=name, dtype="int64", shape=("B", "T"))
    for name in (tensors.INPUT_IDS, tensors.ATTENTION_MASK, tensors.TOKEN_TYPE_IDS)
)


@dataclass(frozen=True)
class PairTexts:
    """What a model that reads pairs wants of their texts.

    Attributes:
        vocab_size: Ids are below it.
        max_tokens: Longest row: of a text, or of two where no image is read.
    """

    vocab_size: int
    max_tokens: int


class CrossEncoder(Family):
    """One encoder over a text and something else, and a score."""

    task: ClassVar[Task] = "cross-encoder"

    @property
    @abstractmethod
    def texts(self) -> PairTexts:
        """What callers must know of the text side."""

    @property
    def num_frames(self) -> int:
        """Of a video that is read beside a text; 1: an image is."""
        return 1

    @property
    def vocab_size(self) -> int:
        """Of the texts."""
        return self.texts.vocab_size

    @abstractmethod
    def pair(self, dialect: Dialect) -> Module:
        """Return the module `inputs` -> scores [B]."""

    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return what the graph takes: input_ids and attention_mask [B, T], pixel_values [B, 3, height, width]."""
        images = pixels(self.image_size_px)
        return _IDS, _MASK, images.model_copy(update={"shape": ("B", *images.shape[1:])})

    def graphs(self, dialect: Dialect) -> dict[ComponentName, GraphPlan]:
        """Return the graph of docs/bundle-format.md."""
        scores = TensorSpec(name=tensors.PAIR_SCORES, dtype="float32", shape=("B",))
        return {"pair_encoder": GraphPlan(self.pair(dialect), "pair_encoder", self.inputs(), (scores,))}


class TextReranker(CrossEncoder):
    """One encoder over two texts, as sentence-transformers' CrossEncoder runs it.

    Class attributes:
        architecture: The class of transformers whose head is built.
        tells_texts_apart: The graph takes token_type_ids.
    """

    sees = False
    image_processor = ""
    architecture: ClassVar[str]
    tells_texts_apart: bool = False

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        if (named := config.get("architectures") or [self.architecture]) != [self.architecture]:
            raise UnsupportedConfigError(
                f"architectures {', '.join(named)}: of {config['model_type']} the head that scores two texts is built, "
                f"{self.architecture}. A model that makes vectors of texts comes in by `pocketvlm adopt`"
            )
        if (labels := _num_labels(config)) != 1:
            raise UnsupportedConfigError(
                f"the head has {labels} labels; a model that orders documents has one, how well query and document fit"
            )

    @property
    def image_size_px(self) -> None:
        """None: it takes no images."""
        return

    def check_tokenizer(self, settings: Mapping[str, Any]) -> None:
        """Check that the tokenizer tells texts apart where the model was trained on that.

        Raises:
            UnsupportedConfigError: It does not.
        """
        names = settings.get("model_input_names")
        if self.tells_texts_apart and names is not None and tensors.TOKEN_TYPE_IDS not in names:
            raise UnsupportedConfigError(
                f"tokenizer_config.json: model_input_names {names} has no {tensors.TOKEN_TYPE_IDS}, and the model has "
                f"{self.config.get('type_vocab_size', 2)} of them: a model that was trained on the first alone is not "
                "built. Set type_vocab_size to 1 and keep the first row of its table"
            )

    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return what the graph takes, [B, T] each."""
        return (_IDS, _MASK, _TYPES) if self.tells_texts_apart else (_IDS, _MASK)


def _num_labels(config: Raw) -> int:
    """Return how many scores a head has: transformers' two where the config says nothing."""
    if (stated := config.get("num_labels")) is not None:
        return int(stated)
    return len(config.get("id2label") or (0, 1))
