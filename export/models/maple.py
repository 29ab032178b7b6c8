"""MaPLe (arXiv 2210.03117): CLIP with learned prompts in both towers, those of images made of those of texts.

Export wants MaPLe's prompt learner as `prompt_learner.safetensors` in CLIP's folder (export.checkpoint.PROMPTS), under
the names of its published code. A text's first tokens make place for prompts: texts are written as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from bundle.errors import UnsupportedConfigError
from export.config import Raw, TowerConfig, VisionConfig, sub_config
from export.models.clip import Clip, ClipTexts
from export.nn.dialect import Dialect
from export.nn.linear import Linear
from export.nn.module import Module, ModuleList, Weight
from export.nn.vit import Encoder, Passed, TextEmbeddings, attention_bias
from export.towers.clip import PooledClipTower

_END = 2**31 - 1
_Put = Callable[[OpBuilder, ir.Value, ir.Value], ir.Value]


class _Learner(Module):
    """Prompts of the first layer and of the next ones; for images, projected to their tower's width."""

    def __init__(self, num: int, deep: int, size: int, image_size: int | None) -> None:
        super().__init__("prompt_learner")
        self.ctx = Weight(num, size)
        self.deep = [Weight(num, size, name=f"compound_prompts_text.{number}") for number in range(deep)]
        for number, prompts in enumerate(self.deep):
            setattr(self, f"deep_{number}", prompts)
        if image_size is not None:
            self.proj = Linear(size, image_size, rows=num)
            layers = [Linear(size, image_size, rows=num) for _ in range(deep)]
            self.compound_prompt_projections = ModuleList(layers)
        self.is_of_images = image_size is not None

    def forward(self, op: OpBuilder) -> list[ir.Value]:
        """Return [prompts, D] of each layer that has some."""
        if not self.is_of_images:
            return [self.ctx, *self.deep]
        pairs = zip(self.compound_prompt_projections, self.deep, strict=True)
        return [self.proj(op, self.ctx), *(layer(op, prompts) for layer, prompts in pairs)]


def _behind(num: int) -> _Put:
    """Return what puts prompts in the place of the last rows."""
    return lambda op, x, prompts: op.Concat(op.Slice(x, [0], [-num], [1]), prompts, axis=1)


def _in_front(num: int) -> _Put:
    """Return what puts prompts in the place of rows behind the first."""
    return lambda op, x, prompts: op.Concat(
        op.Slice(x, [0], [1], [1]), prompts, op.Slice(x, [1 + num], [_END], [1]), axis=1
    )


def _of_each(op: OpBuilder, prompts: ir.Value, x: ir.Value) -> ir.Value:
    """Return prompts [n, D] for each input of a batch x: [B, n, D]."""
    shape = op.Concat(op.Shape(x, start=0, end=1), op.Shape(prompts), axis=0)
    return op.Expand(op.Unsqueeze(prompts, [0]), shape)


class _Layers(Encoder):
    """Layers, the first of which take their own prompts in the place of what became of those before."""

    def __init__(self, config: TowerConfig, dialect: Dialect, put: _Put, *, rows: int) -> None:
        super().__init__(config, dialect, rows=rows)
        self.put = put

    def forward(
        self, op: OpBuilder, x: ir.Value, bias: ir.Value | None = None, prompts: Sequence[ir.Value] = ()
    ) -> Passed:
        states, looks = [x], []
        for number, layer in enumerate(self.layers):
            taken = states[-1]
            if 0 < number < len(prompts):
                taken = self.put(op, taken, _of_each(op, prompts[number], taken))
            state, looked = layer(op, taken, bias)
            states.append(state)
            looks.append(looked)
        return Passed(tuple(states), tuple(looks))


class _ImageTower(PooledClipTower):
    """CLIP's, whose prompts stand behind all patches."""

    def __init__(self, config: VisionConfig, dialect: Dialect, num: int) -> None:
        super().__init__(config, dialect)
        self.encoder = _Layers(config.tower, dialect, _behind(num), rows=self.embeddings.num_rows + num)

    def forward(self, op: OpBuilder, pixel_values: ir.Value, prompts: Sequence[ir.Value] = ()) -> ir.Value:
        x = self.embeddings(op, pixel_values)
        x = self.pre_layrnorm(op, op.Concat(x, _of_each(op, prompts[0], x), axis=1))
        passed = self.encoder(op, x, None, prompts)
        return self.post_layernorm(op, op.Gather(passed.states[-1], 0, axis=1))


