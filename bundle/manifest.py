"""What a bundle says of itself: the models behind `manifest.json`.

The file is written once, last, when everything else stands; `bundle.directory` reads it back and verifies it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT_VERSION = 1
"""Bumped when a reader of the previous version would misread a bundle."""

ComponentName = Literal["vision_encoder", "embed_tokens", "decoder", "decoder_prefill", "text_encoder"]
"""`decoder_prefill` is optional: the decoder in a scheme for many rows, run on prompts over the same cache."""
Task = Literal["image-text-to-text", "dual-encoder"]
Dialect = Literal["contrib", "portable"]
Scheme = Literal[
    "fp32", "fp16", "int8", "int8-static", "int8-weight-only", "int4", "nf4", "fp4", "int2", "ternary", "mixed"
]
Target = Literal["cpu", "cuda", "tensorrt"]


class _Frozen(BaseModel):
    # a measured NaN is written as such: null would be refused when the manifest is read back
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="strings")


class TensorSpec(_Frozen):
    """One input or output of a graph.

    Attributes:
        name: As in the graph.
        dtype: numpy name, e.g. "float32", "int64".
        shape: A size, or the axis name of a size that is free at run time
            (B sequences, T new tokens, S cache capacity, N sampled rows, I images).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Component(_Frozen):
    """One graph of the bundle.

    Attributes:
        file: The `.onnx` file; its weights lie beside it in `file + ".data"`.
        scheme: How its weights are stored.
        detail: One line per choice made by the planner, for people.
        inputs: In graph order.
        outputs: In graph order.
        weight_bytes: Size of all initializers as stored.
    """

    file: str
    scheme: Scheme
    detail: str = ""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weight_bytes: int = Field(ge=0)


class DecoderDims(_Frozen):
    """Sizes of a causal decoder and of the cache it wants.

    Attributes:
        num_layers: L.
        hidden_size: D.
        vocab_size: V.
        num_heads: H query heads.
        num_kv_heads: K key/value heads.
        head_size: C.
        max_positions: Longest sequence, in tokens, that the checkpoint was made for.
        kv_dtype: numpy name of the cache's element type.
    """

    num_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    head_size: int = Field(gt=0)
    max_positions: int = Field(gt=0)
    kv_dtype: Literal["float32", "float16"] = "float32"

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values, over all layers, of one cached token."""
        itemsize = 4 if self.kv_dtype == "float32" else 2
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * itemsize


class ImagePrompt(_Frozen):
    """How one image is written into the prompt of a vision-language model.

    Attributes:
        kind: "idefics3": tiles with row/column markers and a global image between fake tokens;
            "llava": the image token repeated, nothing around it.
        image_token: The placeholder's text in the chat template and in the vocabulary.
        image_token_id: Its id; every such id in a prompt is replaced by one row of `image_features`.
        tokens_per_tile: P, rows of `image_features` per image or tile.
        fake_token: idefics3 only: the text before and after each tile.
        global_token: idefics3 only: the text before the downscaled whole image.
    """

    kind: Literal["idefics3", "llava"]
    image_token: str
    image_token_id: int
    tokens_per_tile: int = Field(gt=0)
    fake_token: str = ""
    global_token: str = ""


class DualEncoderDims(_Frozen):
    """Sizes and scoring of a model with an image tower and a text tower.

    Attributes:
        embedding_size: E, width of both embeddings.
        max_text_tokens: Longest text; longer ones are refused or cut as the caller asks.
        pad_token_id: Fills texts up to `max_text_tokens` where `pads_to_max` is set.
        pads_to_max: True where the text tower was trained on padded texts (SigLIP).
        scoring: "softmax": probabilities over the candidates (CLIP); "sigmoid": each on its own (SigLIP).
        logit_scale: Multiplier of the cosine, already exponentiated.
        logit_bias: Added after the scale; 0 for CLIP.
        prompt_template: Text around a candidate label, as `bundle.labels` reads it.
    """

    embedding_size: int = Field(gt=0)
    max_text_tokens: int = Field(gt=0)
    pad_token_id: int
    pads_to_max: bool
    scoring: Literal["softmax", "sigmoid"]
    logit_scale: float
    logit_bias: float = 0.0
    prompt_template: str = "a photo of {}"


class Gate(_Frozen):
    """One quality measurement held against its threshold.

    Attributes:
        name: e.g. "top1_agreement", "accuracy/colour", "cosine_mean".
        value: What was measured.
        limit: The threshold.
        direction: "min": value must be at least the limit; "max": at most.
        n: Samples behind the value.
        passed: The verdict.
        basis: "samples": measured on inputs that mean something; "canary": on the one run recorded at export, which
            tells a broken graph from a working one and nothing of quality.
        is_overridden: True where the user set the limit, not the table in `quant/quality/gate.py`.
    """

    name: str
    value: float
    limit: float
    direction: Literal["min", "max"]
    n: int = Field(ge=0)
    passed: bool
    basis: Literal["samples", "canary"] = "samples"
    is_overridden: bool = False


class FileRecord(_Frozen):
    """Size and digest of one file of the bundle."""

    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(_Frozen):
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
        decoder: Vision-language models only.
        image_prompt: Vision-language models only.
        dual: Dual encoders only.
        bos_token_id: None where the tokenizer adds none.
        eos_token_ids: Generation stops at any of them.
        template_tokens: Special tokens by the name that the chat template uses ("bos_token", "eos_token", ...).
        gates: Empty for an fp32 export: it is its own reference.
        files: Every other file of the bundle by name.
    """

    format_version: Literal[1] = 1
    name: str
    source: str
    source_sha256: str
    created_by: str
    model_type: str
    task: Task
    dialect: Dialect
    target: Target = "cpu"
    components: dict[ComponentName, Component]
    decoder: DecoderDims | None = None
    image_prompt: ImagePrompt | None = None
    dual: DualEncoderDims | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    template_tokens: dict[str, str] = Field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    files: dict[str, FileRecord] = Field(default_factory=dict)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all components' weights as stored."""
        return sum(component.weight_bytes for component in self.components.values())

    @property
    def has_failed_gate(self) -> bool:
        """True where some measured value missed its threshold."""
        return any(not gate.passed for gate in self.gates)

    @property
    def is_gated(self) -> bool | None:
        """Whether quality was measured on samples and every gate passed; None for fp32, its own reference."""
        if all(component.scheme == "fp32" for component in self.components.values()):
            return None
        return not self.has_failed_gate and any(gate.basis == "samples" for gate in self.gates)
