"""The binding's few calls: what is handed over and told back by a fake library; and the real one where it is there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from ctypes import POINTER, Structure, c_float, c_int, cast
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from bundle.directory import open_bundle
from bundle.errors import CheckpointError, ContextLengthError, MachineError, SettingsError
from export.decoders.table import load_decoder
from export.exporter import export_checkpoint
from loadtests import llama_binding
from loadtests.contestants import Station
from loadtests.llama_binding import NativeLlama
from loadtests.llama_stations import GgufBench
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import VisionLanguageRunner

VOCAB = 4


class QuantizeParams(Structure):
    _fields_ = (("ftype", c_int), ("nthread", c_int))


class FakeLibrary(SimpleNamespace):
    """The functions of llama.h that are called, of a model whose logits are its tokens' places."""

    LLAMA_FTYPE_MOSTLY_Q4_0 = 2
    LLAMA_FTYPE_MOSTLY_Q8_0 = 7
    __version__ = "0.0.1"

    def __init__(self) -> None:
        super().__init__()
        self.forgotten: list[tuple[int, int]] = []
        self.decoded: list[list[tuple[int, int, bool]]] = []
        self.freed: list[str] = []
        self.quantized: list[tuple[bytes, bytes, int, int]] = []
        self.model: object | None = "model"
        self.context: object | None = "context"
        self.code = 0
        self.params = SimpleNamespace()
        self._last = 0

    def llama_log_callback(self, function: Any) -> Any:
        return function

    def llama_log_set(self, function: Any, _: object) -> None:
        self.log = function

    def llama_print_system_info(self) -> bytes:
        return b"CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 0 | REPACK = 1 | "

    def llama_model_quantize_default_params(self) -> Any:
        from ctypes import Structure, c_int

        class Params(Structure):
            _fields_ = [("ftype", c_int), ("nthread", c_int)]

        return Params()

    def llama_model_quantize(self, source: bytes, output: bytes, params: Any) -> int:
        self.quantized.append((source, output, params._obj.ftype, params._obj.nthread))
        if self.code:
            self.log(4, b"no room\n", None)
        return self.code

    def llama_model_default_params(self) -> object:
        return object()

    def llama_model_load_from_file(self, file: bytes, _: object) -> object | None:
        self.log(2, b"loading\n", None)
        if self.model is None:
            self.log(4, b"unknown magic\n", None)
        return self.model

    def llama_context_default_params(self) -> SimpleNamespace:
        return self.params

    def llama_init_from_model(self, _model: object, _params: object) -> object | None:
        return self.context

    def llama_get_memory(self, _: object) -> str:
        return "memory"

    def llama_model_get_vocab(self, _: object) -> str:
        return "vocab"

    def llama_vocab_n_tokens(self, _: object) -> int:
        return VOCAB

    def llama_batch_init(self, size: int, *_: int) -> SimpleNamespace:
        return SimpleNamespace(
            n_tokens=0, token=[0] * size, pos=[0] * size, n_seq_id=[0] * size, seq_id=[[9]] * size, logits=[9] * size
        )

    def llama_memory_seq_rm(self, _: object, sequence: int, start: int, end: int) -> bool:
        assert (sequence, end) == (0, -1)
        self.forgotten.append((start, end))
        return True

    def llama_decode(self, _: object, batch: SimpleNamespace) -> int:
        rows = range(batch.n_tokens)
        assert all(batch.n_seq_id[row] == 1 and batch.seq_id[row][0] == 0 for row in rows)
        self.decoded.append([(batch.token[row], batch.pos[row], bool(batch.logits[row])) for row in rows])
        self._last = batch.pos[batch.n_tokens - 1]
        return self.code

    def llama_get_logits_ith(self, _: object, at: int) -> Any:
        assert at == -1
        self._logits = (c_float * VOCAB)(*(self._last + token for token in range(VOCAB)))
        return cast(self._logits, POINTER(c_float))

    def llama_batch_free(self, _: object) -> None:
        self.freed.append("batch")

    def llama_free(self, _: object) -> None:
        self.freed.append("context")

    def llama_model_free(self, _: object) -> None:
        self.freed.append("model")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    fake = FakeLibrary()
    monkeypatch.setitem(sys.modules, "llama_cpp", fake)
    return fake


def test_the_version_tells_what_the_library_was_built_for(library: FakeLibrary) -> None:
    assert NativeLlama().version == "llama-cpp-python 0.0.1, SSE3 AVX2 REPACK"


def test_a_kind_is_handed_over_as_its_number(library: FakeLibrary, tmp_path: Path) -> None:
    NativeLlama().quantize(tmp_path / "a", tmp_path / "b", "Q8_0", 3)
    assert library.quantized == [(bytes(tmp_path / "a"), bytes(tmp_path / "b"), 7, 3)]


