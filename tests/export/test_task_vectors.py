"""A decoder whose heads can be read and replaced, against transformers' with hooks before its output projections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from bundle.directory import open_bundle
from bundle.errors import QuantizationError, UnsupportedConfigError
from export.exporter import export_checkpoint
from quant.planning.draft import Options
from quant.quantizer import quantize_bundle
from runtime.cache_shape import cache_shape
from runtime.decoder import Decoder, TokenGraphs
from runtime.feeds import HeadValues, TokenRun
from runtime.settings import RuntimeSettings
from runtime.task_vector import HeadShape

ONE_THREAD = RuntimeSettings(intra_threads=1)
# float32 sums in another order, on logits whose largest are above 10; an error in a graph makes 1e-1 and more
LOGIT_TOLERANCE = 1e-3
IDS = np.random.default_rng(3).integers(0, 250, 11)
FIRST = 8
"""The first token whose heads are replaced."""


def decoder_of(bundle: Path) -> Decoder:
    opened = open_bundle(bundle, allow_ungated=True)
    return Decoder(TokenGraphs(opened, ONE_THREAD), cache_shape(opened.manifest, 2, 16))


def run_of(heads: HeadValues | None = None, *, start: int = 0, end: int = len(IDS)) -> TokenRun:
    places, wanted = np.arange(start, end), range(end - start)
    return TokenRun(IDS[start:end], places, [start], wanted, heads=heads, first_replaced=max(FIRST - start, 0))


def drawn_heads(shape: HeadShape) -> HeadValues:
    rng = np.random.default_rng(5)
    values = rng.standard_normal((shape.num_layers, shape.width)).astype(np.float32)
    return HeadValues(values, rng.random(shape.num_layers * shape.num_heads) < 0.3)


class Hooked:
    """transformers' model; what its output projections read is kept, and replaced where heads are given."""

    def __init__(self, model: Any, shape: HeadShape) -> None:
        self.seen: dict[int, np.ndarray] = {}
        self._model, self._shape, self._heads = model, shape, None
        for name, module in model.named_modules():
            if name.endswith("self_attn.o_proj") and "vision" not in name:
                module.register_forward_pre_hook(self._hook(len(self.seen)))
                self.seen[len(self.seen)] = np.zeros(0)

    def _hook(self, layer: int) -> Any:
        def replace(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            import torch

            (row,) = inputs
            self.seen[layer] = row.detach().numpy().copy()
            if self._heads is None:
                return inputs
            num_heads = self._shape.num_heads
            heads = row.clone().view(*row.shape[:-1], num_heads, -1)
            for head in range(num_heads):
                if self._heads.mask[layer * num_heads + head]:
                    size = heads.shape[-1]
                    value = self._heads.values[layer, head * size : (head + 1) * size]
                    heads[:, FIRST:, head] = torch.from_numpy(value)
            return (heads.view(row.shape),)

        return replace

    def logits(self, heads: HeadValues | None) -> np.ndarray:
        import torch

        self._heads = heads
        with torch.no_grad():
            return self._model(input_ids=torch.from_numpy(IDS[None])).logits[0].numpy()


@pytest.fixture(scope="module")
def opened(checkpoint_of, tmp_path_factory):
    made: dict[tuple[str, str], Path] = {}

    def bundle(family: str, dialect: str) -> Path:
        if (family, dialect) not in made:
            made[family, dialect] = folder = tmp_path_factory.mktemp("opened") / "bundle"
            export_checkpoint(checkpoint_of(family), folder, dialect=dialect, task_vectors=True)
        return made[family, dialect]

    return bundle


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
@pytest.mark.parametrize("family", ["smolvlm", "llava-siglip-qwen2"])
def test_heads_are_read_and_replaced_as_hooks_do(opened, checkpoint_of, load_reference, family, dialect) -> None:
    bundle = opened(family, dialect)
    shape = HeadShape.of(open_bundle(bundle).manifest)
    hooked, decoder, heads = Hooked(load_reference(checkpoint_of(family)), shape), decoder_of(bundle), None
    for heads in (None, drawn_heads(shape)):
        expected = hooked.logits(heads)
        logits, found = decoder.run_with(shape.outputs, "prompt", 0, [run_of(heads)])
        assert_allclose(logits[0], expected, atol=LOGIT_TOLERANCE)
        if heads is None:
            given = [found[name][0, 0] for name in shape.outputs]
            assert_allclose(given, [hooked.seen[layer][0, -1] for layer in range(shape.num_layers)], atol=1e-4)
    assert np.abs(expected - hooked.logits(None)).max() > 100 * LOGIT_TOLERANCE


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
def test_where_nothing_is_replaced_every_logit_is_the_same_bit_for_bit(opened, bundle_of, dialect) -> None:
    found = decoder_of(opened("smolvlm", dialect)).run("prompt", 0, [run_of()])
    assert_array_equal(found, decoder_of(bundle_of("smolvlm", dialect)).run("prompt", 0, [run_of()]))


def test_only_the_sequence_that_wants_it_has_heads_replaced(opened) -> None:
    bundle = opened("smolvlm", "portable")
    heads, decoder = drawn_heads(HeadShape.of(open_bundle(bundle).manifest)), decoder_of(bundle)
    alone = [decoder.run("prompt", 0, [run_of(each)])[0].copy() for each in (None, heads)]
    both = decoder.run("prompt", 0, [run_of(None), run_of(heads)])
    assert_allclose(both, alone, atol=LOGIT_TOLERANCE)
    assert not np.allclose(alone[0][FIRST:], alone[1][FIRST:], atol=0.1)
    assert_array_equal(alone[0][:FIRST], alone[1][:FIRST])


def test_a_quantized_variant_replaces_them_too(opened, tmp_path: Path) -> None:
    bundle = opened("smolvlm", "contrib")
    quantize_bundle(bundle, tmp_path / "variant", weights="int8-rtn", options=Options(profile="dual"))
    heads = drawn_heads(HeadShape.of(open_bundle(bundle).manifest))
    expected = decoder_of(bundle).run("prompt", 0, [run_of(heads)])[0]
    variant = decoder_of(tmp_path / "variant")
    variant.run("prompt", 0, [run_of(heads, end=FIRST)])
    steps = [run_of(heads, start=at, end=at + 1) for at in range(FIRST, len(IDS))]
    found = np.array([variant.run("step", 0, [step])[0, 0].copy() for step in steps])
    cosine = (found * expected[FIRST:]).sum() / np.linalg.norm(found) / np.linalg.norm(expected[FIRST:])
    assert cosine > 0.98


def test_what_cannot_be_is_refused_by_name(opened, checkpoint_of, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedConfigError, match="--task-vectors opens a decoder's heads"):
        export_checkpoint(checkpoint_of("clip"), tmp_path / "clip", task_vectors=True)
    with pytest.raises(QuantizationError, match="replaced on the CPU alone"):
        quantize_bundle(opened("smolvlm", "contrib"), tmp_path / "cuda", weights="fp16", options=Options(target="cuda"))
