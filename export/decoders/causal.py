"""Any decoder as a graph: embeddings to logits, states in and out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir
from onnxscript import OpBuilder

from export.decoders.decoder import Decoder
from export.nn.decoder_layer import Around, Left
from export.nn.dialect import Dialect, Lengths, Sight
from export.nn.linear import Linear
from export.nn.module import Module, ModuleList
from graphs.segments import hidden_name


class _Stack(Module):
    """What comes before the layers, all of them, and the final norm; `name` is where the checkpoint keeps them."""

    def __init__(self, decoder: Decoder, dialect: Dialect, name: str) -> None:
        super().__init__(name)
        self.entrance, self.preparation = decoder.entrance(), decoder.preparation(dialect)
        self.sources = [decoder.source_of(number) for number in range(decoder.config.num_layers)]
        self.layers = ModuleList([decoder.layer(dialect, number) for number in range(decoder.config.num_layers)])
        self.norm = decoder.norm(dialect)

    def forward(
        self,
        op: OpBuilder,
        embeddings: ir.Value,
        position_ids: ir.Value,
        around: Sequence[Around],
        states: Sequence[Sequence[ir.Value]],
        rows: ir.Value,
    ) -> tuple[ir.Value, list[Left]]:
        """Return the normed hidden states of `rows` [B, N, D], and what each layer left."""
        x = embeddings if self.entrance is None else self.entrance(op, embeddings, position_ids)
        left = list[Left]()
        around = self._prepared(op, x, around)
        for number, (layer, of_layer, own) in enumerate(zip(self.layers, around, states, strict=True)):
            source = self.sources[number]
            done: Left = layer(op, x, of_layer, own if source is None else left[source].states)
            x = done.hidden
            x.name = hidden_name(number + 1)
            left.append(done)
        wanted = op.GatherND(x, op.Unsqueeze(rows, [2]), batch_dims=1)
        return self.norm(op, wanted), left

    def _prepared(self, op: OpBuilder, x: ir.Value, around: Sequence[Around]) -> Sequence[Around]:
        """Return what layers know, with the decoder's inputs as they want them."""
        if self.preparation is None:
            return around
        more = self.preparation(op, x, *around[0].more)
        return [replace(each, more=more) for each in around]


class CausalDecoder(Module):
    """embeddings -> logits with states: the graph `decoder.onnx`.

    Args:
        decoder: Sizes and layers.
        dialect: How attention is written.
        name: Where the checkpoint keeps the stack, e.g. "model.text_model".
        head: What makes of states what is wanted of them; None: the vocabulary's scores.
        vectors: What makes vectors of states, beside scores; None: nothing does.
    """

    def __init__(
        self,
        decoder: Decoder,
        dialect: Dialect,
        name: str,
        head: Module | None = None,
        vectors: Module | None = None,
    ) -> None:
        super().__init__()
        config = decoder.config
        self.shared = decoder.shared()
        self.stack = _Stack(decoder, dialect, name)
        self.lm_head = head or Linear(
            config.hidden_size, config.vocab_size, rows=None, role="head", bias=decoder.has_head_bias
        )
        self.vectors = vectors
        self.logit_softcap = 0.0 if head else decoder.logit_softcap
        self.decoder = decoder
        self.dialect = dialect

    def forward(
        self,
        op: OpBuilder,
        inputs_embeds: ir.Value,
        position_ids: ir.Value,
        past_lengths: ir.Value,
        logits_indices: ir.Value,
        *others: ir.Value,
    ) -> tuple[ir.Value, ...]:
        """Return logits [B, N, V], vectors, the last queries of each layer that has some, and the states."""
        angles = self.decoder.angles(op, position_ids)
        first, num_more = len(self.decoder.sight_inputs), len(self.decoder.inputs)
        more, given = others[first : first + num_more], others[first + num_more :]
        num_shared = len(self.decoder.shared_states)
        shared = () if self.shared is None else self.shared(op, given[:num_shared], more)
        states = self._of_layers(given[num_shared:])
        lengths = self._lengths(op, inputs_embeds, past_lengths, others, states)
        around = [Around(angles, of_layer, more, shared) for of_layer in lengths]
        hidden, left = self.stack(op, inputs_embeds, position_ids, around, states, logits_indices)
        queries = [each.queries for each in left if each.queries is not None]
        vectors = [] if self.vectors is None else [self.vectors(op, hidden)]
        return self._logits(op, hidden), *vectors, *queries, *(state for each in left for state in each.states)

    def _sight(
        self, op: OpBuilder, x: ir.Value, past_lengths: ir.Value, window: int | None, others: Sequence[ir.Value]
    ) -> Sight:
        """Return how far tokens see; `others` are what the graph takes beside embeddings, positions and lengths."""
        if self.decoder.sight_inputs:
            return Sight(window, others[0], self.decoder.skips_text)
        if window is None or not self.decoder.keeps_prompt:
            return Sight(window)
        tokens = op.Range(0, op.Squeeze(op.Shape(x, start=1, end=2), [0]), 1)
        own = op.Add(op.Unsqueeze(past_lengths, [1]), tokens)
        prompt = op.Gather(others[0], 1, axis=2)
        behind = op.Min(op.Sub(op.Sub(prompt, 1), own), 0)  # the last of the prompt is before the token, or it itself
        return Sight(window, op.Concat(op.Unsqueeze(own, [0]), op.Unsqueeze(behind, [0]), axis=0), is_behind=True)

    def _logits(self, op: OpBuilder, hidden: ir.Value) -> ir.Value:
        logits, cap = self.lm_head(op, hidden), self.logit_softcap
        return op.Mul(op.Tanh(op.Mul(logits, 1 / cap)), cap) if cap else logits

    def _of_layers(self, states: Sequence[ir.Value]) -> list[tuple[ir.Value, ...]]:
        """Return the states of each layer."""
        left = iter(states)
        numbers = range(self.decoder.config.num_layers)
        return [tuple(next(left) for _ in self.decoder.states_of(number)) for number in numbers]

    def _lengths(
        self,
        op: OpBuilder,
        x: ir.Value,
        past_lengths: ir.Value,
        others: Sequence[ir.Value],
        states: Sequence[Sequence[ir.Value]],
    ) -> list[Lengths]:
        """Return the lengths of each layer's group as far as it sees; the caches of a group are as long as another."""
        config, made = self.decoder.config, dict[tuple[int, int | None], Lengths]()
        of_group = [op.Gather(past_lengths, group, axis=0) for group in range(config.num_length_groups)]
        caches = dict[int, ir.Value]()
        for number in self.decoder.layers_with_rows:
            caches.setdefault(config.length_groups[number], states[number][0])
        found = []
        for number in range(config.num_layers):
            source, window = self.decoder.source_of(number), self.decoder.window_of(number)
            group = config.length_groups[number if source is None else source]
            if (group, window) not in made:
                sight = self._sight(op, x, of_group[group], window, others)
                made[group, window] = self.dialect.lengths(op, x, of_group[group], caches[group], sight)
            found.append(made[group, window])
        return found
