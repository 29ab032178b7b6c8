"""What the server tells of itself and its models, and of what it keeps."""

from __future__ import annotations

from typing import Any, Literal

from bundle.manifest import Task
from serving.api.answers.answer import Answer


class Capabilities(Answer):
    """What a model can be asked for."""

    chat: bool
    completions: bool
    tools: bool
    structured_output: bool
    video: bool
    images: bool
    embeddings: bool
    rerank: bool
    classify: bool


class RequestLimits(Answer):
    """What one request may hold on this server."""

    max_images: int
    max_image_bytes: int
    max_videos: int
    max_frames: int
    max_choices: int
    max_inputs: int
    max_labels: int


class Version(Answer):
    """The server's version."""

    version: str


class VisionDefault(Answer):
    """What is done to images where a request does not say."""

    method: str
    keep: float


class KVDefault(Answer):
    """What is done to a prompt's rows where a request does not say."""

    policy: str
    budget: float


class ModelDescription(Answer):
    """A served model: what it can, how weights and cache are stored, bytes, and how it passed its quality gates.

    `root` is its own name where `id` is an alias; `max_model_len` is vLLM's name of `context_tokens`; `kv_cache` says
    what rows of the cache are stored as; `video_layouts`, `vision_methods` and `kv_policies` are the names that
    `video`, `vision` and `kv` of a request may give, the latter two with any share above 0 to 1; `embedding_tasks` are
    those of `task`, the first where it is left out. `adapters` are served as models of their own, with this
    one as their `parent`.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["pocketvlm"]
    root: str
    parent: str | None
    max_model_len: int | None
    task: Task
    model_type: str
    schemes: dict[str, str]
    kv_cache: str | None
    weight_bytes: int
    context_tokens: int | None
    capabilities: Capabilities
    limits: RequestLimits
    video_layouts: list[str]
    vision_methods: list[str]
    vision_default: VisionDefault | None
    kv_policies: list[str]
    kv_default: KVDefault | None
    embedding_tasks: list[str]
    adapters: list[str]
    gated: bool | None
    gates: list[dict[str, Any]]
    unmeasured: list[dict[str, Any]]


class ModelList(Answer):
    """All served models."""

    object: Literal["list"]
    data: list[ModelDescription]


class HealthAnswer(Answer):
    """`live` or `ready`, or why not."""

    status: str
    reason: str | None = None


class Prefix(Answer):
    """The beginning of a conversation, kept under a name; `created` is in Unix time.

    `prompt_tokens`: of its messages, with what opens an answer; those of images are part of them. `method` says what is
    kept, `size_bytes` how much, `cache_rows` what a request behind it begins with in each layer, and `replaced_heads`
    how many attention heads a task vector replaces.
    """

    object: Literal["prefix"]
    name: str
    model: str
    created: int
    prompt_tokens: int
    image_tokens: int
    method: Literal["plain", "fused", "task-vectors"]
    cache_rows: int
    size_bytes: int
    replaced_heads: int


class PrefixList(Answer):
    """The prefixes, by name."""

    object: Literal["list"]
    data: list[Prefix]


class DeletedPrefix(Answer):
    """A prefix is forgotten."""

    object: Literal["prefix"]
    name: str
    deleted: Literal[True]


class Unloaded(Answer):
    """A model that is served no more."""

    id: str
    object: Literal["model"]
    unloaded: Literal[True]


class Cleared(Answer):
    """The caches are empty."""

    status: Literal["cleared"]


class Welcome(Answer):
    """Where to go from here."""

    name: Literal["PocketVLM"]
    version: str
    models: str
    docs: str
    openapi: str
