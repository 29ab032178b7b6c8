"""Graphs of every family, what they are fed, and bundles with figures of a test's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from PIL import Image

from bundle.directory import Bundle, read_manifest, seal
from bundle.gates import Unmeasured
from bundle.machine import Machine
from bundle.manifest import Component, Manifest
from bundle.report import EvaluationFacts, Replies, Report, TeacherForced, write_report
from graphs.layers import find_linears
from graphs.store import open_graph, save_graph
from quant.calibration.statistics import InputStatistics
from quant.quality.evaluation import PairedFlags
from quant.quality.gate import judge
from runtime.settings import RuntimeSettings

Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Asked:
    """A question whose text names its answer."""

    answer: str
    images: tuple[Image.Image, ...] = ()
    task: str = "any"

    def messages(self) -> list[dict[str, object]]:
        image = [{"type": "image"} for _ in self.images]
        return [{"role": "user", "content": [*image, {"type": "text", "text": f"Say {self.answer}."}]}]

    def is_right(self, reply: str) -> bool:
        return reply == self.answer


@dataclass(frozen=True)
class Captioned:
    """An image and a text."""

    image: Image.Image
    caption: str


@dataclass(frozen=True)
class ArraySource:
    """What is read of a `FeedSource`: a bundle of one graph, whose input x is at hand."""

    bundle: Bundle
    samples: Sequence[NDArray[np.float32]]
    settings: RuntimeSettings

    def of(self, component: str) -> list[Feeds]:
        return [{"x": each} for each in self.samples]


@pytest.fixture(scope="session")
def asked() -> type[Asked]:
    """Makes questions."""
    return Asked


@pytest.fixture(scope="session")
def captioned() -> type[Captioned]:
    """Makes captioned images."""
    return Captioned


@pytest.fixture(scope="session")
def one_thread() -> RuntimeSettings:
    """Tiny matrices: threads would wait for each other."""
    return RuntimeSettings(intra_threads=1)


@pytest.fixture
def array_source(tmp_path: Path, one_thread: RuntimeSettings) -> Callable[..., ArraySource]:
    """Write a graph with an input x as a bundle's decoder, and return it with its samples."""

    def write(model: ir.Model, samples: Sequence[NDArray[np.float32]]) -> ArraySource:
        save_graph(model, tmp_path / "decoder.onnx")
        decoder = Component(file="decoder.onnx", role="decoder", scheme="fp32", inputs=(), outputs=(), weight_bytes=0)
        manifest = Manifest(
            name="arrays",
            source="arrays",
            source_sha256="0" * 64,
            created_by="a test",
            model_type="llama",
            task="image-text-to-text",
            dialect="contrib",
            components={"decoder": decoder},
        )
        return ArraySource(seal(tmp_path, manifest), samples, one_thread)

    return write


@pytest.fixture
def feeds_of(rng: np.random.Generator) -> Callable[[ir.Model], Feeds]:
    """Return random inputs for a graph: two sequences of six tokens on an empty cache, or two images."""

    def feeds(model: ir.Model) -> Feeds:
        sizes = {"B": 2, "I": 2, "T": 6, "S": 8, "N": 6}
        found: Feeds = {}
        for value in model.graph.inputs:
            shape = [sizes.get(str(side), side) for side in value.shape or ()]
            if value.name == "attention_mask":
                found[value.name] = np.ones(shape, np.int64)
            elif value.name == "past_lengths":
                found[value.name] = np.zeros(shape, np.int64)
            elif value.name in ("position_ids", "logits_indices"):
                found[value.name] = np.tile(np.arange(shape[1]), (shape[0], 1))
            elif value.name == "input_ids":
                found[value.name] = rng.integers(0, 255, shape)
            elif str(value.name).startswith("past_key_values"):
                found[str(value.name)] = np.zeros(shape, np.float32)
            else:
                found[str(value.name)] = rng.standard_normal(shape).astype(np.float32)
        return found

    return feeds


