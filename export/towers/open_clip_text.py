"""Text towers of open_clip: its own transformer, and BERT or RoBERTa of transformers' with a projection."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig
from export.nn.bert import ROBERTA_DEFAULTS, TEXT_DEFAULTS, Bert, BertConfig
from export.nn.dialect import Dialect
from export.nn.linear import Embedding, Linear
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.nn.pooler import FirstToken
from export.nn.residual_block import Projection, ResidualBlocks
from export.nn.vit import attention_bias
from export.towers.open_clip import read_blocks

_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_BIOMED = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
HF_TEXTS: dict[str, Raw] = {
    "bert-base-uncased": TEXT_DEFAULTS,
    _BIOMED: TEXT_DEFAULTS,
    f"{_BIOMED}-fulltext": TEXT_DEFAULTS,
    "roberta-base": ROBERTA_DEFAULTS,
    "xlm-roberta-base": {**ROBERTA_DEFAULTS, "vocab_size": 250_002},
    "xlm-roberta-large": {**ROBERTA_DEFAULTS, "vocab_size": 250_002, **_LARGE},
}
"""Sizes of the towers that `text_cfg.hf_model_name` names, whose configs are not in a checkpoint's folder."""
_HF_POOLERS = ("mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler")
_POOLS = ("first", "last", "argmax", "eos")


@dataclass(frozen=True)
class OpenClipTextConfig:
    """A tower of open_clip's own.

    Attributes:
        blocks: Its blocks.
        vocab_size: Ids are below it.
        context_length: Longest text.
        pool: "first", "last", "argmax" (the highest id) or "eos".
        end_id: For "eos".
        pad_id: Which CoCa's class token does not look at.
        is_causal: A token sees itself and those before it.
        has_class_token: It stands behind the text, and is what counts (CoCa).
        scales: Blocks scale what they add.
        projects: There is a projection.
        projects_with_bias: And it has biases.
    """

    blocks: TowerConfig
    vocab_size: int
    context_length: int
    pool: str
    end_id: int
    pad_id: int
    is_causal: bool
    has_class_token: bool
    scales: bool
    projects: bool
    projects_with_bias: bool

    @classmethod
    def read(cls, raw: Raw, *, quick: bool) -> OpenClipTextConfig:
        """Return the tower of a `text_cfg`, with open_clip's own defaults.

        Raises:
            UnsupportedConfigError: A switch that is not built.
        """
        full = {"width": 512, "layers": 12, "heads": 8, "vocab_size": 49_408, "context_length": 77, **raw}
        if (pool := full.get("pool_type", "argmax")) not in _POOLS:
            raise UnsupportedConfigError(f"text_cfg.pool_type is {pool!r}; built are {', '.join(_POOLS)}")
        if (kind := full.get("proj_type", "linear")) not in ("linear", "none"):
            raise UnsupportedConfigError(f"text_cfg.proj_type is {kind!r}; built are linear and none")
        return cls(
            blocks=read_blocks(full, heads=int(full["heads"]), quick=quick),
            vocab_size=int(full["vocab_size"]),
            context_length=int(full["context_length"]),
            pool=pool,
            end_id=int(full.get("eos_id", 2)),
            pad_id=int(full.get("pad_id", 0)),
            is_causal=not full.get("no_causal_mask", False),
            has_class_token=bool(full.get("embed_cls", False)),
            scales=full.get("ls_init_value") is not None,
            projects=kind == "linear",
            projects_with_bias=bool(full.get("proj_bias", False)),
        )

    @property
    def reads_padding(self) -> bool:
        """Whether what stands behind a text changes its vector, so that it must stand there as in training."""
        return self.has_class_token or not self.is_causal or self.pool == "last"


