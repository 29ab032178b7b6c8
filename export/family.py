"""What one architecture has to say: its graphs, and where the checkpoint keeps their weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.image import ImageSpec
from bundle.manifest import ComponentName, Role, Task, TensorSpec
from bundle.states import State
from export.config import Raw
from export.nn.dialect import Dialect
from export.nn.module import Module
from export.quantized.method import QuantizationMethod
from export.quantized.table import load_method


@dataclass(frozen=True)
class GraphPlan:
    """A graph to be written.

    Attributes:
        module: Called with the inputs and then the states, returns the outputs, the optional ones and then the states
            (one value or a tuple).
        role: What the graph computes.
        inputs: In order.
        outputs: In order.
        states: What it takes and gives beside them.
        optional_outputs: Behind the outputs, in order.
    """

    module: Module
    role: Role
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[State, ...] = ()
    optional_outputs: tuple[TensorSpec, ...] = ()


class Family(ABC):
    """One architecture, opened on one config.

    Class attributes:
        sees: Takes images.
        reads_texts: Takes texts, so that there is a tokenizer.
        renames: (pattern, replacement) for `re.sub`, applied in order to every key of the checkpoint; they turn the
            older layouts into the one that the modules are named by.
        unused: Patterns of keys that no graph wants: buffers that hold no weights, and parts that the outputs skip.
        scalars: Keys that go into the manifest and not into a graph.
        image_processor: The class that transformers takes where a processor's files name none.
        lower_cases: Texts are cut into tokens of lower case, whatever the tokenizer's files say (SigLIP).
        cleans: How texts are cleaned before they are cut into tokens, a name of `export.cleaning.CLEANINGS`.
        default_tokens: Special tokens by name, as the tokenizer's class has them where its files name none.
        reads_image_settings: Graphs hold numbers of the image processor's.

    Attributes:
        stated_images: The image processor's settings as the checkpoint states them, where `reads_image_settings`.
    """

    task: ClassVar[Task]
    sees: ClassVar[bool] = True
    reads_texts: ClassVar[bool] = True
    renames: ClassVar[tuple[tuple[str, str], ...]] = ()
    unused: ClassVar[tuple[str, ...]] = (r".*\.position_ids", r".*\.rotary_emb\.inv_freq")
    scalars: tuple[str, ...] = ()
    image_processor: ClassVar[str]
    lower_cases: ClassVar[bool] = False
    cleans: str | None = None
    default_tokens: ClassVar[Mapping[str, str]] = {}
    reads_image_settings: ClassVar[bool] = False

    def __init__(self, config: Raw) -> None:
        self.config = config
        self.stated_images: Raw = {}

    @property
    @abstractmethod
    def image_size_px(self) -> int | None:
        """Side of the images that the vision graph takes; None where it takes any that its processor makes."""

    def check_images(self, spec: ImageSpec) -> None:
        """Check that the preprocessing makes what the vision graph takes.

        Raises:
            UnsupportedConfigError: Images of another size.
        """
        side = self.image_size_px
        if side is not None and (tuple(spec.tile_size_px) != (side, side) or not spec.geometry.has_one_size):
            raise UnsupportedConfigError(
                f"the processor makes images of {spec.tile_size_px} pixels, the vision tower takes {side}; "
                "only towers fed at their own resolution are built"
            )

    def check_tokenizer(self, settings: Mapping[str, Any]) -> None:  # noqa: B027 - most have nothing to check
        """Check `tokenizer_config.json`, of models without a decoder.

        Raises:
            UnsupportedConfigError: It does not go with the model.
        """

    @property
    def image_settings(self) -> Raw:
        """What the model's processor tells its image processor, whatever the files say."""
        return {}

    def own_image_spec(self) -> ImageSpec | None:
        """Return the preprocessing that the config itself states; None: the processor's files do."""
        return None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Token ids are below it."""

    @abstractmethod
    def graphs(self, dialect: Dialect) -> dict[ComponentName, GraphPlan]:
        """Return the bundle's graphs."""

    def stored_weights(self) -> QuantizationMethod:
        """Return how the checkpoint stores its weights."""
        return load_method(self.config)

    def stand_ins(self) -> dict[str, str]:
        """Return checkpoint keys that may be absent, each with the key that then takes its place."""
        return {}

    def is_of_decoder(self, name: str) -> bool:
        """Return whether a weight, by its name in the graphs, belongs to a causal decoder."""
        return False

    def skipped(self) -> tuple[str, ...]:
        """Return `unused`, plus what this config leaves out of the graphs."""
        return self.unused


def pixels(side_px: int | None) -> TensorSpec:
    """Return the input of a vision graph; without a side, its images are of any size, one in each run."""
    height, width = (side_px, side_px) if side_px is not None else ("height", "width")
    return TensorSpec(name=tensors.PIXEL_VALUES, dtype="float32", shape=("I", 3, height, width))
