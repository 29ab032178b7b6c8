"""BridgeTower (Xu et al., arXiv 2206.08657): two towers whose upper layers feed cross-modal layers, and a match."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig, VisionConfig, require, sub_config
from export.cross_encoder import CrossEncoder, PairTexts
from export.nn.bert import ROBERTA_DEFAULTS, BertConfig, BertEmbeddings, BertLayer
from export.nn.dialect import Dialect, Heads
from export.nn.linear import Linear, PackedLinear, activation
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.vit import ClipEmbeddings, attention_bias, tower_heads

_HEAD_SIZE = 64
"""Of the image tower, whatever the config says."""
_INNER = 4
"""Width of the image tower's MLP over its own."""
_VISION_DEFAULTS: Raw = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_channels": 3,
    "patch_size": 16,
    "image_size": 288,
    "layer_norm_eps": 1e-5,
}
_PACKED = ("in_proj_weight", "in_proj_bias")
_ONLY_BUILT = [
    ("share_cross_modal_transformer_layers", True),
    ("share_link_tower_layers", False),
    ("link_tower_type", "add"),
]


class _VisionAttention(Module):
    def __init__(self, size: int, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        self.query = PackedLinear(size, 0, "q_proj", _PACKED, rows=rows)
        self.key = PackedLinear(size, 1, "k_proj", _PACKED, rows=rows)
        self.value = PackedLinear(size, 2, "v_proj", _PACKED, rows=rows)
        self.out_proj = Linear(size, size, rows=rows)
        num = size // _HEAD_SIZE
        self.heads = Heads(num, num, _HEAD_SIZE, float(_HEAD_SIZE) ** -0.5)
        self.dialect = dialect

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        query, key, value = self.query(op, x), self.key(op, x), self.value(op, x)
        return self.out_proj(op, self.dialect.attention(op, query, key, value, self.heads, None))


class _VisionLayer(Module):
    """Pre-norm attention and MLP, as CLIP's own code names them."""

    def __init__(self, size: int, eps: float, dialect: Dialect, *, rows: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(size, eps)
        self.attn = _VisionAttention(size, dialect, rows=rows)
        self.ln_2 = LayerNorm(size, eps)
        self.c_fc = Linear(size, _INNER * size, rows=rows, name="mlp.c_fc")
        self.c_proj = Linear(_INNER * size, size, rows=rows, name="mlp.c_proj")

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B, patches, D] from the same."""
        x = op.Add(x, self.attn(op, self.ln_1(op, x)))
        return op.Add(x, self.c_proj(op, activation(op, "quick_gelu", self.c_fc(op, self.ln_2(op, x)))))


class _CrossLayer(Module):
    """Attention over the own tokens, then over the other modality's, then an MLP, each normed with its residual."""

    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int, other_rows: int) -> None:
        super().__init__()
        size, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.attention = _Attention(config, dialect, rows=rows, other_rows=rows)
        self.crossattention = _Attention(config, dialect, rows=rows, other_rows=other_rows)
        self.intermediate = Linear(size, inner, rows=rows, name="intermediate.dense")
        self.dense = Linear(inner, size, rows=rows, name="output.dense")
        self.norm = LayerNorm(size, eps, name="output.LayerNorm")
        self.hidden_act = config.hidden_act

    def forward(
        self, op: OpBuilder, x: ir.Value, other: ir.Value, own_bias: ir.Value | None, other_bias: ir.Value | None
    ) -> ir.Value:
        """Return [B, n, D] of x [B, n, D] and other [B, m, D]; biases as for `Dialect.attention`."""
        x = self.attention(op, x, x, own_bias)
        x = self.crossattention(op, x, other, other_bias)
        inner = activation(op, self.hidden_act, self.intermediate(op, x))
        return self.norm(op, op.Add(self.dense(op, inner), x))


