"""What a bundle says of itself: the models behind `manifest.json`.

The file is written once, last, when everything else stands; `bundle.directory` reads it back and verifies it.
"""

from __future__ import annotations

from itertools import product
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from bundle.adapters import InputType as InputType
from bundle.dims import DecoderDims, DualEncoderDims, EmbedderDims, PairDims, QuestionDims, VectorSizes
from bundle.errors import BundleFormatError, ModelNotFoundError
from bundle.fields import MOST_NAME_CHARACTERS, MOST_TEXT_CHARACTERS, Frozen, Lines, Text, TokenId, check_text
from bundle.gates import Gate, Unmeasured
from bundle.grounding import KnownGrounding
from bundle.layouts.prompt import ImagePrompt as ImagePrompt
from bundle.layouts.table import KnownImagePrompt
from bundle.states import CacheScheme, State
from bundle.tensors import ADAPTERS, PIXEL_VALUES

FORMAT_VERSION = 2
"""Bumped when a reader of the previous version would misread a bundle. Version 1 is read too: `bundle.format_1`."""

ComponentName = str
"""What a bundle calls one of its graphs: `graph_name`."""
Role = Literal["vision_encoder", "embed_tokens", "decoder", "text_encoder", "pair_encoder"]
"""What a graph computes, whatever it is called and however its weights are stored."""
ENCODER_ROLES: tuple[Role, ...] = ("vision_encoder", "text_encoder", "pair_encoder")
"""Those that run whole inputs: many rows at once, and nothing is kept."""
_LANGUAGE_MODEL: tuple[Role, ...] = ("embed_tokens", "decoder")
Phase = Literal["prompt", "step", "any"]
"""When a decoder's graph runs: over the tokens that a caller sent, over one that was sampled, or over both."""
RunPhase = Literal["prompt", "step"]
Task = Literal[
    "image-text-to-text",
    "image-text-to-text-and-vectors",
    "dual-encoder",
    "text-embedding",
    "image-embedding",
    "image-text-embedding",
    "cross-encoder",
]
BOTH: Task = "image-text-to-text-and-vectors"
ANSWERING_TASKS: tuple[Task, ...] = ("image-text-to-text", BOTH)
EMBEDDING_TASKS: tuple[Task, ...] = (
    "dual-encoder",
    "text-embedding",
    "image-embedding",
    "image-text-embedding",
    BOTH,
)
RANKING_TASKS: tuple[Task, ...] = (*EMBEDDING_TASKS, "cross-encoder")
"""Those that say how near two inputs are."""
Dialect = Literal["contrib", "portable"]
Scheme = Literal[
    "fp32", "fp16", "int8", "int8-static", "int8-weight-only", "int4", "nf4", "fp4", "int2", "ternary", "mixed"
]
Target = Literal["cpu", "cuda", "tensorrt"]


def check_name(name: str) -> str:
    """Return a model's id; it stands in addresses, log lines, file names and terminals.

    Raises:
        ValueError: It is empty, too long, holds what is not printed, or leads out of a folder.
    """
    parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    is_path = name.startswith("/") or any(part in ("..", ".") or part.endswith(("\\", ":")) for part in parts)
    if not 0 < len(name.strip()) == len(name) <= MOST_NAME_CHARACTERS or is_path or not name.isprintable():
        raise ValueError(
            f"the name {name[:MOST_NAME_CHARACTERS]!r} is of no use: 1 to {MOST_NAME_CHARACTERS} printed characters, "
            "no space at its ends, no path that leads elsewhere"
        )
    return name


class TensorSpec(Frozen):
    """One input or output of a graph.

    Attributes:
        name: As in the graph.
        dtype: numpy name, e.g. "float32", "int64".
        shape: A size, or the axis name of a size that is free at run time
            (B sequences, T new tokens, N sampled rows, I images).
    """

    name: Text
    dtype: Text
    shape: tuple[int | str, ...]


