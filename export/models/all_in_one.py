"""All-in-one (Wang et al., arXiv 2203.07303): one encoder over a text and the frames of a video, and a score.

Every frame is read beside the text; before each layer some patches of a frame take the places of its neighbours'
(temporal token rolling), which is all that frames know of one another. Keys of the weights and of the config are the
authors' (`AllInOne/config.py`).
"""

from __future__ import annotations

from itertools import pairwise

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle import tensors
from bundle.errors import UnsupportedConfigError
from bundle.manifest import TensorSpec
from export.config import Raw, TowerConfig, VisionConfig
from export.cross_encoder import CrossEncoder, PairTexts
from export.nn.bert import TEXT_DEFAULTS, BertConfig, BertEmbeddings
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, ModuleList, Weight
from export.nn.norms import LayerNorm
from export.nn.vit import PatchEmbedding, attention_bias
from export.towers.timm_vit import TimmBlock
from graphs.labels import Label

_DEFAULTS: Raw = {
    "vit": "vit_base_patch16_224",
    "image_size": 224,
    "patch_size": 16,
    "num_frames": 3,
    "max_text_len": 40,
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_heads": 12,
    "num_layers": 12,
    "mlp_ratio": 4,
    "max_image_len": -1,
}
_VIT_EPS = 1e-6
_ROLLED = 8
"""A frame's places, its class token among them, over this are rolled forwards, and as many backwards."""
_TEXT, _VIDEO = 0, 1
"""Rows of the table of modalities."""
_MOST_FRAMES = 64
_RANKING = ("irtr", "multiple_choice")
_NO_SCORE = ("vqa", "openend_vqa", "mc_vqa", "vcr_q2a", "nlvr2")


class _Patches(Module):
    """Where the checkpoint keeps the convolution."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = PatchEmbedding(config, bias=True)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.proj(op, pixel_values)


class _Modalities(Module):
    """A table of which the graph itself reads one row."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = Weight(2, size, label=Label("constant table"))

    def forward(self, op: OpBuilder, row: int) -> ir.Value:
        """Return [D]."""
        return op.Gather(self.weight, row, axis=0)