class _Words(TextEmbeddings):
    """Words, prompts in the place of some behind the first, and positions of all."""

    def __init__(self, sizes: tuple[int, int, int], put: _Put) -> None:
        super().__init__(*sizes)
        self.put = put

    def forward(self, op: OpBuilder, input_ids: ir.Value, prompts: ir.Value | None = None) -> ir.Value:
        words = self.token_embedding(op, input_ids)
        words = words if prompts is None else self.put(op, words, _of_each(op, prompts, words))
        length = op.Shape(input_ids, start=1, end=2)
        return op.Add(words, op.Slice(self.position_embedding(op), [0], length, [0]))


class _TextTower(ClipTexts):
    """CLIP's, whose prompts stand behind the token that begins a text."""

    def __init__(self, raw: Raw, end: int | None, dialect: Dialect, num: int) -> None:
        super().__init__(raw, end, dialect)
        tower, put = TowerConfig.read(raw, {}), _in_front(num)
        self.embeddings = _Words((raw["vocab_size"], raw["max_position_embeddings"], tower.hidden_size), put)
        self.encoder = _Layers(tower, dialect, put, rows=self.embeddings.num_rows)

    def forward(
        self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value, prompts: Sequence[ir.Value] = ()
    ) -> ir.Value:
        bias = attention_bias(op, attention_mask, is_causal=True)
        passed = self.encoder(op, self.embeddings(op, input_ids, prompts[0]), bias, prompts)
        return self.pooled(op, passed.states[-1], input_ids)


class _Images(Module):
    def __init__(self, tower: _ImageTower, learner: _Learner, size: int, embedding_size: int) -> None:
        super().__init__()
        self.vision_model, self.prompt_learner = tower, learner
        self.visual_projection = Linear(size, embedding_size, rows=1, bias=False)

    def forward(self, op: OpBuilder, pixel_values: ir.Value) -> ir.Value:
        return self.visual_projection(op, self.vision_model(op, pixel_values, self.prompt_learner(op)))


class _Texts(Module):
    def __init__(self, tower: _TextTower, learner: _Learner, embedding_size: int) -> None:
        super().__init__()
        self.text_model, self.prompt_learner = tower, learner
        self.text_projection = Linear(tower.size, embedding_size, rows=1, bias=False)

    def forward(self, op: OpBuilder, input_ids: ir.Value, attention_mask: ir.Value) -> ir.Value:
        prompts = self.prompt_learner(op)
        return self.text_projection(op, self.text_model(op, input_ids, attention_mask, prompts))


class Maple(Clip):
    """`model_type` maple: what a clip checkpoint with a prompt learner in it becomes."""

    pads_to_max = True
    prompt_template = "a photo of a {}."
    unused = (*Clip.unused, r"prompt_learner\.token_(prefix|suffix)")

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        found = sub_config(config, "prompts")
        self._num, self._deep = int(found["num"]), int(found["deep"])
        self.replaced_tokens = self._num
        fewest = min(self._text["num_hidden_layers"], self._vision.tower.num_layers)
        if self._deep >= fewest:
            raise UnsupportedConfigError(
                f"prompt_learner.safetensors holds prompts of {self._deep} layers behind the first; CLIP's towers have "
                f"{fewest} layers or more"
            )

    def vision(self, dialect: Dialect) -> Module:
        """Return prompts, tower and projection."""
        size = self._vision.tower.hidden_size
        learner = _Learner(self._num, self._deep, int(self._text["hidden_size"]), size)
        return _Images(_ImageTower(self._vision, dialect, self._num), learner, size, self.embedding_size)

    def text(self, dialect: Dialect) -> Module:
        """Return prompts, tower and projection."""
        learner = _Learner(self._num, self._deep, int(self._text["hidden_size"]), None)
        return _Texts(_TextTower(self._text, self.end, dialect, self._num), learner, self.embedding_size)
