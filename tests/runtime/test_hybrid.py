"""A decoder with a state of fixed size: what is carried from step to step is its own, whatever the slots do.

The graph sums what it reads: total' = total + sum of the new embeddings, and its logits are both totals. The old one is
read after the new one was written, so a state that were written in place would show.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundle.dims import DecoderDims
from bundle.directory import Bundle, seal
from bundle.errors import SignatureError
from bundle.manifest import Component, Manifest, TensorSpec
from bundle.states import State
from runtime.cache_shape import cache_shape
from runtime.decoder import Decoder, TokenGraphs
from runtime.feeds import TokenRun
from runtime.filled_prompt import FilledPrompt
from runtime.settings import RuntimeSettings
from serving.engine.pace import Pace
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
    scheduler, found = Scheduler(shape, Pace(4, math.inf)), dict[Sequence, list[np.ndarray]]()
    prompts = [np.arange(5), np.arange(7, 20), np.arange(3), np.arange(9, 18)]
    lengths = [3, 9, 12, 6]
    for prompt, max_tokens in zip(prompts, lengths, strict=True):
        one = Sequence("r", FilledPrompt.of_ids(prompt), SamplingParams(max_tokens=max_tokens), ())
        found[one] = []
        scheduler.add(one)
    second, num_steps = list(found)[1], 0
    while (batch := scheduler.schedule()) is not None:
        runner.change(scheduler.take_changes())
        logits = runner.run(batch).rows().copy()
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


def changed(bundle: Bundle, change: Any, **fields: Any) -> Bundle:
    """Return the bundle with its decoder's graph and its entry in the manifest changed."""
    path = bundle.graph_path("decoder")
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    components = {**bundle.manifest.components}
    components["decoder"] = components["decoder"].model_copy(update=fields)
    return seal(bundle.directory, bundle.manifest.model_copy(update={"components": components}))


def decoder_of(bundle: Bundle) -> Decoder:
    return Decoder(TokenGraphs(bundle, RuntimeSettings(intra_threads=1)), cache_shape(bundle.manifest, 2, 32))


def run_of(ids: list[int], num_wanted: int = 1) -> TokenRun:
    return TokenRun(np.array(ids), np.arange(len(ids)), [0], list(range(num_wanted)))


def test_an_optional_output_is_its_runs_own_whatever_the_length_of_the_next(summing: Bundle) -> None:
    def add_squares(graph: Any) -> None:
        graph.node.append(helper.make_node("Mul", ["inputs_embeds", "inputs_embeds"], ["squares"]))
        graph.output.append(helper.make_tensor_value_info("squares", TensorProto.FLOAT, ("B", "T", SIZE)))

    squares = TensorSpec(name="squares", dtype="float32", shape=("B", "T", SIZE))
    decoder, found = decoder_of(changed(summing, add_squares, optional_outputs=(squares,))), []
    lists = [[1, 2, 3], [4, 5, 6], [7, 8], [9, 10, 11, 12]]
    for ids in lists:
        logits, others = decoder.run_with(("squares",), "prompt", 0, [run_of(ids)])
        assert logits.shape == (1, 1, 2 * SIZE)
        found.append(others["squares"])
    for ids, seen in zip(lists, found, strict=True):
        np.testing.assert_allclose(seen[0], TABLE[ids] ** 2, rtol=1e-6)


def test_logits_are_as_many_as_are_wanted_in_any_order_of_runs(summing: Bundle) -> None:
    decoder = decoder_of(summing)
    for num_wanted in (3, 1, 2, 1, 3):
        assert decoder.run("prompt", 0, [run_of([1, 2, 3], num_wanted)]).shape == (1, num_wanted, 2 * SIZE)


def test_an_optional_input_of_a_newer_version_is_left_to_the_graph(summing: Bundle) -> None:
    def add_bias(graph: Any) -> None:
        graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "bias"))
        graph.input.append(helper.make_tensor_value_info("bias", TensorProto.FLOAT, (1,)))
        for node in graph.node:
            if node.output[0] == "logits":
                node.output[0] = "before"
        graph.node.append(helper.make_node("Add", ["before", "bias"], ["logits"]))

    before = decoder_of(summing).run("prompt", 0, [run_of([1, 2])]).copy()
    bias = TensorSpec(name="bias", dtype="float32", shape=(1,))
    after = decoder_of(changed(summing, add_bias, optional_inputs=(bias,))).run("prompt", 0, [run_of([1, 2])])
    np.testing.assert_allclose(after, before + 1, rtol=1e-6)


def test_a_decoder_that_is_not_told_positions_is_refused_when_it_is_opened(summing: Bundle) -> None:
    inputs = tuple(spec for spec in summing.manifest.components["decoder"].inputs if spec.name != "position_ids")

    def drop(graph: Any) -> None:
        graph.input.remove(next(value for value in graph.input if value.name == "position_ids"))

    with pytest.raises(SignatureError, match="takes no position_ids"):
        decoder_of(changed(summing, drop, inputs=inputs))


def test_a_decoder_that_gives_no_logits_is_refused_when_it_is_opened(summing: Bundle) -> None:
    def rename(graph: Any) -> None:
        for node in graph.node:
            if node.output[0] == "logits":
                node.output[0] = "scores"
        graph.output[0].name = "scores"

    scores = summing.manifest.components["decoder"].outputs[0].model_copy(update={"name": "scores"})
    with pytest.raises(SignatureError, match="a decoder gives logits float32"):
        decoder_of(changed(summing, rename, outputs=(scores,)))


def test_a_vocabulary_of_another_size_than_the_logits_is_refused_when_it_is_opened(summing: Bundle) -> None:
    dims = summing.manifest.decoder.model_copy(update={"vocab_size": 5})
    with pytest.raises(SignatureError, match=r"a decoder gives logits float32 \[B, N, 5\]"):
        decoder_of(seal(summing.directory, summing.manifest.model_copy(update={"decoder": dims})))