@pytest.fixture
def statistics_of(run: Any) -> Callable[[ir.Model, Feeds], dict[str, InputStatistics]]:
    """Return what meets every linear layer of a graph on some inputs."""

    def statistics(model: ir.Model, feeds: Feeds) -> dict[str, InputStatistics]:
        linears = find_linears(model.graph)
        seen = list(dict.fromkeys(linear.input for linear in linears))
        num_own = len(model.graph.outputs)
        types = [value.type for value in seen]
        model.graph.outputs.extend(value for value in seen if value not in model.graph.outputs)
        for value in seen:
            value.type = ir.TensorType(ir.DataType.FLOAT)
        rows = dict(zip(seen, run(model, **feeds)[num_own:], strict=True))
        del model.graph.outputs[num_own:]
        for value, before in zip(seen, types, strict=True):
            value.type = before
        found = {}
        for linear in linears:
            x = rows[linear.input].reshape(-1, linear.num_inputs)
            found[linear.name] = InputStatistics(len(x), np.abs(x).max(axis=0), x.T @ x / np.float32(len(x)))
        return found

    return statistics


@pytest.fixture
def graph_of(bundle_of: Callable[[str, str], Path]) -> Callable[[str, str, str], ir.Model]:
    """Return a fresh copy of one graph: family, dialect, component."""
    return lambda family, dialect, component: open_graph(bundle_of(family, dialect) / f"{component}.onnx")


@pytest.fixture(scope="session")
def variant_at(smolvlm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a bundle that says it was quantized: its graphs are its parent's, its figures are the test's."""

    def write(
        name: str,
        *,
        num_bytes: int,
        lost: int = 0,
        passed: bool | None = True,
        sensitivity: tuple[Any, ...] = (),
        n: int = 200,
        unmeasured: tuple[Unmeasured, ...] = (),
    ) -> Path:
        folder = Path(shutil.copytree(smolvlm_bundle, tmp_path_factory.mktemp("variant") / name))
        parent = read_manifest(folder)
        share = num_bytes / parent.weight_bytes
        components = {
            key: part.model_copy(
                update={"scheme": "int4", "detail": "2 x <b>", "weight_bytes": round(part.weight_bytes * share)}
            )
            for key, part in parent.components.items()
        }
        tasks = {task: _tally(n, lost).summary() for task in ("digit", "colour & shape", "all")}
        forced = TeacherForced(
            num_samples=n,
            num_tokens=3 * n,
            kl_mean=0.0123,
            kl_p99=0.4,
            top1_agreement=0.987,
            delta_nll=0.002,
            kl_interval=(0.0101, 0.0145),
        )
        gates = (judge("kl_mean", 0.0123 if passed else 9.0, 3 * n, "int4"),)
        report = Report(
            parent=parent.name,
            parent_sha256=parent.source_sha256,
            weights=name,
            fp32_bytes=parent.weight_bytes,
            weight_bytes=num_bytes,
            components={},
            evaluation=None if passed is None else EvaluationFacts(source="cats.jsonl", num_samples=n),
            teacher_forced=None if passed is None else forced,
            replies=None if passed is None else Replies(n=n, identical=0.93, first_divergence=1.5),
            tasks={} if passed is None else tasks,
            sensitivity=sensitivity,
            gates=() if passed is None else gates,
            unmeasured=unmeasured,
            not_measured=("speed: with pocketvlm bench", "taste"),
            machine=Machine("Some CPU", 4, 8 << 30, 32 << 20, "Linux", {"onnxruntime": "1.31.1"}),
            seconds=1.0,
        )
        write_report(report, folder)
        seal(
            folder,
            parent.model_copy(
                update={
                    "name": f"{parent.name}-{name}",
                    "components": components,
                    "gates": report.gates,
                    "unmeasured": unmeasured,
                }
            ),
        )
        return folder

    return write


def _tally(n: int, lost: int) -> PairedFlags:
    return PairedFlags(np.arange(n) > 0, np.arange(n) > lost)
