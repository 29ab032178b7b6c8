"""A decoder that embeds: what is made of its states, and how inputs are written for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.adapters import AdapterDims
from bundle.dims import Pooling
from bundle.errors import UnsupportedConfigError
from bundle.manifest import InputType
from export.checkpoint import Checkpoint
from export.nn.linear import Linear
from export.nn.module import Module
from export.nn.yes_no import YesNo
from export.settings_file import read_settings

IMAGE_SLOT = "{{ image }}"
"""Of a template: what the family writes for an image."""
_AUGMENTED = (
    "{%% for message in messages if message.role != 'system' %%}{%% for part in message.content %%}"
    "{%% if part.type == 'image' %%}%s{%% else %%}{{ part.text }}%s{%% endif %%}{%% endfor %%}{%% endfor %%}"
)
"""An image before the wish to describe it, a text before ten tokens that look for what it does not say."""
TEMPLATES: Mapping[str, str] = {
    "plain": (
        "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}{{ image }}"
        "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    ),
    "gme": (
        "<|im_start|>system\n{% if messages[0].role == 'system' %}{% for part in messages[0].content %}{{ part.text }}"
        "{% endfor %}{% else %}You are a helpful assistant.{% endif %}<|im_end|>\n<|im_start|>user\n"
        "{% for message in messages if message.role != 'system' %}{% for part in message.content %}"
        "{% if part.type == 'image' %}{{ image }}{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
        "<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
    ),
    "e5-v": (
        "<|start_header_id|>user<|end_header_id|>\n\n{% for message in messages %}{% for part in message.content %}"
        "{% if part.type == 'image' %}{{ image }}{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
        "{{ '\\n' }}Summary above {% if messages[-1].content[0].type == 'image' %}image{% else %}sentence{% endif %} "
        "in one word: <|eot_id|><|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n \\n' }}"
    ),
    "lamra": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "{% set seen = namespace(image=false, text=false) %}{% for message in messages if message.role != 'system' %}"
        "{% for part in message.content %}{% if part.type == 'image' %}{% set seen.image = true %}{{ image }}"
        "{% else %}{% set seen.text = true %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
        "{{ '\\n' }}Summarize above {% if seen.image and seen.text %}image and sentence{% elif seen.image %}image"
        "{% else %}sentence{% endif %} in one word: <|im_end|>\n<|im_start|>assistant{{ '\\n' }}"
    ),
    "mme5": (
        "{{ bos_token }}{% for message in messages %}{% for part in message.content if part.type == 'image' %}"
        "{{ image }}{% endfor %}{% endfor %}{{ bos_token }}{% for message in messages %}"
        "{% for part in message.content if part.type != 'image' %}{{ part.text }}{% endfor %}{% endfor %}"
    ),
    "colqwen2": _AUGMENTED
    % ("<|im_start|>user\n{{ image }}Describe the image.<|im_end|><|endoftext|>", "<|endoftext|>" * 10),
    "colidefics3": _AUGMENTED
    % (
        "<|im_start|>User:{{ image }}Describe the image.<end_of_utterance>\nAssistant:",
        "<end_of_utterance>" * 10,
    ),
}
"""How an input is written, by the name that `--template` takes: images and texts as they come (the caller's text is
the instruction, as for VLM2Vec, arXiv 2410.05160); GME's (arXiv 2412.16855), an instruction before it and an end token
behind; E5-V's (arXiv 2407.12580), a wish for one word behind it; LamRA's (arXiv 2412.01720), the same in
a chat, whose vector is the state from which its code would say `<emb>`;
mmE5's (arXiv 2502.08468), images before the texts, and the token that begins a text twice, by its processor and by its
tokenizer; what colpali_engine 0.3 writes for the
checkpoints of its own (arXiv 2407.01449), without the "Query: " of older ones. `image` stands for what the family
writes for one."""
_HEADS = ("custom_text_proj", "embedding_proj_layer", "linear")
"""What checkpoints of late-interaction models call their projection (colpali_engine's, transformers', ColIdefics3)."""


@dataclass(frozen=True)
class Head:
    """A projection of every token's state.

    Attributes:
        name: Where the checkpoint keeps it.
        size: E.
        has_bias: Whether biases are added.
    """

    name: str
    size: int
    has_bias: bool

    def module(self, hidden_size: int) -> Module:
        """Return the module [B, N, D] -> [B, N, size]."""
        return Linear(hidden_size, self.size, rows=None, bias=self.has_bias, name=self.name)


@dataclass(frozen=True)
class StateVectors:
    """How the states of a vision-language model become vectors.

    Attributes:
        pooling: Which states become vectors.
        head: What they are projected by; None: they are the vectors.
        template: How an input is written: a chat template's source; None: as the checkpoint's own writes a question.
        prefixes: What stands before the first text of an input of a type.
        also_answers: The decoder gives the vocabulary's scores as well.
        late: What every token's state is projected by for requests that want a vector of each; None: by nothing.
        default_type: Of an input of which a request says nothing.
        pools_images: As of `bundle.dims.EmbedderDims`.
        adapters: That the decoder holds beside one another.
        choice: Ids of a yes and of a no, between whose scores the decoder's last state decides; None: it gives vectors.
    """

    pooling: Pooling
    head: Head | None = None
    template: str | None = None
    prefixes: Mapping[InputType, str] | None = None
    also_answers: bool = False
    late: Head | None = None
    default_type: InputType | None = None
    pools_images: bool = False
    adapters: tuple[AdapterDims, ...] = ()
    choice: tuple[int, int] | None = None

    @property
    def unused(self) -> tuple[str, ...]:
        """Patterns of keys of projections that this does not read."""
        return tuple(rf"{name}\.(weight|bias)" for name in _HEADS if self.head is None or name != self.head.name)

    def size(self, hidden_size: int) -> int:
        """Return E."""
        if self.choice is not None:
            return 1
        return hidden_size if self.head is None else self.head.size

    def module(self, hidden_size: int) -> Module:
        """Return the module [B, N, D] -> [B, N, E]."""
        if self.choice is not None:
            return YesNo(hidden_size, self.choice)
        return _Unchanged() if self.head is None else self.head.module(hidden_size)


class _Unchanged(Module):
    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Identity(x)


@dataclass(frozen=True)
class EmbeddingOptions:
    """How a user wants a checkpoint to embed.

    Attributes:
        pooling: None: every token's vector where there is a projection, else the last token's.
        template: A name in `TEMPLATES`, or a file; None: the checkpoint's own.
        also_answers: It goes on answering.
        ranks: It says how well two inputs fit, and makes no vectors; `template` is a name in
            `export.ranking.RANKINGS`, or a file.
    """

    pooling: Pooling | None = None
    template: str | None = None
    also_answers: bool = False
    ranks: bool = False


def found_embedding(source: Checkpoint, options: EmbeddingOptions) -> StateVectors:
    """Return how a checkpoint that answers is made to embed.

    Its projection, where it has one, is found by name, and its prefixes where sentence-transformers keeps them.

    Raises:
        UnsupportedConfigError: A template that is neither name nor file, or a pooling that contradicts the projection.
    """
    head, pooling, template = _found_head(source), options.pooling, options.template
    if pooling == "tokens" and head is None:
        raise UnsupportedConfigError(
            f"--pooling tokens wants a projection of every token, and {source.folder} holds none of "
            f"{', '.join(_HEADS)}; take last or mean"
        )
    chosen: Pooling = pooling or ("last" if head is None else "tokens")
    if chosen != "tokens":
        head = None
    written = None if template is None else TEMPLATES.get(template) or read_template(template, TEMPLATES)
    prefixes = found_prefixes(source.folder)
    return StateVectors(chosen, head, written, prefixes, options.also_answers)


def _found_head(source: Checkpoint) -> Head | None:
    for name in _HEADS:
        if (weight := source.tensors.get(f"{name}.weight")) is not None:
            return Head(name, weight.shape[0], f"{name}.bias" in source.tensors)
    return None


def read_template(given: str, known: Collection[str]) -> str:
    """Return a template of a file.

    Args:
        given: The file.
        known: Names that could have been given instead.

    Raises:
        UnsupportedConfigError: It cannot be read.
    """
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UnsupportedConfigError(
            f"--template {given} is no file that can be read, nor one of {', '.join(known)}"
        ) from error


def found_prefixes(folder: Path) -> dict[InputType, str]:
    """Return the prompts that sentence-transformers puts before queries and documents."""
    stated = read_settings(folder / "config_sentence_transformers.json", required=False).get("prompts") or {}
    kinds: tuple[InputType, ...] = ("query", "document")
    return {kind: str(stated[kind]) for kind in kinds if stated.get(kind)}
