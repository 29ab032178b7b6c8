"""ViTs of timm that open_clip takes by name: SigLIP's, and plain ones with a class token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear, PackedLinear
from export.nn.module import Module, ModuleList, Weight
from export.nn.normed_conv import NormedConv
from export.nn.norms import LayerNorm
from export.nn.vit import EncoderMLP, tower_heads

_QKV = ("attn.qkv.weight", "attn.qkv.bias")
_KV = ("kv.weight", "kv.bias")
_EPS = 1e-6
"""Of every norm of timm's ViTs but CLIP's."""
_STEM_NARROWS = 4
"""By how much the first convolutions of a stem are narrower than the tower (MobileCLIP-B)."""
_BATCH_EPS = 1e-5


@dataclass(frozen=True)
class TimmVitConfig:
    """What a name stands for.

    Attributes:
        tower: Its layers.
        image_size_px: Side of the images.
        patch_size_px: Side of a patch.
        pools_by_query: A learned query pools patches, and there is no class token; else the class token counts.
        stem: Kernel and stride of the convolutions that make patches; none: one of a patch's side.
        norms_first: A norm stands before the layers.
    """

    tower: TowerConfig
    image_size_px: int
    patch_size_px: int
    pools_by_query: bool
    stem: tuple[int, ...] = ()
    norms_first: bool = False

    @property
    def num_positions(self) -> int:
        """Rows that have a position; a class token behind a stem of convolutions has none."""
        return self.num_rows - bool(self.stem)

    @property
    def num_rows(self) -> int:
        """Patches of an image, and the class token."""
        return (self.image_size_px // self.patch_size_px) ** 2 + (not self.pools_by_query)


def _tower(size: str, hidden_act: str = "gelu", eps: float = _EPS) -> TowerConfig:
    width, layers, heads, ratio = _SIZES[size]
    return TowerConfig(width, int(width * ratio), layers, heads, hidden_act, eps)


_SIZES = {
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "so400m": (1152, 27, 16, 3.7362),
    "giantopt": (1536, 40, 16, 4.0),
}
"""Width, layers, heads, and how much wider the MLP is."""
_SIGLIP: Mapping[tuple[str, int], tuple[int, ...]] = {
    ("base", 16): (224, 256, 384, 512),
    ("large", 16): (256, 384),
    ("so400m", 14): (224, 378, 384),
}
_SIGLIP_TANH: Mapping[tuple[str, int], tuple[int, ...]] = {
    ("base", 32): (256,),
    ("large", 16): (512,),
    ("so400m", 16): (256, 384, 512),
    ("giantopt", 16): (256, 384),
}
"""With GELU by the hyperbolic tangent. Sides of images by size and side of a patch."""
TIMM_VITS: dict[str, TimmVitConfig] = {
    f"vit_{size}_patch{patch}_siglip_{side}": TimmVitConfig(_tower(size, hidden_act), side, patch, True)
    for hidden_act, of_size in (("gelu", _SIGLIP), ("gelu_pytorch_tanh", _SIGLIP_TANH))
    for (size, patch), sides in of_size.items()
    for side in sides
} | {
    "vit_base_patch16_224": TimmVitConfig(_tower("base"), 224, 16, False),
    "vit_base_mci_224": TimmVitConfig(_tower("base"), 224, 16, False, stem=(4, 2, 2)),
    "vit_large_patch14_clip_224": TimmVitConfig(_tower("large", eps=1e-5), 224, 14, False, norms_first=True),
}
"""By `vision_cfg.timm_model_name`; sizes as timm 1.0.31 has them."""


class TimmBlock(Module):
    """Pre-norm attention and MLP, each with its residual, over `rows` vectors of an image.

    Args:
        config: The tower.
        dialect: How attention is written.
        rows: Vectors of an image.
        mlp: Another than the usual one.
    """

    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int, mlp: Module | None = None) -> None:
        super().__init__()
        size = config.hidden_size
        self.norm1 = LayerNorm(size, config.layer_norm_eps)
        self.query, self.key, self.value = (
            PackedLinear(size, part, f"attn.{name}_proj", _QKV, rows=rows) for part, name in enumerate("qkv")
        )
        self.proj = Linear(size, size, rows=rows, name="attn.proj")
        self.norm2 = LayerNorm(size, config.layer_norm_eps)
        self.mlp = EncoderMLP(config, rows=rows) if mlp is None else mlp
        self.heads, self.dialect = tower_heads(config), dialect

    def forward(self, op: OpBuilder, x: ir.Value, bias: ir.Value | None = None) -> ir.Value:
        """Return [I, N, D] from [I, N, D]; `bias` as for `Dialect.attention`."""
        normed = self.norm1(op, x)
        query, key, value = self.query(op, normed), self.key(op, normed), self.value(op, normed)
        x = op.Add(x, self.proj(op, self.dialect.attention(op, query, key, value, self.heads, bias)))
        return op.Add(x, self.mlp(op, self.norm2(op, x)))


class _QueryPool(Module):
    """What a learned query finds among `rows` patches, and an MLP over it (arXiv 2106.04560, MAP)."""

    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int) -> None:
        super().__init__("attn_pool")
        size = config.hidden_size
        self.latent = Weight(1, 1, size)
        self.q = Linear(size, size, rows=1)
        self.key = PackedLinear(size, 0, "k_proj", _KV, rows=rows)
        self.value = PackedLinear(size, 1, "v_proj", _KV, rows=rows)
        self.proj = Linear(size, size, rows=1)
        self.norm = LayerNorm(size, config.layer_norm_eps)
        self.mlp = EncoderMLP(config, rows=1)
        self.heads, self.dialect, self.size = tower_heads(config), dialect, size

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [I, D] from [I, patches, D]."""
        shape = op.Concat(op.Shape(x, start=0, end=1), [1, self.size], axis=0)
        query = op.Expand(self.q(op, self.latent), shape)
        found = self.dialect.attention(op, query, self.key(op, x), self.value(op, x), self.heads, None)
        found = self.proj(op, found)
        return op.Squeeze(op.Add(found, self.mlp(op, self.norm(op, found))), [1])


