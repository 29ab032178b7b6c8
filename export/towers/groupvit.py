"""GroupViT's image tower (arXiv 2202.11094): patches that learned tokens gather into groups, stage after stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig, VisionConfig
from export.nn.dialect import Dialect
from export.nn.linear import Linear, activation
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.vit import EncoderLayer, EncoderMLP, PatchEmbedding, tower_heads

DEFAULTS: Raw = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "depths": (6, 3, 3),
    "num_group_tokens": (64, 8, 0),
    "num_output_groups": (64, 8, 8),
    "num_attention_heads": 6,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "assign_eps": 1.0,
    "assign_mlp_ratio": (0.5, 4),
}


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        depth: Layers.
        num_tokens: Learned tokens beside what comes in, which gather it; 0: nothing is gathered.
        num_before: Of them in the stage before, from which these learn; 0: from none.
        num_groups: That it leaves.
    """

    depth: int
    num_tokens: int
    num_before: int
    num_groups: int


@dataclass(frozen=True)
class GroupVitConfig:
    """The tower.

    Attributes:
        vision: Of patches and layers.
        stages: In order.
        epsilon: Added to how many patches a group has before it divides their sum.
        inner: Widths inside the two feed-forwards that gather, over tokens and over channels.
    """

    vision: VisionConfig
    stages: tuple[Stage, ...]
    epsilon: float
    inner: tuple[int, int]

    @classmethod
    def read(cls, raw: Raw) -> GroupVitConfig:
        """Return the tower of a vision config.

        Raises:
            UnsupportedConfigError: Lists of other lengths, or tokens that learn from as many others as there are not.
        """
        full = {**DEFAULTS, **raw}
        depths, tokens, groups = (list(full[key]) for key in ("depths", "num_group_tokens", "num_output_groups"))
        stages = [
            Stage(depth, own, groups[at - 1] if at and own else 0, left)
            for at, (depth, own, left) in enumerate(zip(depths, tokens, groups, strict=False))
        ]
        is_odd = len({len(depths), len(tokens), len(groups)}) > 1
        if is_odd or any(stage.num_before not in (0, tokens[at - 1]) for at, stage in enumerate(stages)):
            raise UnsupportedConfigError(
                f"vision_config: depths {depths}, num_group_tokens {tokens}, num_output_groups {groups}; built are as "
                "many of each, and stages whose tokens learn from as many as the stage before has and leaves"
            )
        over_tokens, over_channels = full["assign_mlp_ratio"]
        inner = int(over_tokens * full["hidden_size"]), int(over_channels * full["hidden_size"])
        return cls(VisionConfig.read(full, {}), tuple(stages), float(full["assign_eps"]), inner)

    @property
    def tower(self) -> TowerConfig:
        """Of layers."""
        return self.vision.tower

    @property
    def num_patches(self) -> int:
        """Of an image."""
        return self.vision.grid**2

    def norm(self, name: str | None = None) -> LayerNorm:
        """Return one of its norms."""
        return LayerNorm(self.tower.hidden_size, self.tower.layer_norm_eps, name=name)


