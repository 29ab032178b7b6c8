"""A decoder with a state of fixed size: what is carried from step to step is its own, whatever the slots do.

The graph sums what it reads: total' = total + sum of the new embeddings, and its logits are both totals. The old one is
read after the new one was written, so a state that were written in place would show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundle.directory import Bundle, seal
from bundle.manifest import Component, DecoderDims, Manifest, TensorSpec
from bundle.states import State
from runtime.cache_shape import cache_shape
from runtime.decoder import Decoder, TokenGraphs
from runtime.filled_prompt import FilledPrompt
from runtime.settings import RuntimeSettings
from serving.engine.runner import Runner
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import Sequence
from serving.protocol import SamplingParams

SIZE = 6
TABLE = np.random.default_rng(2).normal(size=(30, SIZE)).astype(np.float32)
ROWS = State(input="past", output="present", dtype="float32", shape=("B", "S", 1), group=0)
TOTAL = State(input="total", output="total_after", kind="fixed", dtype="float32", shape=("B", SIZE))
INPUTS = {
    "inputs_embeds": ("float32", ("B", "T", SIZE)),
    "position_ids": ("int64", ("B", "T")),
    "past_lengths": ("int64", (1, "B")),
    "logits_indices": ("int64", ("B", "N")),
}


def save(path: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], **weights: np.ndarray) -> None:
    def values(specs: dict[str, Any]) -> list[Any]:
        kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
        return [helper.make_tensor_value_info(name, kinds[dtype], shape) for name, (dtype, shape) in specs.items()]

    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, path.stem, values(inputs), values(outputs), initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def component(role: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> Component:
    def specs(of: dict[str, Any]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name, (dtype, shape) in of.items())

    return Component(
        file=f"{role}.onnx", role=role, scheme="fp32", inputs=specs(inputs), outputs=specs(outputs), weight_bytes=0
    )


@pytest.fixture
def summing(tmp_path: Path) -> Bundle:
    ids, embeds = {"input_ids": ("int64", ("B", "T"))}, {"inputs_embeds": INPUTS["inputs_embeds"]}
    save(
        tmp_path / "embed_tokens.onnx",
        [helper.make_node("Gather", ["t", "input_ids"], ["inputs_embeds"])],
        ids,
        embeds,
        t=TABLE,
    )
    node = helper.make_node
    nodes = [
        node("ReduceSum", ["inputs_embeds", "one"], ["news"], keepdims=0),
        node("Add", ["total", "news"], ["total_after"]),
        node("Mul", ["total_after", "zero"], ["nothing"]),  # so that the old total is read after the new one is there
        node("Add", ["total", "nothing"], ["old"]),
        node("Concat", ["total_after", "old"], ["both"], axis=1),
        node("Cast", ["logits_indices"], ["wanted"], to=TensorProto.FLOAT),
        node("Mul", ["wanted", "zero"], ["as_many"]),
        node("Unsqueeze", ["as_many", "two"], ["zeros"]),
        node("Unsqueeze", ["both", "one"], ["wide"]),
        node("Add", ["wide", "zeros"], ["logits"]),
        node("Identity", ["past"], ["present"]),
    ]
    logits = {"logits": ("float32", ("B", "N", 2 * SIZE))}
    states = {"past": ("float32", ROWS.shape), "total": ("float32", TOTAL.shape)}
    after = {"present": ("float32", ROWS.shape), "total_after": ("float32", TOTAL.shape)}
    constants = {"one": np.array([1]), "two": np.array([2]), "zero": np.zeros(1, np.float32)}
    save(tmp_path / "decoder.onnx", nodes, INPUTS | states, logits | after, **constants)
    facts = dict.fromkeys(("name", "source", "source_sha256", "created_by", "model_type"), "t")
    manifest = Manifest(
        **facts,
        task="image-text-to-text",
        dialect="portable",
        components={
            "embed_tokens": component("embed_tokens", ids, embeds),
            "decoder": component("decoder", INPUTS, logits),
        },
        states=(ROWS, TOTAL),
        decoder=DecoderDims(hidden_size=SIZE, vocab_size=2 * SIZE, max_positions=64),
    )
    return seal(tmp_path, manifest)


def test_each_sequence_carries_its_own_total_through_chunks_moves_and_preemption(summing: Bundle) -> None:
    shape = cache_shape(summing.manifest, 3, 32)
    runner = Runner(Decoder(TokenGraphs(summing, RuntimeSettings(intra_threads=1)), shape))
    scheduler, found = Scheduler(shape, 4), dict[Sequence, list[np.ndarray]]()
    prompts = [np.arange(5), np.arange(7, 20), np.arange(3), np.arange(9, 18)]
    lengths = [3, 9, 12, 6]
    for prompt, max_tokens in zip(prompts, lengths, strict=True):
        one = Sequence("r", FilledPrompt.of_ids(prompt), SamplingParams(max_tokens=max_tokens), ())
        found[one] = []
        scheduler.add(one)
    second, num_steps = list(found)[1], 0
    while (batch := scheduler.schedule()) is not None:
        runner.change(scheduler.take_changes())
        logits = runner.run(batch).copy()
        scheduler.advance(batch)
        for row, of_row in zip(batch.rows, logits, strict=True):
            if row.is_last:
                found[row.sequence].append(of_row)
                scheduler.append(row.sequence, int(of_row[:SIZE].argmax()) + row.sequence.num_output_tokens % 5)
        num_steps += 1
        if second.num_output_tokens == 4 and num_steps % 3 == 0:
            scheduler.preempt(second)
    for one, seen in found.items():
        for at, (new, old) in enumerate((each[:SIZE], each[SIZE:]) for each in seen):
            read = one.ids[: one.num_prompt_tokens + at]
            np.testing.assert_allclose(new, TABLE[read].sum(axis=0), rtol=0, atol=1e-4)
            if at:  # one token was new
                np.testing.assert_allclose(old, TABLE[read[:-1]].sum(axis=0), rtol=0, atol=1e-4)
        assert len(seen) == one.num_output_tokens
