"""jina-embeddings-v4 (arXiv 2506.18902): Qwen2.5-VL that embeds, with an adapter for each task beside its weights."""

from __future__ import annotations

from collections.abc import Mapping

from bundle.adapters import AdapterDims, InputType
from bundle.errors import UnsupportedConfigError
from bundle.layouts.prompt import ImagePrompt
from export.config import Raw, require
from export.embedding import Head, StateVectors
from export.found_processor import FoundProcessor
from export.models.qwen2_5_vl import Qwen25VL

_HEAD = "multi_vector_projector"
_LATE_SIZE = 128
_PREFIXES: Mapping[InputType, str] = {"query": "Query: ", "document": "Passage: "}
_ALIKE = "text-matching"
"""The task whose two texts are of one kind: both are written as queries (the published code, `encode_text`)."""
_TASKS = ("retrieval", _ALIKE, "code")
_TEMPLATE = (
    "{% for message in messages if message.role != 'system' %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|im_start|>user{{ '\\n' }}<|vision_start|><|image_pad|><|vision_end|>"
    "Describe the image.<|im_end|>{{ '\\n' }}{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)
"""As the published processor writes an image and a text (`process_images`, `process_texts`); it has no way to write
both together, and here they follow one another."""


class JinaEmbeddingsV4(Qwen25VL):
    """`architectures` JinaEmbeddingsV4Model, under the `model_type` of Qwen2.5-VL.

    A text is the mean of its tokens' states, an image that of its own tokens and of those around them, as the published
    code has it (`get_single_vector_embeddings`); a projection of every state gives several vectors. The adapters, of
    which a request chooses one, lie in the folder `adapters`, one file for all tasks.
    """

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        require(config, [("single_vector_pool_strategy", "mean")])
        if not config.get("task_names", _TASKS):
            raise UnsupportedConfigError("task_names is empty; the adapters that requests choose from are named there")
        alike = dict.fromkeys(_PREFIXES, _PREFIXES["query"])
        self.embedding = StateVectors(
            "mean",
            late=Head(_HEAD, int(config.get("multi_vector_projector_dim", _LATE_SIZE)), has_bias=True),
            prefixes=_PREFIXES,
            default_type="query",
            pools_images=True,
            adapters=tuple(
                AdapterDims(name=name, prefixes=alike if name == _ALIKE else None) for name in self.own_adapters
            ),
        )

    @property
    def own_adapters(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.config.get("task_names", _TASKS))

    def input_template(self, found: FoundProcessor, prompt: ImagePrompt) -> str:
        """Return an image before the wish to describe it, and a text as it is."""
        return _TEMPLATE
