import resource
from pathlib import Path

import numpy as np
import pytest

from bundle.errors import BundleFileError, MachineError, SignatureError
from bundle.manifest import Component, TensorSpec
from runtime import session as session_module
from runtime.cache_shape import CacheShape, cache_shape
from runtime.session import BoundDecoder, Session, bind_decoder
from runtime.settings import EngineSettings

RNG = np.random.default_rng(7)


def feeds(dims, lengths: list[int], num_tokens: int) -> dict[str, np.ndarray]:
    past = np.array(lengths, np.int64)
    return {
        "inputs_embeds": RNG.normal(size=(len(past), num_tokens, dims.hidden_size)).astype(np.float32),
        "position_ids": past[:, None] + np.arange(num_tokens),
        "past_lengths": past,
        "logits_indices": np.full((len(past), 1), num_tokens - 1, np.int64),
    }


class CopyingDecoder:
    """The same steps through plain runs: the cache goes in and comes back as new arrays."""

    def __init__(self, model, settings: EngineSettings, prompts: Component | None = None) -> None:
        self._steps = Session(model.directory, model.decoder, settings)
        self._prompts = Session(model.directory, prompts or model.decoder, settings)
        shape = cache_shape(model.dims, settings)
        whole = (shape.num_slots, model.dims.num_kv_heads, shape.capacity_tokens, model.dims.head_size)
        layers = range(model.dims.num_layers)
        self.cache = {f"{i}.{side}": np.zeros(whole, np.float32) for i in layers for side in ("key", "value")}

    def step(self, start: int, inputs: dict[str, np.ndarray]) -> np.ndarray:
        rows = slice(start, start + len(inputs["past_lengths"]))
        past = {f"past_key_values.{name}": array[rows] for name, array in self.cache.items()}
        session = self._prompts if inputs["inputs_embeds"].shape[1] > 1 else self._steps
        outputs = session.run({**inputs, **past})
        for name, array in self.cache.items():
            array[rows] = outputs[f"present.{name}"]
        return outputs["logits"]


@pytest.fixture
def decoder(tiny_model, settings) -> BoundDecoder:
    session = Session(tiny_model.directory, tiny_model.decoder, settings)
    return BoundDecoder(session, tiny_model.dims, cache_shape(tiny_model.dims, settings))


@pytest.fixture(scope="module")
def prompts(tiny_model) -> Component:
    """A decoder of the same sizes and other weights, so that which of the two ran can be told."""
    path = tiny_model.directory / "decoder_prefill.onnx"
    return tiny_model.write_decoder(path, tiny_model.dims, np.random.default_rng(1))


@pytest.mark.parametrize("has_prompt_graph", [False, True])
def test_bound_steps_equal_copying_runs_bit_for_bit_in_logits_and_cache(
    tiny_model, settings, prompts, has_prompt_graph
) -> None:
    sessions = {"decoder": Session(tiny_model.directory, tiny_model.decoder, settings)}
    if has_prompt_graph:
        sessions["decoder_prefill"] = Session(tiny_model.directory, prompts, settings)
    decoder = bind_decoder(sessions, tiny_model.dims, cache_shape(tiny_model.dims, settings))
    copying = CopyingDecoder(tiny_model, settings, prompts if has_prompt_graph else None)
    steps = [
        (1, [0], 9),
        (1, [9], 4),
        (2, [0], 3),
        (1, [13, 3], 1),
        (0, [0, 14, 4, 0], 1),
        (3, [0], 5),
        (1, [15, 5, 5], 1),
    ]
    for start, lengths, num_tokens in steps:
        inputs = feeds(tiny_model.dims, lengths, num_tokens)
        np.testing.assert_array_equal(decoder.step(start, inputs), copying.step(start, inputs))
    for layer in range(tiny_model.dims.num_layers):
        for side in ("key", "value"):
            for slot in range(4):
                np.testing.assert_array_equal(decoder.rows(layer, side, slot), copying.cache[f"{layer}.{side}"][slot])