class _Patches(Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.projection = PatchEmbedding(config, bias=True)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.projection(op, pixel_values)


class _Embeddings(Module):
    def __init__(self, config: GroupVitConfig) -> None:
        super().__init__()
        self.patch_embeddings = _Patches(config.vision)
        self.layernorm = config.norm()
        self.position_embeddings = Weight(1, config.num_patches, config.tower.hidden_size)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return op.Add(self.layernorm(op, self.patch_embeddings(op, pixel_values)), self.position_embeddings)


class _OverTokens(Module):
    """A feed-forward from token to token, for each channel: [B, from, D] to [B, to, D]."""

    def __init__(self, config: GroupVitConfig, sizes: Sequence[int], name: str | None = None) -> None:
        super().__init__(name)
        taken, inner, given = sizes
        rows = config.tower.hidden_size
        self.fc1, self.fc2 = Linear(taken, inner, rows=rows), Linear(inner, given, rows=rows)
        self.hidden_act = config.tower.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        inner = activation(op, self.hidden_act, self.fc1(op, op.Transpose(x, perm=[0, 2, 1])))
        return op.Transpose(self.fc2(op, inner), perm=[0, 2, 1])


class _OverChannels(Module):
    def __init__(self, config: GroupVitConfig, *, rows: int) -> None:
        super().__init__()
        size, inner = config.tower.hidden_size, config.inner[1]
        self.fc1, self.fc2 = Linear(size, inner, rows=rows), Linear(inner, size, rows=rows)
        self.hidden_act = config.tower.hidden_act

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return self.fc2(op, activation(op, self.hidden_act, self.fc1(op, x)))


class _Look(Module):
    """Groups look at what they will gather."""

    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int, keys: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.q_proj, self.out_proj = Linear(size, size, rows=rows), Linear(size, size, rows=rows)
        self.k_proj, self.v_proj = Linear(size, size, rows=keys), Linear(size, size, rows=keys)
        self.heads, self.dialect = tower_heads(config), dialect

    def forward(self, op: OpBuilder, groups: ir.Value, x: ir.Value) -> ir.Value:
        query, key, value = self.q_proj(op, groups), self.k_proj(op, x), self.v_proj(op, x)
        return self.out_proj(op, self.dialect.attention(op, query, key, value, self.heads, None))


class _LookLayer(Module):
    def __init__(self, config: GroupVitConfig, dialect: Dialect, *, rows: int, keys: int) -> None:
        super().__init__()
        self.attn = _Look(config.tower, dialect, rows=rows, keys=keys)
        self.norm2, self.norm_post = config.norm(), config.norm()
        self.mlp = EncoderMLP(config.tower, rows=rows)

    def forward(self, op: OpBuilder, groups: ir.Value, x: ir.Value) -> ir.Value:
        groups = op.Add(groups, self.attn(op, groups, x))
        return self.norm_post(op, op.Add(groups, self.mlp(op, self.norm2(op, groups))))


class _Assign(Module):
    """Every token goes to the one group that it is nearest to; a group is the mean of its own."""

    def __init__(self, config: GroupVitConfig, num_groups: int, *, keys: int) -> None:
        super().__init__()
        size = config.tower.hidden_size
        # the two that choose stay as they are in variants, as routers of experts do
        self.q_proj = Linear(size, size, rows=num_groups, role="router")
        self.k_proj = Linear(size, size, rows=keys, role="router")
        self.v_proj, self.proj = Linear(size, size, rows=keys), Linear(size, size, rows=num_groups)
        self.numbers, self.epsilon = list(range(num_groups)), config.epsilon

    def forward(self, op: OpBuilder, groups: ir.Value, x: ir.Value) -> ir.Value:
        # what scales scores changes no largest one
        scores = op.MatMul(self.q_proj(op, groups), op.Transpose(self.k_proj(op, x), perm=[0, 2, 1]))
        nearest = op.ArgMax(scores, axis=1, keepdims=1)
        is_own = op.Cast(op.Equal(nearest, op.Unsqueeze(self.numbers, [0, 2])), to=ir.DataType.FLOAT)
        shares = op.Div(is_own, op.Add(op.ReduceSum(is_own, [2], keepdims=1), self.epsilon))
        return self.proj(op, op.MatMul(shares, self.v_proj(op, x)))


class _Gather(Module):
    """Tokens [B, N, D] to the groups [B, G, D] that they make."""

    def __init__(self, config: GroupVitConfig, stage: Stage, dialect: Dialect, *, keys: int) -> None:
        super().__init__()
        self.norm_tokens, self.norm_post_tokens = config.norm(), config.norm()
        self.norm_x, self.norm_new_x = config.norm(), config.norm()
        self.mlp_inter = _OverTokens(config, (stage.num_tokens, config.inner[0], stage.num_groups))
        self.pre_assign_attn = _LookLayer(config, dialect, rows=stage.num_groups, keys=keys)
        self.assign = _Assign(config, stage.num_groups, keys=keys)
        self.mlp_channels = _OverChannels(config, rows=stage.num_groups)

    def forward(self, op: OpBuilder, x: ir.Value, tokens: ir.Value) -> ir.Value:
        x = self.norm_x(op, x)
        groups = self.norm_post_tokens(op, self.mlp_inter(op, self.norm_tokens(op, tokens)))
        groups = self.pre_assign_attn(op, groups, x)
        made = op.Add(self.assign(op, groups, x), groups)
        return op.Add(made, self.mlp_channels(op, self.norm_new_x(op, made)))


class _Learnt(Module):
    """What a stage's tokens learn of those of the stage before."""

    def __init__(self, config: GroupVitConfig, stage: Stage) -> None:
        super().__init__()
        self.norm = config.norm("0")
        self.mlp = _OverTokens(config, (stage.num_before, config.tower.hidden_size // 2, stage.num_tokens), "1")

    def forward(self, op: OpBuilder, before: ir.Value) -> ir.Value:
        return self.mlp(op, self.norm(op, before))


class _Stage(Module):
    def __init__(self, config: GroupVitConfig, stage: Stage, dialect: Dialect, *, taken: int) -> None:
        super().__init__()
        size, rows = config.tower.hidden_size, taken + stage.num_tokens
        self.layers = ModuleList([EncoderLayer(config.tower, dialect, rows=rows) for _ in range(stage.depth)])
        self.group_token = Weight(1, stage.num_tokens, size) if stage.num_tokens else None
        self.downsample = _Gather(config, stage, dialect, keys=taken) if stage.num_tokens else None
        self.group_projector = _Learnt(config, stage) if stage.num_before else None
        self.taken, self.shape = taken, (stage.num_tokens, size)

    def forward(self, op: OpBuilder, x: ir.Value, before: ir.Value | None) -> tuple[ir.Value, ir.Value | None]:
        """Return groups, or tokens where nothing is gathered, and the stage's learned tokens."""
        if self.group_token is None or self.downsample is None:
            return self._layered(op, x), None
        tokens = op.Expand(self.group_token, op.Concat(op.Shape(x, start=0, end=1), list(self.shape), axis=0))
        if self.group_projector is not None:
            tokens = op.Add(tokens, self.group_projector(op, before))
        both = self._layered(op, op.Concat(x, tokens, axis=1))
        parts = [self.taken, self.shape[0]]
        x, tokens = op.Split(both, parts, axis=1, _outputs=2)
        return self.downsample(op, x, tokens), tokens

    def _layered(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        for layer in self.layers:
            x, _ = layer(op, x, None)
        return x


class _Stages(Module):
    def __init__(self, config: GroupVitConfig, dialect: Dialect) -> None:
        super().__init__()
        stages, taken = [], config.num_patches
        for stage in config.stages:
            stages.append(_Stage(config, stage, dialect, taken=taken))
            taken = stage.num_groups if stage.num_tokens else taken
        self.stages = ModuleList(stages)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        tokens = None
        for stage in self.stages:
            x, tokens = stage(op, x, tokens)
        return x


class GroupVitTower(Module):
    """Pixels to the mean of the last groups, normed.

    Args:
        config: The tower.
        dialect: How attention is written.
        name: Where the checkpoint keeps it.
    """

    def __init__(self, config: GroupVitConfig, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.embeddings = _Embeddings(config)
        self.encoder = _Stages(config, dialect)
        self.layernorm = config.norm()

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [I, D] from [I, 3, height, width]."""
        groups = self.encoder(op, self.embeddings(op, pixel_values))
        return op.ReduceMean(self.layernorm(op, groups), [1], keepdims=0)
