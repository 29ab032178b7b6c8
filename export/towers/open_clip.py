"""The ViT of open_clip's own (`open_clip.transformer.VisionTransformer`), down to the vector of an image."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig, require
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear
from export.nn.module import Module, Weight
from export.nn.norms import LayerNorm
from export.nn.residual_block import PACKED, Projection, ResidualBlocks
from graphs.labels import Label

_EPS = 1e-5
"""PyTorch's own, where `norm_kwargs` says nothing."""
_LESS_USUAL = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
"""Switches of blocks that no published model sets."""
_APART = tuple((f"attn.{name}_proj_weight", "attn.in_proj_bias") for name in "qkv")
"""Where a pooler keeps queries, keys and values that are of other widths."""


def read_blocks(raw: Raw, *, heads: int, quick: bool) -> TowerConfig:
    """Return the sizes of a tower of open_clip's own blocks.

    Args:
        raw: `vision_cfg` or `text_cfg`.
        heads: Of it.
        quick: `quick_gelu` of the model.

    Raises:
        UnsupportedConfigError: A switch that is not built.
    """
    if raw.get("block_type") not in (None, "default"):
        raise UnsupportedConfigError(f"block_type is {raw['block_type']!r}; only 'default' is built")
    require(raw, [(key, False) for key in _LESS_USUAL])
    width = int(raw["width"])
    if width % heads:
        raise UnsupportedConfigError(f"width {width} is not a multiple of its {heads} heads")
    return TowerConfig(
        hidden_size=width,
        intermediate_size=int(width * float(raw.get("mlp_ratio", 4.0))),
        num_layers=int(raw["layers"]),
        num_heads=heads,
        hidden_act=_activation(raw, quick=quick),
        layer_norm_eps=float((raw.get("norm_kwargs") or {}).get("eps", _EPS)),
    )


def _activation(raw: Raw, *, quick: bool) -> str:
    given = raw.get("act_kwargs") or {}
    if given not in ({}, {"approximate": "tanh"}) or (given and quick):
        raise UnsupportedConfigError(
            f"act_kwargs is {given!r}; only {{'approximate': 'tanh'}} of a plain GELU is built"
        )
    if quick:
        return "quick_gelu"
    return "gelu_pytorch_tanh" if given else "gelu"