class Component(Frozen):
    """One graph of the bundle.

    Attributes:
        file: The `.onnx` file; its weights lie beside it in `file + ".data"`.
        role: What it computes. Graphs of one role compute the same function and share one recorded run.
        phase: When it runs, where two graphs have one role.
        scheme: How its weights are stored.
        detail: One line per choice made by the planner, for people.
        inputs: In graph order. A decoder takes and gives the manifest's `states` beside them.
        outputs: In graph order.
        optional_inputs: Inputs with a value of their own in the graph, which a caller may leave out.
        optional_outputs: Outputs that are computed only where a caller asks for them.
        weight_bytes: Size of all initializers as stored.
    """

    file: Text = Field(pattern=r"\.onnx$")  # a runtime chooses how it reads a file by its ending
    role: Role
    phase: Phase = "any"
    scheme: Scheme
    detail: Lines = ""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    optional_inputs: tuple[TensorSpec, ...] = ()
    optional_outputs: tuple[TensorSpec, ...] = ()
    weight_bytes: int = Field(ge=0)

    def runs(self, phase: RunPhase) -> bool:
        """Return whether this graph runs tokens of a phase."""
        return self.phase in ("any", phase)


class Segment(Component):
    """Neighbouring layers of the decoder as a graph of their own, for prompts that lose image tokens on the way.

    A prompt's hidden states run through one segment after the other. Each takes `inputs_embeds`, which are the hidden
    states that the one before gave, and the states of its own layers; the last one gives logits.

    Attributes:
        first_layer: Of the decoder's layers, counted from 0.
        end_layer: Behind the last of them.
        group: The length group of their states; segments are the groups in order.
    """

    role: Literal["decoder"] = "decoder"
    phase: Literal["prompt"] = "prompt"
    first_layer: int = Field(ge=0)
    end_layer: int = Field(gt=0)
    group: int = Field(ge=0)


def _takes_images(part: Component) -> bool:
    return part.role == "pair_encoder" and any(spec.name == PIXEL_VALUES for spec in part.inputs)


def _gives_rows(part: Component) -> bool:
    return part.role == "vision_encoder" and len(part.outputs) > 0 and len(part.outputs[0].shape) == 3


def graph_name(role: Role, phase: Phase = "any") -> ComponentName:
    """Return what a bundle calls a graph: its role, and a suffix where prompts have a graph of their own."""
    return f"{role}_prefill" if phase == "prompt" else role