def test_two_graphs_that_take_different_tensors_cannot_share_a_cache(tiny_model, settings, prompts) -> None:
    renamed = tuple(reversed(prompts.inputs))
    steps = Session(tiny_model.directory, tiny_model.decoder, settings)
    other = Session(tiny_model.directory, prompts.model_copy(update={"inputs": renamed}), settings)
    with pytest.raises(SignatureError, match=r"decoder_prefill\.onnx does not take and give what decoder\.onnx does"):
        BoundDecoder(steps, tiny_model.dims, cache_shape(tiny_model.dims, settings), other)


def test_a_step_touches_only_the_new_rows_of_its_own_slots(tiny_model, decoder) -> None:
    for slot in range(4):
        decoder.step(slot, feeds(tiny_model.dims, [0], 6))
    before = [decoder.rows(0, "key", slot) for slot in range(4)]
    decoder.step(1, feeds(tiny_model.dims, [6, 3], 1))
    after = [decoder.rows(0, "key", slot) for slot in range(4)]
    changed = [(slot, row) for slot in range(4) for row in range(48) if (before[slot] != after[slot])[:, row].any()]
    assert changed == [(1, 6), (2, 3)]


def test_logits_of_a_step_are_not_overwritten_by_the_next(tiny_model, decoder) -> None:
    first = decoder.step(0, feeds(tiny_model.dims, [0], 4))
    kept = first.copy()
    decoder.step(0, feeds(tiny_model.dims, [4], 1))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"name": "pixel_values"}, "inputs are"),
        ({"dtype": "int32"}, "input_ids is int64"),
        ({"shape": ("B",)}, r"input_ids is int64 \['B', 'T'\]"),
        ({"shape": ("B", 7)}, r"the manifest says int64 \['B', 7\]"),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says_is_refused(tiny_model, settings, change, found) -> None:
    spec = TensorSpec.model_validate({**tiny_model.embed_tokens.inputs[0].model_dump(), **change})
    component = tiny_model.embed_tokens.model_copy(update={"inputs": (spec,)})
    with pytest.raises(SignatureError, match=found):
        Session(tiny_model.directory, component, settings)


def test_a_file_that_is_not_a_graph_is_refused_by_name(tiny_model, settings, tmp_path: Path) -> None:
    (tmp_path / "embed_tokens.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleFileError, match=r"embed_tokens\.onnx"):
        Session(tmp_path, tiny_model.embed_tokens, settings)


def test_a_provider_that_this_runtime_lacks_is_a_clear_error(tiny_model) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    with pytest.raises(MachineError, match="has no CUDAExecutionProvider"):
        Session(tiny_model.directory, tiny_model.embed_tokens, EngineSettings(provider="cuda"))


def test_a_missing_runtime_names_the_package_to_install(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MachineError, match=r"pip install -e '\.\[cpu\]'"):
        session_module._runtime()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from Linux's /proc")
def test_cache_memory_becomes_resident_as_tokens_are_written_and_not_before(tiny_model, settings) -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    rows = 65_536  # 2 MiB per head: with huge pages, the first token of a slot would make all of it resident
    dims = tiny_model.dims.model_copy(update={"max_positions": rows})
    shape = cache_shape(dims, settings.model_copy(update={"context_tokens": rows}))
    session = Session(tiny_model.directory, tiny_model.decoder, settings)
    before = resident_bytes()
    large = BoundDecoder(session, dims, shape)
    large.step(0, feeds(dims, [0, 0, 0, 0], 1))
    assert shape.total_bytes == 64 << 20
    assert resident_bytes() - before < 8 << 20


@pytest.mark.parametrize("capacity_tokens", [2**40, 2**60])
def test_a_cache_that_the_machine_cannot_hold_is_told_by_its_size(tiny_model, settings, capacity_tokens) -> None:
    session = Session(tiny_model.directory, tiny_model.decoder, settings)
    shape = CacheShape(4, capacity_tokens, tiny_model.dims.kv_bytes_per_token)
    with pytest.raises(MachineError, match=rf"4 slots x {capacity_tokens} tokens .* Lower max_sequences"):
        BoundDecoder(session, tiny_model.dims, shape)