@dataclass(frozen=True)
class OpenClipVisionConfig:
    """A tower.

    Attributes:
        blocks: Its blocks.
        image_size_px: Side of the images.
        patch_size_px: Side of a patch.
        scales: Blocks scale what they add.
        norms_first: There is a norm before the blocks.
        pools_by_mean: Over the patches; else the class token counts.
        norms_last: The last norm stands behind the pooling.
        num_queries: Of pooling by attention (CoCa), of which the first counts; None: there is none.
        num_pool_heads: Of it.
    """

    blocks: TowerConfig
    image_size_px: int
    patch_size_px: int
    scales: bool
    norms_first: bool
    pools_by_mean: bool
    norms_last: bool
    num_queries: int | None
    num_pool_heads: int

    @classmethod
    def read(cls, raw: Raw, *, quick: bool) -> OpenClipVisionConfig:
        """Return the tower of a `vision_cfg`, with open_clip's own defaults.

        Raises:
            UnsupportedConfigError: A switch that is not built.
        """
        full = {"width": 768, "layers": 12, "patch_size": 16, "image_size": 224, **raw}
        if isinstance(full["layers"], list):
            raise UnsupportedConfigError(f"vision_cfg.layers is {full['layers']}: CLIP's ResNets are not built")
        pool, attends = full.get("pool_type", "tok"), full.get("attentional_pool", False)
        if pool not in ("tok", "avg") or not isinstance(attends, bool) or (attends and pool != "tok"):
            raise UnsupportedConfigError(
                f"vision_cfg.pool_type {pool!r}, attentional_pool {attends!r}; built are tok and avg, and true with tok"
            )
        return cls(
            blocks=read_blocks(full, heads=int(full["width"]) // int(full.get("head_width", 64)), quick=quick),
            image_size_px=_side("image_size", full["image_size"]),
            patch_size_px=_side("patch_size", full["patch_size"]),
            scales=full.get("ls_init_value") is not None,
            norms_first=not full.get("no_ln_pre", False),
            pools_by_mean=pool == "avg",
            norms_last=bool(full.get("final_ln_after_pool", False)),
            num_queries=int(full.get("attn_pooler_queries", 256)) if attends else None,
            num_pool_heads=int(full.get("attn_pooler_heads", 8)),
        )

    @property
    def num_rows(self) -> int:
        """Patches of an image, and the class token."""
        return (self.image_size_px // self.patch_size_px) ** 2 + 1


def _side(key: str, value: object) -> int:
    sides = list(value) if isinstance(value, list) else [value]
    if len(set(sides)) == 1 and isinstance(sides[0], int):
        return sides[0]
    raise UnsupportedConfigError(f"vision_cfg.{key} is {value!r}; only square images and patches are built")


class _PoolPart(Module):
    """Queries, keys or values of a pooler, `taken` wide."""

    def __init__(self, taken: int, given: int, part: int, *, is_packed: bool, rows: int) -> None:
        super().__init__("")
        third, name = (part * given, (part + 1) * given), "qkv"[part]
        weight, bias = PACKED if is_packed else _APART[part]
        label = Label("linear", rows)
        self.weight = Weight(
            taken,
            given,
            transposed=True,
            name=f"attn.{name}_proj.weight",
            source=weight,
            rows=third if is_packed else None,
            label=label,
        )
        self.bias = Weight(given, name=f"attn.{name}_proj.bias", source=bias, rows=third)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return op.Add(op.MatMul(x, self.weight), self.bias)


class _FirstQuery(Module):
    """What the first of a pooler's queries finds among patches; the others feed CoCa's decoder alone."""

    def __init__(self, config: OpenClipVisionConfig, embedding_size: int, dialect: Dialect) -> None:
        super().__init__("attn_pool")
        width, eps = config.blocks.hidden_size, config.blocks.layer_norm_eps
        self.queries = Weight(config.num_queries or 0, embedding_size, name="query")
        self.ln_q, self.ln_k = LayerNorm(embedding_size, eps), LayerNorm(width, eps)
        is_packed, sizes = width == embedding_size, (embedding_size, width, width)
        self.query, self.key, self.value = (
            _PoolPart(size, embedding_size, part, is_packed=is_packed, rows=config.num_rows if part else 1)
            for part, size in enumerate(sizes)
        )
        self.out_proj = Linear(embedding_size, embedding_size, rows=1, name="attn.out_proj")
        size = embedding_size // config.num_pool_heads
        self.heads = Heads(config.num_pool_heads, config.num_pool_heads, size, float(size) ** -0.5)
        self.dialect, self.size = dialect, embedding_size

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, E] from [I, 1 + patches, D]."""
        x = self.ln_k(op, x)
        first = op.Unsqueeze(self.ln_q(op, op.Slice(self.queries, [0], [1], [0])), [0])
        shape = op.Concat(op.Shape(x, start=0, end=1), [1, self.size], axis=0)
        query = op.Expand(self.query(op, first), shape)
        found = self.dialect.attention(op, query, self.key(op, x), self.value(op, x), self.heads, None)
        return op.Squeeze(self.out_proj(op, found), [1])


class OpenClipTower(Module):
    """Pixels to the vector of an image.

    Args:
        config: The tower.
        dialect: How attention is written.
        embedding_size: E.
    """

    def __init__(self, config: OpenClipVisionConfig, dialect: Dialect, embedding_size: int) -> None:
        super().__init__("visual")
        width, side, eps = config.blocks.hidden_size, config.patch_size_px, config.blocks.layer_norm_eps
        self.conv = Weight(width, 3, side, side, name="conv1.weight")
        self.class_embedding = Weight(width)
        self.positional_embedding = Weight(config.num_rows, width)
        self.ln_pre = LayerNorm(width, eps) if config.norms_first else None
        self.transformer = ResidualBlocks(config.blocks, dialect, rows=config.num_rows, scales=config.scales)
        self.attn_pool = None if config.num_queries is None else _FirstQuery(config, embedding_size, dialect)
        pooled = width if self.attn_pool is None else embedding_size
        self.ln_post = LayerNorm(pooled, eps)
        self.proj = Projection(pooled, embedding_size, "proj")
        self.config = config

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, E] from [I, 3, height, width]."""
        return self.proj(op, self._pooled(op, self.transformer(op, self._embedded(op, pixel_values))))

    def _embedded(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        side = [self.config.patch_size_px] * 2
        grid = op.Conv(pixel_values, self.conv, kernel_shape=side, strides=side)
        patches = op.Transpose(op.Reshape(grid, [0, 0, -1]), perm=[0, 2, 1])
        shape = op.Concat(op.Shape(patches, start=0, end=1), [1, self.config.blocks.hidden_size], axis=0)
        x = op.Concat(op.Expand(self.class_embedding, shape), patches, axis=1)
        x = op.Add(x, self.positional_embedding)
        return x if self.ln_pre is None else self.ln_pre(op, x)

    def _pooled(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, D] from [I, 1 + patches, D]."""
        if self.attn_pool is not None:
            return self.ln_post(op, self.attn_pool(op, x))
        if not self.config.pools_by_mean:
            return self.ln_post(op, op.Gather(x, 0, axis=1))
        x = x if self.config.norms_last else self.ln_post(op, x)
        mean = op.ReduceMean(op.Slice(x, [1], [self.config.num_rows], [1]), [1], keepdims=0)
        return self.ln_post(op, mean) if self.config.norms_last else mean