class FileRecord(Frozen):
    """Size and digest of one file of the bundle."""

    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(Frozen):
    """All that a server must know before it opens a graph.

    Attributes:
        format_version: `FORMAT_VERSION` of the writer.
        name: The model id under which it is served unless told otherwise.
        source: Hub id or folder name of the checkpoint (never an absolute path).
        source_sha256: Digest over the checkpoint's weight files, the model's identity in cache keys.
        model_type: As in the checkpoint's config.
        task: What the model does.
        dialect: Which operator set the graphs are written in.
        target: The execution provider that the weights were chosen for.
        components: By name.
        states: What the decoder hands from step to step; empty without one.
        segments: The decoder's graph for prompts once more, cut between layers; empty where it was not cut.
        decoder: Vision-language models only.
        image_prompt: Vision-language models only, those that embed among them.
        grounding: How boxes stand in answers; None where the model says none.
        question: Models whose vision encoder reads the question beside the image; None: it sees images alone.
        dual: Models that embed by encoders: of images and texts, or of texts alone.
        embedder: Models that embed by a decoder, which gives states: no logits, or beside them. Of a task
            "cross-encoder" the decoder's one number for a prompt says how well the two that it holds fit.
        image_vectors: Models that embed images and read no texts.
        pairs: Models that read a text and an image together, or two texts, and say how well they fit.
        bos_token_id: None where the tokenizer adds none.
        eos_token_ids: Generation stops at any of them.
        template_tokens: Special tokens by the name that the chat template uses ("bos_token", "eos_token", ...).
        gates: Empty for an fp32 export: it is its own reference.
        unmeasured: Gates that the samples could not tell of; they are neither passed nor failed.
        files: Every other file of the bundle by name.
    """

    format_version: Literal[2] = 2
    name: Annotated[str, AfterValidator(check_name)]
    source: Text
    source_sha256: Text
    created_by: Text
    model_type: Text
    task: Task
    dialect: Dialect
    target: Target = "cpu"
    components: dict[Annotated[ComponentName, AfterValidator(check_text)], Component] = Field(max_length=64)
    states: tuple[State, ...] = Field(default=(), max_length=1 << 14)
    segments: tuple[Segment, ...] = Field(default=(), max_length=64)
    decoder: DecoderDims | None = None
    image_prompt: KnownImagePrompt | None = None
    grounding: KnownGrounding | None = None
    question: QuestionDims | None = None
    dual: DualEncoderDims | None = None
    embedder: EmbedderDims | None = None
    image_vectors: VectorSizes | None = None
    pairs: PairDims | None = None
    bos_token_id: TokenId | None = None
    eos_token_ids: tuple[TokenId, ...] = Field(default=(), max_length=1 << 10)
    template_tokens: dict[str, Annotated[str, Field(max_length=MOST_TEXT_CHARACTERS)]] = Field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    unmeasured: tuple[Unmeasured, ...] = ()
    files: dict[str, FileRecord] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_graphs(self) -> Manifest:
        phases: tuple[RunPhase, ...] = get_args(RunPhase)
        for role, phase in product({part.role for part in self.components.values()}, phases):
            names = [name for name, part in self.components.items() if part.role == role and part.runs(phase)]
            if len(names) != 1:
                raise ValueError(f"{len(names)} graphs run the {phase} of {role} ({', '.join(names)}); one must")
        self._check_adapters()
        groups = {state.group for state in self.states if state.group is not None}
        if groups != set(range(len(groups))):
            raise ValueError(f"length groups of the states are {sorted(groups)}; they count up from 0")
        if len(schemes := {state.scheme for state in self.states if state.kind == "rows"}) > 1:
            raise ValueError(f"the rows of the states are stored as {', '.join(sorted(schemes))}; one scheme for all")
        return self

    def _check_adapters(self) -> None:
        held = () if self.decoder is None else self.decoder.adapters
        if len({each.name for each in held}) != len(held):
            raise ValueError(f"adapters are called {', '.join(each.name for each in held)}; each has a name of its own")
        if not held:
            return
        roles = {"decoder", "vision_encoder"} if any(each.changes_vision for each in held) else {"decoder"}
        for name, part in self.components.items():
            if part.role in roles and all(spec.name != ADAPTERS for spec in part.inputs):
                raise ValueError(f"{name} takes no {ADAPTERS}, and the manifest says that sequences choose some")

    @model_validator(mode="after")
    def _check_segments(self) -> Manifest:
        places = [(part.first_layer, part.end_layer, part.group) for part in self.segments]
        starts = [0, *(end for _, end, _ in places)]
        for number, (first, end, group) in enumerate(places):
            if first != starts[number] or first >= end or group != number:
                raise ValueError(
                    f"segment {number} runs layers {first} to {end} of group {group}; they follow in order"
                )
        if self.segments and len(self.segments) != self.num_length_groups:
            raise ValueError(f"{len(self.segments)} segments of {self.num_length_groups} length groups; each has one")
        return self

    @model_validator(mode="after")
    def _check_image_tokens(self) -> Manifest:
        rows = [part.outputs[0].shape[1:2] for part in self.components.values() if _gives_rows(part)]
        wanted = None if self.image_prompt is None else self.image_prompt.rows_per_tile
        if wanted is not None and any(isinstance(found, int) and found != wanted for (found,) in rows):
            raise ValueError(
                f"the image prompt wants {wanted} rows for a tile, but the vision encoder gives {rows[0][0]}"
            )
        return self

    @property
    def reads_pairs(self) -> bool:
        """Whether the model scores pairs: it reads both together, by an encoder or by a decoder."""
        return self.task == "cross-encoder"

    @property
    def embeds(self) -> bool:
        """Whether the model makes vectors and no answers."""
        if self.reads_pairs:
            return False
        if self.dual is not None or self.image_vectors is not None:
            return True
        return self.embedder is not None and self.decoder is None

    @property
    def sees(self) -> bool:
        """Whether the model takes images."""
        return any(part.role == "vision_encoder" or _takes_images(part) for part in self.components.values())

    def adapter_number(self, name: str) -> int:
        """Return the number, in the graphs, of an adapter that a request chooses as a model; 0 of none, which is "".

        Raises:
            ModelNotFoundError: The decoder holds none of that name.
        """
        held = () if self.decoder is None else self.decoder.adapter_names
        if name and name not in held:
            told = ", ".join(held) or "none"
            raise ModelNotFoundError(f"{self.name} holds no adapter {name[:100]!r}; it holds {told}", "model")
        return held.index(name) + 1 if name else 0

    def graph(self, role: Role, phase: RunPhase = "step") -> ComponentName:
        """Return the name of the graph that runs a role in a phase.

        Raises:
            BundleFormatError: There is none.
        """
        for name, component in self.components.items():
            if component.role == role and component.runs(phase):
                return name
        raise BundleFormatError(f"{self.name} has no graph with the role {role}, only {', '.join(self.components)}")

    def always_given(self, name: ComponentName) -> tuple[str, ...]:
        """Return the outputs that a graph gives at every run, states among them."""
        component = self.components[name]
        return (
            *(spec.name for spec in component.outputs),
            *(state.output for state in self.states_of(component) if state.output),
        )

    def scheme_of(self, role: Role, phase: RunPhase) -> Scheme:
        """Return how the weights are stored that run a role in a phase.

        Raises:
            BundleFormatError: There is no such graph.
        """
        return self.components[self.graph(role, phase)].scheme

    def states_of(self, part: Component) -> tuple[State, ...]:
        """Return what one of the graphs takes and gives back."""
        if isinstance(part, Segment):
            return tuple(state for state in self.states if state.group == part.group)
        return self.states if part.role == "decoder" else ()

    @property
    def num_length_groups(self) -> int:
        """G: how many row counts a sequence has."""
        return len({state.group for state in self.states if state.group is not None})

    @property
    def state_bytes_per_token(self) -> int:
        """Bytes of one token's rows over all states, where every length group keeps one."""
        return sum(state.num_bytes for state in self.states if state.kind == "rows")

    @property
    def state_bytes_per_sequence(self) -> int:
        """Bytes of one sequence's states of fixed size, memory among them."""
        return sum(state.num_bytes for state in self.states if state.kind != "rows")

    @property
    def cache_scheme(self) -> CacheScheme:
        """How the rows of the decoder's cache are stored; "float" without one."""
        return next((state.scheme for state in self.states if state.scheme != "float"), "float")

    @property
    def cache_dtype(self) -> str:
        """The word for the rows of the cache in tables: "float32", "float16", "int8", "int4"; "" without one."""
        dtypes = (state.dtype for state in self.states if state.kind == "rows")
        return self.cache_scheme if self.cache_scheme != "float" else next(dtypes, "")

    @property
    def is_as_exported(self) -> bool:
        """True where neither weights nor cache were made smaller."""
        return self.cache_scheme == "float" and all(part.scheme == "fp32" for part in self.components.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of all components' weights as stored."""
        return sum(part.weight_bytes for part in (*self.components.values(), *self.segments))

    @property
    def language_model_bytes(self) -> int:
        """Bytes of the weights that tokens run through: embeddings and decoders."""
        return sum(part.weight_bytes for part in self.components.values() if part.role in _LANGUAGE_MODEL)

    @property
    def has_failed_gate(self) -> bool:
        """True where some measured value missed its threshold."""
        return any(not gate.passed for gate in self.gates)

    @property
    def is_gated(self) -> bool | None:
        """Whether quality was measured on samples and every gate that could be measured passed; None for fp32."""
        if self.is_as_exported:
            return None
        return not self.has_failed_gate and any(gate.basis == "samples" for gate in self.gates)