def test_an_unknown_kind_is_refused_with_the_known_ones(library: FakeLibrary, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no type 'Q9_9'; it has Q4_0, Q8_0"):
        NativeLlama().quantize(tmp_path / "a", tmp_path / "b", "Q9_9", 1)
    assert library.quantized == []


def test_what_the_library_complains_of_is_told(library: FakeLibrary, tmp_path: Path) -> None:
    library.code, library.model = 1, None
    with pytest.raises(CheckpointError, match="as Q4_0: no room"):
        NativeLlama().quantize(tmp_path / "a", tmp_path / "b", "Q4_0", 1)
    with pytest.raises(CheckpointError, match=r"cannot open .*a\.gguf: unknown magic"):
        NativeLlama().open(tmp_path / "a.gguf", 64, 1)


def test_tokens_run_behind_those_that_are_kept_and_the_last_ones_logits_come_back(
    library: FakeLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_binding, "_MOST_IN_A_RUN", 2)
    with closing(NativeLlama().open(tmp_path / "a.gguf", 64, 3)) as session:
        assert session.vocab_size == VOCAB
        np.testing.assert_array_equal(session.run([5, 6, 7], 0), [2, 3, 4, 5])
        np.testing.assert_array_equal(session.run([8], 2), [2, 3, 4, 5])
    assert library.forgotten == [(0, -1), (2, -1)]
    # two at a time, and logits of the last one of each
    assert library.decoded == [[(5, 0, False), (6, 1, True)], [(7, 2, True)], [(8, 2, True)]]
    assert (library.params.n_ctx, library.params.n_threads, library.params.n_threads_batch) == (64, 3, 3)
    assert library.freed == ["batch", "context", "model"]


def test_what_does_not_fit_or_fails_is_told(library: FakeLibrary, tmp_path: Path) -> None:
    session = NativeLlama().open(tmp_path / "a.gguf", 4, 1)
    with pytest.raises(ContextLengthError, match=r"5 tokens do not fit llama\.cpp's context of 4"):
        session.run([1, 2, 3], 2)
    library.code = 2
    with pytest.raises(MachineError, match="failed to run 1 tokens behind 2: it returned 2"):
        session.run([1], 2)
    library.context = None
    with pytest.raises(MachineError, match="no memory for a context of 4"):
        NativeLlama().open(tmp_path / "a.gguf", 4, 1)


def real_llama() -> NativeLlama:
    pytest.importorskip("llama_cpp", reason="the extra peers is not installed: it is built from source, for minutes")
    return NativeLlama()


@pytest.fixture(scope="module")
def wide(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose rows fill blocks of 32."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    checkpoints.save_smolvlm(folder, checkpoints.smolvlm_config(sizes))
    return folder


@pytest.fixture(scope="module")
def decoder_gguf(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its decoder as llama.cpp takes it, without a vocabulary."""
    sizes = load_decoder(json.loads((wide / "config.json").read_text())["text_config"]).config
    path = tmp_path_factory.mktemp("gguf") / "F32.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(sizes.max_positions)
    writer.add_block_count(sizes.num_layers)
    writer.add_embedding_length(sizes.hidden_size)
    writer.add_feed_forward_length(sizes.intermediate_size)
    writer.add_head_count(sizes.num_heads)
    writer.add_head_count_kv(sizes.num_kv_heads)
    writer.add_layer_norm_rms_eps(sizes.rms_norm_eps)
    writer.add_rope_freq_base(sizes.rope.theta)
    writer.add_vocab_size(sizes.vocab_size)
    writer.add_tokenizer_model("none")
    for name, value in renamed(wide, sizes.num_heads, sizes.num_kv_heads):
        writer.add_tensor(name, np.ascontiguousarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def renamed(checkpoint: Path, heads: int, kv_heads: int) -> Iterator[tuple[str, np.ndarray]]:
    """The decoder's weights under llama.cpp's names, rows of queries and keys in pairs of neighbours."""
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, value in load_file(checkpoint / "model.safetensors").items():
        own = name.removeprefix("model.text_model.").removesuffix(".weight")
        if own.startswith("layers."):
            _, layer, what = own.split(".", 2)
            if what.endswith(("q_proj", "k_proj")):
                pairs = value.reshape(heads if what.endswith("q_proj") else kv_heads, 2, -1, value.shape[1])
                value = pairs.swapaxes(1, 2).reshape(value.shape)
            yield f"blk.{layer}.{names[what]}.weight", value
        elif own in ("embed_tokens", "norm", "lm_head") and name != own:
            yield {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[own] + ".weight", value


def test_the_real_library_computes_what_the_bundle_does(wide: Path, decoder_gguf: Path, tmp_path: Path) -> None:
    """Prompt, step, several behind it, again from the middle. A float16 cache costs 2e-3 of the logits' length; rows
    in another order would cost all of it."""
    llama = real_llama()
    export_checkpoint(wide, tmp_path / "bundle")
    runner = VisionLanguageRunner(open_bundle(tmp_path / "bundle"))
    ids = np.random.default_rng(3).integers(0, 250, 12).tolist()
    with closing(llama.open(decoder_gguf, 64, 1)) as session:
        found = [session.run(ids[start:end], start) for start, end in ((0, 9), (9, 10), (10, 12), (5, 7))]
    for logits, length in zip(found, (9, 10, 12, 7), strict=True):
        expected = runner.prefill(FilledPrompt.of_ids(np.array(ids[:length], np.int64)), 0).logits
        assert np.linalg.norm(logits - expected) < 0.01 * np.linalg.norm(expected)


def test_the_real_library_quantizes_and_runs_the_stations(decoder_gguf: Path, tmp_path: Path) -> None:
    llama = real_llama()
    llama.quantize(decoder_gguf, tmp_path / "Q8_0.gguf", "Q8_0", 1)
    kinds = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(tmp_path / "Q8_0.gguf").tensors}
    assert kinds["blk.0.ffn_up.weight"] == gguf.GGMLQuantizationType.Q8_0
    stations = (Station("prefill", 16), Station("decode", 1, 8))
    bench = GgufBench(tmp_path / "Q8_0.gguf", stations, threads=1, steps=2).open()
    assert bench.variant.name == "Q8_0"
    assert all(bench.run(station).wall_ms > 0 for station in stations)


def test_the_real_library_says_why_it_refuses_a_file(tmp_path: Path) -> None:
    llama = real_llama()
    (tmp_path / "a.gguf").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=r"cannot open .*a\.gguf: (?!it does not say why)"):
        llama.open(tmp_path / "a.gguf", 64, 1)