class _Attention(Module):
    def __init__(self, config: TowerConfig, dialect: Dialect, *, rows: int, other_rows: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.query = Linear(size, size, rows=rows, name="self.query")
        self.key = Linear(size, size, rows=other_rows, name="self.key")
        self.value = Linear(size, size, rows=other_rows, name="self.value")
        self.dense = Linear(size, size, rows=rows, name="output.dense")
        self.norm = LayerNorm(size, config.layer_norm_eps, name="output.LayerNorm")
        self.heads, self.dialect = tower_heads(config), dialect

    def forward(self, op: OpBuilder, x: ir.Value, other: ir.Value, bias: ir.Value | None) -> ir.Value:
        query, key, value = self.query(op, x), self.key(op, other), self.value(op, other)
        attended = self.dialect.attention(op, query, key, value, self.heads, bias)
        return self.norm(op, op.Add(self.dense(op, attended), x))


class _Types(Module):
    """Which modality a token is of."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = Weight(2, size)

    def forward(self, op: OpBuilder, row: int) -> ir.Value:
        """Return [1, D]."""
        return op.Slice(self.weight, [row], [row + 1], [0])


class _VisionTower(Module):
    def __init__(self, config: VisionConfig, dialect: Dialect) -> None:
        super().__init__("vision_model.visual")
        size, eps = config.tower.hidden_size, config.tower.layer_norm_eps
        self.embeddings = ClipEmbeddings(config)
        self.ln_pre = LayerNorm(size, eps)
        self.resblocks = ModuleList(
            [_VisionLayer(size, eps, dialect, rows=self.embeddings.num_rows) for _ in range(config.tower.num_layers)]
        )
        self.ln_post = LayerNorm(size, eps)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> list[ir.Value]:
        """Return what every layer gives, [B, 1 + patches, D] each, normed."""
        x = self.ln_pre(op, self.embeddings(op, pixel_values))
        given = []
        for layer in self.resblocks:
            x = layer(op, x)
            given.append(self.ln_post(op, x))
        return given


class _TextTower(Module):
    def __init__(self, config: BertConfig, dialect: Dialect) -> None:
        super().__init__("text_model")
        self.embeddings = BertEmbeddings(config)
        layers = [BertLayer(config.tower, dialect, rows=config.max_tokens) for _ in range(config.tower.num_layers)]
        self.layer = ModuleList(layers)

    def forward(self, op: OpBuilder, input_ids: ir.Value, bias: ir.Value) -> list[ir.Value]:
        """Return what every layer gives, [B, T, D] each."""
        x, given = self.embeddings(op, input_ids), []
        for layer in self.layer:
            x = layer(op, x, bias)
            given.append(x)
        return given


class _Bridges(Module):
    """The towers, the cross-modal layers over their upper layers, and both first tokens."""

    def __init__(self, vision: VisionConfig, text: BertConfig, num_layers: int, eps: float, dialect: Dialect) -> None:
        super().__init__("bridgetower")
        size = text.tower.hidden_size
        self.vision = _VisionTower(vision, dialect)
        self.text = _TextTower(text, dialect)
        num_patches, num_tokens = self.vision.embeddings.num_rows, text.max_tokens
        self.cross_modal_text_transform = Linear(size, size, rows=num_tokens)
        self.cross_modal_image_transform = Linear(vision.tower.hidden_size, size, rows=num_patches)
        self.token_type_embeddings = _Types(size)
        of_text = {"rows": num_tokens, "other_rows": num_patches}
        of_image = {"rows": num_patches, "other_rows": num_tokens}
        numbers = range(num_layers)
        self.cross_modal_text_layers = ModuleList([_CrossLayer(text.tower, dialect, **of_text) for _ in numbers])
        self.cross_modal_image_layers = ModuleList([_CrossLayer(text.tower, dialect, **of_image) for _ in numbers])
        self.cross_modal_text_layernorm = LayerNorm(size, eps)
        self.cross_modal_image_layernorm = LayerNorm(size, eps)
        self.cross_modal_text_link_tower = ModuleList([LayerNorm(size, eps) for _ in numbers[1:]])
        self.cross_modal_image_link_tower = ModuleList([LayerNorm(size, eps) for _ in numbers[1:]])
        self.text_pooler = Linear(size, size, rows=1, name="cross_modal_text_pooler.dense")
        self.image_pooler = Linear(size, size, rows=1, name="cross_modal_image_pooler.dense")

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value, pixel_values: ir.Value) -> ir.Value:
        """Return [B, 2 * D]."""
        num = len(self.cross_modal_text_layers)
        over_text = attention_bias(op, attention_mask, is_causal=False)
        texts = self.text(op, input_ids, over_text)[-num:]
        images = self.vision(op, pixel_values)[-num:]
        text, image = self._towers(op, texts[0], images[0])
        text, image = self.cross_modal_text_layernorm(op, text), self.cross_modal_image_layernorm(op, image)
        seen = self._over(op, over_text, image)
        for number in range(num):
            if number:
                more_text, more_image = self._towers(op, texts[number], images[number])
                text = self.cross_modal_text_link_tower[number - 1](op, op.Add(more_text, text))
                image = self.cross_modal_image_link_tower[number - 1](op, op.Add(more_image, image))
            text, image = (
                self.cross_modal_text_layers[number](op, text, image, over_text, None),
                self.cross_modal_image_layers[number](op, image, text, None, seen),
            )
        first = [op.Gather(each, 0, axis=1) for each in (text, image)]
        return op.Concat(op.Tanh(self.text_pooler(op, first[0])), op.Tanh(self.image_pooler(op, first[1])), axis=-1)

    def _towers(self, op: OpBuilder, text: ir.Value, image: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return what a layer of each tower gives, in the width of the cross-modal layers and told apart."""
        text, image = self.cross_modal_text_transform(op, text), self.cross_modal_image_transform(op, image)
        return op.Add(text, self.token_type_embeddings(op, 0)), op.Add(image, self.token_type_embeddings(op, 1))

    def _over(self, op: OpBuilder, over_text: ir.Value, image: ir.Value) -> ir.Value:
        """Return the bias [B, 1, patches, T] of queries of an image over the tokens of a text."""
        row = op.Slice(over_text, [0], [1], [2])
        batch, length = op.Shape(row, start=0, end=1), op.Shape(row, start=3, end=4)
        return op.Expand(row, op.Concat(batch, [1], op.Shape(image, start=1, end=2), length, axis=0))


class _Scorer(Module):
    def __init__(self, vision: VisionConfig, text: BertConfig, num_layers: int, eps: float, dialect: Dialect) -> None:
        super().__init__()
        self.bridgetower = _Bridges(vision, text, num_layers, eps, dialect)
        self.score = Linear(2 * text.tower.hidden_size, 2, rows=1, name="itm_score.fc")

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value, pixel_values: ir.Value) -> ir.Value:
        """Return the score of a match over that of none: its logistic function is the model's chance of a match."""
        scores = self.score(op, self.bridgetower(op, input_ids, attention_mask, pixel_values))
        return op.Sub(op.Gather(scores, 1, axis=1), op.Gather(scores, 0, axis=1))