class _Patches(Module):
    """Pixels to patches by one convolution of a patch's side."""

    def __init__(self, config: TimmVitConfig) -> None:
        super().__init__("patch_embed.proj")
        size, side = config.tower.hidden_size, config.patch_size_px
        self.weight = Weight(size, 3, side, side)
        self.bias = None if config.norms_first else Weight(size)
        self.side = side

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        side = [self.side] * 2
        bias = [] if self.bias is None else [self.bias]
        return op.Conv(pixel_values, self.weight, *bias, kernel_shape=side, strides=side)


class _Stem(Module):
    """Pixels to patches by convolutions whose squares do not overlap, norms and activations between (MobileCLIP-B)."""

    def __init__(self, config: TimmVitConfig) -> None:
        super().__init__("patch_embed.backbone")
        size = config.tower.hidden_size
        self.narrow = []
        taken = 3
        for number, side in enumerate(config.stem[:-1]):
            names = (f"{number}.conv", f"{number}.bn")
            conv = NormedConv((taken, size // _STEM_NARROWS), side, names, _BATCH_EPS, stride=side, pads=[0] * 4)
            setattr(self, f"narrow_{number}", conv)
            self.narrow.append(conv)
            taken = size // _STEM_NARROWS
        self.side = config.stem[-1]
        last = f"{len(self.narrow)}.conv"
        self.weight = Weight(size, taken, self.side, self.side, name=f"{last}.weight")
        self.bias = Weight(size, name=f"{last}.bias")

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        x, side = pixel_values, [self.side] * 2
        for conv in self.narrow:
            x = op.Gelu(conv(op, x))
        return op.Conv(x, self.weight, self.bias, kernel_shape=side, strides=side)


class _Trunk(Module):
    def __init__(self, config: TimmVitConfig, dialect: Dialect, head_size: int | None) -> None:
        super().__init__("trunk")
        tower, rows = config.tower, config.num_rows
        size, eps = tower.hidden_size, tower.layer_norm_eps
        self.patches: Module = _Stem(config) if config.stem else _Patches(config)
        self.cls_token = None if config.pools_by_query else Weight(1, 1, size)
        self.pos_embed = Weight(1, config.num_positions, size)
        self.norm_pre = LayerNorm(size, eps) if config.norms_first else None
        self.blocks = ModuleList([TimmBlock(tower, dialect, rows=rows) for _ in range(tower.num_layers)])
        self.norm = LayerNorm(size, eps)
        self.attn_pool = _QueryPool(tower, dialect, rows=rows) if config.pools_by_query else None
        self.head = None if head_size is None else Linear(size, head_size, rows=1)
        self.config, self.size = config, size

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, D] from [I, 3, height, width]."""
        x = self._placed(op, self.patches(op, pixel_values))
        x = x if self.norm_pre is None else self.norm_pre(op, x)
        for block in self.blocks:
            x = block(op, x)
        x = self.norm(op, x)
        pooled = op.Gather(x, 0, axis=1) if self.attn_pool is None else self.attn_pool(op, x)
        return pooled if self.head is None else self.head(op, pooled)

    def _placed(self, op: OpBuilder, grid: ir.Value) -> ir.Value:
        """Return [I, N, D], patches with positions and the class token before them, from [I, D, rows, columns]."""
        x = op.Transpose(op.Reshape(grid, [0, 0, -1]), perm=[0, 2, 1])
        has_all = self.config.num_positions == self.config.num_rows
        x = x if has_all else op.Add(x, self.pos_embed)
        if self.cls_token is not None:
            shape = op.Concat(op.Shape(x, start=0, end=1), [1, self.size], axis=0)
            x = op.Concat(op.Expand(self.cls_token, shape), x, axis=1)
        return op.Add(x, self.pos_embed) if has_all else x


class TimmVit(Module):
    """Pixels to the vector of an image.

    Args:
        config: The tower.
        raw: `vision_cfg`, which says what stands behind it.
        dialect: How attention is written.
        embedding_size: E.

    Raises:
        UnsupportedConfigError: A pooling or a projection that is not built.
    """

    def __init__(self, config: TimmVitConfig, raw: Raw, dialect: Dialect, embedding_size: int) -> None:
        super().__init__("visual")
        pool, kind = raw.get("timm_pool", "avg"), raw.get("timm_proj", "linear") or ""
        own = "map" if config.pools_by_query else "token"
        if pool not in (own, "") or kind not in ("none", "linear", "") or (pool == "" and kind != "linear"):
            raise UnsupportedConfigError(
                f"vision_cfg.timm_pool {pool!r} with timm_proj {kind!r}; of {raw['timm_model_name']} built is {own!r} "
                "with none, linear or null"
            )
        size = config.tower.hidden_size
        if kind == "none" and size != embedding_size:
            raise UnsupportedConfigError(
                f"embed_dim {embedding_size} is not the {size} of the tower; timm_proj is none"
            )
        self.trunk = _Trunk(config, dialect, embedding_size if kind == "" else None)
        self.proj: Linear | None = None
        if kind == "linear":
            has_bias = bool(raw.get("timm_proj_bias", False))
            self.proj = Linear(size, embedding_size, rows=1, bias=has_bias, name="head.proj")

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, E] from [I, 3, height, width]."""
        pooled = self.trunk(op, pixel_values)
        return pooled if self.proj is None else self.proj(op, pooled)