class _Transformer(Module):
    """The layers, and what a frame is before them."""

    def __init__(self, config: VisionConfig, num_frames: int, num_texts: int, dialect: Dialect) -> None:
        super().__init__()
        size, rows = config.tower.hidden_size, num_texts + config.grid**2 + 1
        self.patch_embed = _Patches(config)
        self.cls_token = Weight(1, 1, size)
        self.pos_embed = Weight(1, config.grid**2 + 1, size)
        self.temporal_embed = Weight(1, num_frames, size)
        self.blocks = ModuleList([TimmBlock(config.tower, dialect, rows=rows) for _ in range(config.tower.num_layers)])
        self.norm = LayerNorm(size, config.tower.layer_norm_eps)
        self.config, self.num_frames = config, num_frames

    def _embedded(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        """Return [B*F, 1 + P, D] from [B, 3*F, height, width]."""
        side, size, num_places = self.config.image_size_px, self.config.tower.hidden_size, self.config.grid**2 + 1
        frames = op.Reshape(pixel_values, [-1, 3, side, side])
        patches = op.Reshape(self.patch_embed(op, frames), [-1, self.num_frames, num_places - 1, size])
        placed = op.Add(patches, op.Unsqueeze(op.Slice(self.pos_embed, [1], [num_places], [1]), [1]))
        timed = op.Reshape(op.Add(placed, op.Unsqueeze(self.temporal_embed, [2])), [-1, num_places - 1, size])
        first = op.Add(self.cls_token, op.Slice(self.pos_embed, [0], [1], [1]))
        shape = op.Concat(op.Shape(timed, start=0, end=1), [1, size], axis=0)
        return op.Concat(op.Expand(first, shape), timed, axis=1)

    def forward(
        self, op: OpBuilder, text: ir.Value, pixel_values: ir.Value, kind: ir.Value, mask: ir.Value
    ) -> ir.Value:
        """Return [B, D], what the text's first token became, the mean over frames.

        Args:
            text: [B*F, T, D].
            pixel_values: [B, 3*F, height, width].
            kind: [D], added to what is seen.
            mask: [B*F, T], 1 where a token stands.
        """
        video, length = op.Add(self._embedded(op, pixel_values), kind), op.Shape(text, start=1, end=2)
        seen = op.Expand([1], op.Concat(op.Shape(mask, start=0, end=1), [self.config.grid**2 + 1], axis=0))
        bias = attention_bias(op, op.Concat(mask, seen, axis=1), is_causal=False)
        for block in self.blocks:
            x = block(op, op.Concat(text, self._rolled(op, video), axis=1), bias)
            text, video = op.Slice(x, [0], length, [1]), op.Slice(x, length, [_TO_THE_END], [1])
        first = op.Reshape(self.norm(op, op.Gather(text, 0, axis=1)), [-1, self.num_frames, self._size])
        return op.ReduceMean(first, [1], keepdims=0)

    @property
    def _size(self) -> int:
        return self.config.tower.hidden_size

    def _rolled(self, op: OpBuilder, video: ir.Value) -> ir.Value:
        """Return frames some of whose patches are those of the frame before or behind, around the ends."""
        num_places, frames = self.config.grid**2 + 1, self.num_frames
        num = num_places // _ROLLED
        if not num or frames == 1:
            return video
        by_frame = op.Reshape(video, [-1, frames, num_places, self._size])
        cuts = [0, 1, 1 + num, num_places - num, num_places]
        own, earlier, still, later = (op.Slice(by_frame, [start], [end], [2]) for start, end in pairwise(cuts))
        earlier = op.Gather(earlier, [(frame - 1) % frames for frame in range(frames)], axis=1)
        later = op.Gather(later, [(frame + 1) % frames for frame in range(frames)], axis=1)
        return op.Reshape(op.Concat(own, earlier, still, later, axis=2), [-1, num_places, self._size])


_TO_THE_END = 2**31 - 1


class _Scorer(Module):
    """Encoder and head."""

    def __init__(
        self, config: VisionConfig, texts: BertConfig, num_frames: int, dialect: Dialect, head: Module
    ) -> None:
        super().__init__()
        size = config.tower.hidden_size
        self.text_embeddings = BertEmbeddings(texts)
        self.token_type_embeddings = _Modalities(size)
        self.transformer = _Transformer(config, num_frames, texts.num_positions, dialect)
        self.pooler = Linear(size, size, rows=1, name="pooler.dense")
        self.head = head
        self.num_frames = num_frames

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value, pixel_values: ir.Value) -> ir.Value:
        text = op.Add(self.text_embeddings(op, input_ids), self.token_type_embeddings(op, _TEXT))
        kind, mask = self.token_type_embeddings(op, _VIDEO), self._by_frame(op, attention_mask)
        pooled = self.transformer(op, self._by_frame(op, text), pixel_values, kind, mask)
        return op.Squeeze(self.head(op, op.Tanh(self.pooler(op, pooled))), [1])

    def _by_frame(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Return [B*F, ...] from [B, ...], each row once for every frame."""
        inner = op.Shape(x, start=1)
        wide = op.Expand(op.Unsqueeze(x, [1]), op.Concat([1, self.num_frames], inner, axis=0))
        return op.Reshape(wide, op.Concat([-1], inner, axis=0))


class _Matching(Module):
    """The score of two classes: how much more the second has, whose logistic function is its chance."""

    def __init__(self, size: int) -> None:
        super().__init__("itm_score")
        self.fc = Linear(size, 2, rows=1)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        classes = self.fc(op, x)
        return op.Sub(op.Slice(classes, [1], [2], [1]), op.Slice(classes, [0], [1], [1]))


class AllInOne(CrossEncoder):
    """`model_type` all_in_one, with the head of retrieval and multiple choice, or that of matching."""

    image_processor = "EfficientNetImageProcessor"
    renames = ((r"^(module|model)\.", ""),)
    unused = (
        r".*\.position_ids",
        r"(mlm|mpp)_score\..*",
        r"(txt|vid)_proj\..*",
        r"vcop_classifier\..*",
        r"transformer\.(head|mask_token).*",
    )

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        raw = {**_DEFAULTS, **config}
        self._check(raw)
        self._ranks = any(raw["loss_names"].get(name) for name in _RANKING)
        self._raw = raw
        self._num_frames = int(raw["num_frames"])
        size = int(raw["hidden_size"])
        tower = TowerConfig(
            size, int(size * raw["mlp_ratio"]), int(raw["num_layers"]), int(raw["num_heads"]), "gelu", _VIT_EPS
        )
        self._config = VisionConfig(tower, int(raw["image_size"]), int(raw["patch_size"]), 3)

    @staticmethod
    def _check(raw: Raw) -> None:
        """Refuse what is not built.

        Raises:
            UnsupportedConfigError: Names it.
        """
        name, losses = raw["vit"], raw.get("loss_names")
        if "distilled" in name or not name.startswith(("vit_base_patch", "vit_large_patch", "vit_deit_")):
            raise UnsupportedConfigError(
                f"vit {name!r}: built are ViTs whose scores are scaled by a head's size and that have one class token, "
                "vit_base_patch*, vit_large_patch* and vit_deit_* without distillation"
            )
        if not isinstance(losses, dict) or not any(losses.get(key) for key in ("itm", *_RANKING)):
            raise UnsupportedConfigError(
                f"loss_names {losses!r:.200}: built are the heads that score a text and a video, of retrieval and "
                f"multiple choice ({', '.join(_RANKING)}) or of matching (itm); keep loss_names of the checkpoint"
            )
        if asked := [key for key in _NO_SCORE if losses.get(key)]:
            raise UnsupportedConfigError(
                f"loss_names {', '.join(asked)}: a head that chooses among the answers of its training has no route "
                "here, for they have no names in the checkpoint; ask by multiple choice, a score for each answer"
            )
        if raw["max_image_len"] != -1:
            raise UnsupportedConfigError(
                f"max_image_len {raw['max_image_len']}: patches would be drawn by chance; built is -1, all of them"
            )
        if not 1 <= int(raw["num_frames"]) <= _MOST_FRAMES:
            raise UnsupportedConfigError(f"num_frames {raw['num_frames']}: 1 to {_MOST_FRAMES} are built")

    @property
    def image_size_px(self) -> int:
        """Side of a frame."""
        return self._config.image_size_px

    @property
    def num_frames(self) -> int:
        """F, read beside a text."""
        return self._num_frames

    @property
    def texts(self) -> PairTexts:
        """What callers must know of the text side."""
        return PairTexts(int(self._raw["vocab_size"]), int(self._raw["max_text_len"]))

    def skipped(self) -> tuple[str, ...]:
        """Return the unused keys, with those of the head of matching where that of retrieval scores."""
        return (*super().skipped(), *((r"itm_score\..*", r"rank_output_2\..*") if self._ranks else ()))

    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return what the graph takes: ids and mask [B, T], pixel_values [B, 3*F, height, width], frame by frame."""
        ids, mask, images = super().inputs()
        batch, channels, *sides = images.shape
        if channels != 3:
            raise UnsupportedConfigError(f"{tensors.PIXEL_VALUES} has {channels} channels; frames have 3")
        return ids, mask, images.model_copy(update={"shape": (batch, 3 * self._num_frames, *sides)})

    def pair(self, dialect: Dialect) -> Module:
        """Return encoder and head."""
        size, told = self._config.tower.hidden_size, {"max_position_embeddings": self._raw["max_text_len"]}
        sizes = {key: self._raw[key] for key in ("vocab_size", "hidden_size")}
        heads = {"num_hidden_layers": 1, "num_attention_heads": self._raw["num_heads"]}
        texts = BertConfig.read({**sizes, **heads, **told}, TEXT_DEFAULTS)
        head: Module = Linear(size, 1, rows=1, name="rank_output") if self._ranks else _Matching(size)
        return _Scorer(self._config, texts, self._num_frames, dialect, head)