class BridgeTower(CrossEncoder):
    """`model_type` bridgetower, with the head for retrieval (`BridgeTowerForImageAndTextRetrieval`)."""

    image_processor = "BridgeTowerImageProcessor"
    renames = (
        (r"\.transformer\.resblocks\.", ".resblocks."),
        (r"\.text_model\.encoder\.layer\.", ".text_model.layer."),
        (r"(_link_tower\.\d+)\.LayerNorm\.", r"\1."),
    )
    unused = (
        r".*\.position_ids",
        r".*\.token_type_ids",
        r"bridgetower\.text_model\.pooler\..*",  # of the text tower alone
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        named = config.get("architectures") or ["BridgeTowerForImageAndTextRetrieval"]
        if "BridgeTowerForImageAndTextRetrieval" not in named:
            raise UnsupportedConfigError(
                f"architectures {', '.join(named)}: of BridgeTower the head for retrieval is built, "
                "BridgeTowerForImageAndTextRetrieval, which scores an image and a text"
            )
        require(config, _ONLY_BUILT)
        raw = {**_VISION_DEFAULTS, **sub_config(config, "vision_config")}
        require(raw, [("remove_last_layer", False), ("share_layernorm", True)])
        size = raw["hidden_size"]
        sizes = {
            "num_attention_heads": size // _HEAD_SIZE,
            "intermediate_size": _INNER * size,
            "hidden_act": "quick_gelu",
        }
        self._vision = VisionConfig.read({**raw, **sizes}, {})
        self._text = BertConfig.read(sub_config(config, "text_config"), ROBERTA_DEFAULTS, counts_behind_padding=True)
        self._num_layers = int(config.get("num_hidden_layers", 6))
        if int(config.get("hidden_size", 768)) != self._text.tower.hidden_size or size % _HEAD_SIZE:
            raise UnsupportedConfigError(
                f"hidden_size {config.get('hidden_size', 768)} beside {self._text.tower.hidden_size} of the texts and "
                f"{size} of the images: the first two must agree, and the last be a multiple of {_HEAD_SIZE}"
            )
        if self._vision.tower.num_layers != self._text.tower.num_layers:
            raise UnsupportedConfigError(
                f"{self._vision.tower.num_layers} layers over images and {self._text.tower.num_layers} over texts: "
                "bridges join layers of one number"
            )

    @property
    def image_size_px(self) -> int:
        """Side of the input."""
        return self._vision.image_size_px

    @property
    def texts(self) -> PairTexts:
        """What callers must know of the text side."""
        return PairTexts(self._text.vocab_size, self._text.max_tokens)

    def pair(self, dialect: Dialect) -> Module:
        """Return towers, bridges and head."""
        eps = float(self.config.get("layer_norm_eps", 1e-5))
        return _Scorer(self._vision, self._text, self._num_layers, eps, dialect)