class OpenClipText(Module):
    """Token ids to the vector of a text.

    Args:
        config: The tower.
        dialect: How attention is written.
        embedding_size: E.
    """

    def __init__(self, config: OpenClipTextConfig, dialect: Dialect, embedding_size: int) -> None:
        super().__init__("text")
        width = config.blocks.hidden_size
        num_rows = config.context_length + config.has_class_token
        self.token_embedding = Embedding(config.vocab_size, width)
        self.class_embedding = Weight(width, name="cls_emb") if config.has_class_token else None
        self.positional_embedding = Weight(num_rows, width)
        self.transformer = ResidualBlocks(config.blocks, dialect, rows=num_rows, scales=config.scales)
        self.ln_final = LayerNorm(width, config.blocks.layer_norm_eps)
        self.projection: Module | None = None
        if config.projects_with_bias and config.projects:
            self.projection = Linear(width, embedding_size, rows=1, name="text_projection")
        elif config.projects:
            self.projection = Projection(width, embedding_size, "text_projection")
        self.config = config

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        """Return [B, E] from [B, T] ids and mask."""
        x = self.token_embedding(op, input_ids)
        if self.class_embedding is not None:
            shape = op.Concat(op.Shape(x, start=0, end=1), [1, self.config.blocks.hidden_size], axis=0)
            x = op.Concat(x, op.Expand(self.class_embedding, shape), axis=1)
        x = op.Add(x, op.Slice(self.positional_embedding, [0], op.Shape(x, start=1, end=2), [0]))
        hidden = self.transformer(op, x, self._bias(op, input_ids, attention_mask))
        pooled = self.ln_final(op, self._pooled(op, hidden, input_ids))
        return pooled if self.projection is None else self.projection(op, pooled)

    def _bias(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        if not self.config.has_class_token:
            return attention_bias(op, attention_mask, is_causal=self.config.is_causal)
        # Published CoCa weights were trained with the mask of padding one place too far to the right
        is_token = op.Cast(op.Not(op.Equal(input_ids, self.config.pad_id)), to=ir.DataType.INT64)
        one = op.Expand(1, op.Concat(op.Shape(input_ids, start=0, end=1), [1], axis=0))
        return attention_bias(op, op.Concat(one, is_token, axis=1), is_causal=self.config.is_causal)

    def _pooled(self, op: OpBuilder, hidden: ir.Value, input_ids: ir.Value) -> ir.Value:
        """Return [B, D] from [B, T, D]."""
        pool = self.config.pool
        if self.config.has_class_token or pool == "last":
            return op.Gather(hidden, -1, axis=1)
        if pool == "first":
            return op.Gather(hidden, 0, axis=1)
        scores = input_ids
        if pool == "eos":
            scores = op.Cast(op.Equal(input_ids, self.config.end_id), to=ir.DataType.INT64)
        return op.GatherND(hidden, op.ArgMax(scores, axis=1, keepdims=1), batch_dims=1)


@dataclass(frozen=True)
class HfTextConfig:
    """A tower of transformers'.

    Attributes:
        bert: Sizes.
        context_length: Longest text.
        pooler: One of `_HF_POOLERS`.
        projection: "linear", "mlp" or None.
    """

    bert: BertConfig
    context_length: int
    pooler: str
    projection: str | None

    @classmethod
    def read(cls, raw: Raw) -> HfTextConfig:
        """Return the tower of a `text_cfg`, with open_clip's own defaults.

        Raises:
            UnsupportedConfigError: A tower or a switch that is not built.
        """
        name, pooler = str(raw["hf_model_name"]), raw.get("hf_pooler_type", "mean_pooler")
        sizes = HF_TEXTS.get(name.removeprefix("FacebookAI/").removeprefix("google-bert/"))
        if sizes is None:
            raise UnsupportedConfigError(f"text_cfg.hf_model_name is {name!r}; built are {', '.join(sorted(HF_TEXTS))}")
        if pooler not in _HF_POOLERS:
            raise UnsupportedConfigError(f"text_cfg.hf_pooler_type is {pooler!r}; built are {', '.join(_HF_POOLERS)}")
        if (projection := raw.get("hf_proj_type", "mlp")) not in ("linear", "mlp", None):
            raise UnsupportedConfigError(f"text_cfg.hf_proj_type is {projection!r}; built are linear and mlp")
        bert = BertConfig.read(sizes, {}, counts_behind_padding="roberta" in name.lower())
        return cls(bert, min(int(raw.get("context_length", 77)), bert.max_tokens), pooler, projection)


class HfText(Module):
    """Token ids to the vector of a text.

    Args:
        config: The tower.
        dialect: How attention is written.
        embedding_size: E.

    Raises:
        UnsupportedConfigError: There is no projection, and vectors are of another width.
    """

    def __init__(self, config: HfTextConfig, dialect: Dialect, embedding_size: int) -> None:
        super().__init__("text")
        size = config.bert.tower.hidden_size
        self.transformer = Bert(config.bert, dialect, "transformer")
        self.pooler = FirstToken(size, "transformer.pooler") if config.pooler == "cls_pooler" else None
        self.matrices = _matrices(size, embedding_size, config.projection)
        for number, matrix in enumerate(self.matrices):
            setattr(self, f"matrix_{number}", matrix)
        self.pools_by_mean = config.pooler == "mean_pooler"

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        """Return [B, E] from [B, T] ids and mask."""
        hidden = self.transformer(op, input_ids, attention_mask)
        if self.pools_by_mean:
            is_token = op.Unsqueeze(op.Cast(attention_mask, to=ir.DataType.FLOAT), [2])
            total = op.ReduceSum(op.Mul(hidden, is_token), [1], keepdims=0)
            x = op.Div(total, op.ReduceSum(is_token, [1], keepdims=0))
        else:
            x = op.Gather(hidden, 0, axis=1) if self.pooler is None else self.pooler(op, hidden)
        for number, matrix in enumerate(self.matrices):
            x = matrix(op, x if number == 0 else op.Gelu(x))
        return x


def _matrices(size: int, embedding_size: int, projection: str | None) -> list[Linear]:
    if projection is None:
        if size != embedding_size:
            raise UnsupportedConfigError(
                f"embed_dim {embedding_size} is not the {size} of the text tower; hf_proj_type"
            )
        return []
    if projection == "linear":
        return [Linear(size, embedding_size, rows=1, bias=False, name="proj")]
    between = (size + embedding_size) // 2
    return [
        Linear(size, between, rows=1, bias=False, name="proj.0"),
        Linear(between, embedding_size, rows=1, bias=False, name="proj.2"),
    ]
