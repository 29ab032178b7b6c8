"""Checkpoints in PyTorch's own format: every number is read, and nothing is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tracemalloc
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file

from bundle.errors import CheckpointError
from export import checkpoint
from export.adapter import Adapter
from export.checkpoint import Checkpoint, StoredTensor, read_weights
from export.exporter import export_checkpoint, located

WEIGHTS = {"a.weight": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "a.bias": [0.5, -0.5]}


def saved(value: Any, file: Path, **options: Any) -> Path:
    import torch

    torch.save(value, file, **options)
    return file


def plain() -> dict[str, Any]:
    import torch

    return {name: torch.tensor(numbers) for name, numbers in WEIGHTS.items()}


def rewritten(file: Path, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive again with other members."""
    target = file.with_name("changed.bin")
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(target, "w", compression) as written:
        for name in source.namelist():
            content = change(name, source.read(name))
            if content is not None:
                written.writestr(name, content)
    return target


def with_pickle(file: Path, content: bytes) -> Path:
    return rewritten(file, lambda name, old: content if name.endswith("/data.pkl") else old)


def bits(tensor: Any) -> tuple[tuple[int, ...], bytes]:
    import torch

    return tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stored_bits(tensor: StoredTensor) -> tuple[tuple[int, ...], bytes]:
    return tensor.shape, np.ascontiguousarray(tensor.mapped()).tobytes()


DTYPES = ["float16", "bfloat16", "float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_format_is_read_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    import torch

    numbers = torch.randint(0, 2 if dtype == "bool" else 100, (5, 7, 3)).to(getattr(torch, dtype))
    state = {
        "whole": numbers,
        "transposed": numbers.T if numbers.ndim == 2 else numbers.permute(2, 0, 1),
        "sliced": numbers[1:4, ::2, 1],
        "row": numbers[2],
        "repeated": numbers[0, 0, 0].expand(4, 6),
        "scalar": numbers[1, 1, 1],
        "empty": numbers[:0],
        "one": numbers[:1, :, :1],
        "parameter": torch.nn.Parameter(numbers[3].clone(), requires_grad=False),
    }
    found = read_weights(saved(state, tmp_path / "x.bin"))
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert stored_bits(found[name]) == bits(tensor), name
    assert found["whole"].offset == found["transposed"].offset  # one storage
    if dtype in ("float16", "bfloat16", "float32", "float64"):
        for name, tensor in state.items():
            assert_array_equal(found[name].read(), tensor.float().numpy())


def test_views_are_gathered_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    numbers = torch.arange(60.0).reshape(10, 6)
    found = read_weights(saved({"t": numbers.T, "s": numbers[::3, 1:4], "v": numbers[:, 2]}, tmp_path / "x.bin"))
    monkeypatch.setattr(checkpoint, "_PIECE_NUMBERS", 7)
    for name, expected in (("t", numbers.T), ("s", numbers[::3, 1:4]), ("v", numbers[:, 2])):
        pieces = list(found[name].pieces())
        assert len(pieces) > 1
        assert all(piece.flags.c_contiguous for piece in pieces)
        assert_array_equal(np.concatenate(pieces), expected.reshape(-1).numpy())


@pytest.mark.parametrize("protocol", [2, 4])
def test_state_of_a_module_is_read_whatever_stands_around_it(protocol: int, tmp_path: Path) -> None:
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    around = {
        "state_dict": module.state_dict(),  # an OrderedDict with _metadata
        "optimizer": {
            "state": {0: {"step": 1, "exp_avg": torch.ones(2, 3)}},
            "param_groups": [{"lr": 0.1}],
        },  # tensors under numbers, which are nobody's names
        "epoch": 3,
        "args": Namespace(lr=0.1, sizes=torch.Size([2, 3])),
        "seen": {1, 2},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = saved(around, tmp_path / "x.pt", pickle_protocol=protocol)
    found = read_weights(file)
    assert {name: stored_bits(tensor) for name, tensor in found.items()} == {
        name: bits(tensor) for name, tensor in module.state_dict().items()
    }


def test_two_state_dicts_in_one_file_are_refused(tmp_path: Path) -> None:
    import torch

    file = saved({"model": plain(), "ema": plain()}, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=r"tensors are under \['model'\], \['ema'\]; one dictionary is read"):
        read_weights(file)
    with pytest.raises(CheckpointError, match="under no dictionary of names"):
        read_weights(saved([torch.ones(2)], tmp_path / "list.bin"))


class Runs:
    """What leaves a file behind where it is unpickled."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._call = call, arguments

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_pickle_is_named_and_never_run(protocol: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    file = saved(plain(), tmp_path / "x.bin")
    for call, name in ((os.mkdir, r"(posix|nt)\.mkdir"), (eval, r"(__builtin__|builtins)\.eval")):
        argument = str(trace) if call is os.mkdir else f"__import__('os').mkdir({str(trace)!r})"
        content = pickle.dumps({"w": Runs(call, argument)}, protocol=protocol)
        with pytest.raises(CheckpointError, match=rf"holds code: {name}; it is not read, and nothing of it was run"):
            read_weights(with_pickle(file, content))
        assert not trace.exists()
        pickle.loads(content)
        assert trace.exists()  # it is a trap
        trace.rmdir()


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    import torch

    with pytest.raises(CheckpointError, match=r"holds code: torch\.nn\.modules\.linear\.Linear"):
        read_weights(saved(torch.nn.Linear(2, 2), tmp_path / "x.bin"))


def test_formats_that_are_not_read_are_told(tmp_path: Path) -> None:
    import torch

    file = saved(plain(), tmp_path / "x.bin")
    legacy = saved(plain(), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    script = tmp_path / "script.pt"
    with zipfile.ZipFile(script, "w") as written:
        written.writestr("m/data.pkl", b"N.")
        written.writestr("m/constants.pkl", b"N.")
    other = rewritten(file, lambda name, old: b"big" if name.endswith("byteorder") else old).rename(tmp_path / "big")
    cut = tmp_path / "cut.bin"
    cut.write_bytes(file.read_bytes()[:-100])
    complex_file = saved({"w": torch.ones(2, dtype=torch.complex64)}, tmp_path / "complex.bin")
    lacks = rewritten(file, lambda name, old: None if name.endswith("/data/1") else old).rename(tmp_path / "lacks")
    short = rewritten(file, lambda name, old: old[:4] if name.endswith("/data/1") else old).rename(tmp_path / "short")
    for bad, told in (
        (legacy, "format before 1.6, which is not read. Write it again"),
        (script, "program of TorchScript"),
        (other, "not little-endian"),
        (cut, "not a file of torch.save, or was cut short"),
        (complex_file, "stores numbers as torch.ComplexFloatStorage"),
        (lacks, "lacks its member data/1"),
        (short, "has 4 bytes; 2 numbers are said to be in it"),
        (
            rewritten(file, lambda _, old: old, zipfile.ZIP_DEFLATED).rename(tmp_path / "deflated"),
            "compressed or encrypted",
        ),
        (with_pickle(file, b"\x80\x02(i"), "damaged|opcode"),
    ):
        with pytest.raises(CheckpointError, match=told):
            read_weights(bad)


def stated(start: int, shape: tuple[int, ...], strides: tuple[int, ...], num: int = 6) -> bytes:
    """Return the pickle of one tensor of what numbers one likes."""
    import torch

    stream = io.BytesIO()

    class Storage:
        pass

    class Writer(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", num) if isinstance(value, Storage) else None

    tensor = Runs(torch._utils._rebuild_tensor_v2, Storage(), start, shape, strides, False, OrderedDict())
    Writer(stream, protocol=2).dump({"w": tensor})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ((0, (2, 4), (4, 1)), "leaves its storage of 6 numbers"),
        ((1, (2, 3), (3, 1)), "leaves its storage"),
        ((7, (0,), (1,)), "leaves its storage"),
        ((0, (2, 2), (1 << 61, 1)), "leaves its storage"),
        ((-1, (2,), (1,)), "no whole numbers from 0 on"),
        ((0, (2,), (-1,)), "no whole numbers from 0 on"),
        ((0, (1 << 70,), (1,)), "no whole numbers from 0 on"),
        ((0, (2, 3), (1,)), "2 sizes and 1 strides"),
        ((0, (1,) * 40, (1,) * 40), "at most 32 axes"),
        ((0, (1 << 40,), (0,)), "repeats 6 numbers"),
        ((0, (7,), (1,), 7), "has 24 bytes; 7 numbers"),
    ],
)
def test_tensors_that_leave_their_storage_are_refused(numbers: Any, told: str, tmp_path: Path) -> None:
    import torch

    file = saved({"w": torch.tensor(WEIGHTS["a.weight"])}, tmp_path / "x.bin")
    good = read_weights(with_pickle(file, stated(0, (3, 2), (1, 3))))
    assert_array_equal(good["w"].read(), np.array(WEIGHTS["a.weight"], np.float32).T)
    with pytest.raises(CheckpointError, match=told):
        read_weights(with_pickle(file, stated(*numbers)))


def test_small_files_take_neither_memory_nor_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is what Python's own unpickler would take gigabytes or minutes for, or what a careless reader would."""
    file = saved(plain(), tmp_path / "x.bin")
    name = b"X" + struct.pack("<I", 1_000_000) + b"n" * 1_000_000
    doubled = b"\x80\x02)" + b"2\x86" * 60  # DUP, TUPLE2
    nested = b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 60
    bombs = (
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo of two thousand million places
        b"\x80\x02X\xff\xff\xff\xff.",
        doubled + b".",
        b"\x80\x02}" + nested[2:] + b"Ns.",  # a key whose hash would take 2 ** 60 steps
        b"\x80\x02" + name + b"q\x000" + b"}(" + b"".join(b"K%ch\x00" % i for i in range(200)) + b"u.",
        b"\x80\x02" + b"(" * 20_000 + b".",
        b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b".",
        b"\x80\x02}q\x00(" + b"".join(b"U\x05%05dh\x00" % i for i in range(9_000)) + b"u.",  # itself in itself
        b"\x80\x02" + b"N" * 100_000 + b".",
        b"\x80\x02" + b"N" * (1 << 24) + b".",
    )
    monkeypatch.setattr("export.state_pickle._MAX_OPCODES", 30_000)  # tracemalloc makes a step ten times as long
    tracemalloc.start()
    for bomb in bombs:
        with pytest.raises(CheckpointError):
            read_weights(with_pickle(file, bomb))
    assert tracemalloc.get_traced_memory()[1] < 200_000_000
    tracemalloc.stop()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved({"state_dict": plain()}, tmp_path_factory.mktemp("good") / "x.bin")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_read_or_refused(data: st.DataObject, good: Path) -> None:
    """Nothing but a refusal comes of a damaged file, and what is read of it lies in it."""
    content = bytearray(good.read_bytes())
    with zipfile.ZipFile(good) as archive:
        begins = [info.header_offset for info in archive.infolist()] + [archive.start_dir]
    for _ in range(data.draw(st.integers(1, 4))):
        near = data.draw(st.sampled_from([*begins, len(content) - 22]))
        place = min(len(content) - 1, near + data.draw(st.integers(0, 400)))
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    target = good.with_name("flipped.bin")
    target.write_bytes(content)
    try:
        found = read_weights(target)
    except CheckpointError:
        return
    for tensor in found.values():
        assert tensor.mapped().shape == tensor.shape
        np.ascontiguousarray(tensor.mapped()).tobytes()


def as_bin(folder: Path, target: Path, shards: int) -> Path:
    """Return a copy of a checkpoint with its weights as PyTorch writes them."""
    import torch

    shutil.copytree(folder, target)
    weights = {name: torch.from_numpy(value) for name, value in load_file(folder / "model.safetensors").items()}
    (target / "model.safetensors").unlink()
    if shards == 1:
        saved(weights, target / "pytorch_model.bin")
        return target
    names, index = list(weights), {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        part = names[number::shards]
        saved(OrderedDict((name, weights[name]) for name in part), target / file)
        index |= dict.fromkeys(part, file)
    (target / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    return target


def graph_bytes(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.glob("*.onnx*")}


def test_llava_in_shards_of_pickles_gives_the_same_graphs(
    checkpoint_of: Callable[[str], Path], bundle_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = as_bin(checkpoint_of("llava-clip-llama"), tmp_path / "shards", 3)
    export_checkpoint(folder, tmp_path / "bundle")
    assert graph_bytes(tmp_path / "bundle") == graph_bytes(bundle_of("llava-clip-llama"))


def test_safetensors_go_first_and_one_authors_file_last(clip_checkpoint: Path, tmp_path: Path) -> None:
    folder = as_bin(clip_checkpoint, tmp_path / "bin", 1)
    assert [file.name for file in Checkpoint.open(folder).files] == ["pytorch_model.bin"]
    shutil.copy(clip_checkpoint / "model.safetensors", folder)
    assert [file.name for file in Checkpoint.open(folder).files] == ["model.safetensors"]
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").rename(folder / "clip_s0.pt")
    assert Checkpoint.open(folder).tensors.keys() == Checkpoint.open(clip_checkpoint).tensors.keys()
    shutil.copy(folder / "clip_s0.pt", folder / "clip_s1.pt")
    with pytest.raises(CheckpointError, match=r"one file \*\.pt is read, and here are 2"):
        Checkpoint.open(folder)


def test_open_clips_file_and_an_adapters_are_read(tmp_path: Path) -> None:
    import torch

    source = Path(__file__).parents[1] / "data" / "open_clip" / "vit"
    folder = shutil.copytree(source, tmp_path / "open_clip")
    weights = load_file(folder / "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    saved({name: torch.from_numpy(value) for name, value in weights.items()}, folder / "open_clip_pytorch_model.bin")
    found = Checkpoint.open(folder)
    assert found.config["model_type"] == "open_clip"
    for name, value in weights.items():
        assert_array_equal(found.tensors[name].read(), value)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    saved({"base_model.model.w.lora_A.weight": torch.ones(2, 3)}, adapter / "adapter_model.bin")
    opened = Adapter.open(adapter)
    assert opened.file.name == "adapter_model.bin"
    assert_array_equal(opened.tensors["base_model.model.w.lora_A.weight"].read(), np.ones((2, 3)))


def test_the_tower_of_a_folder_may_be_a_pickle(clip_checkpoint: Path, tmp_path: Path) -> None:
    source = shutil.copytree(clip_checkpoint, tmp_path / "source")
    (source / "preprocessor_config.json").write_text("{}")
    tower = as_bin(source, tmp_path / "tower", 1)
    owner = Checkpoint(tmp_path, {"mm_vision_tower": "openai/some-clip"}, {}, ())
    whole = owner.with_tower(source).tensors
    for name, tensor in owner.with_tower(tower).tensors.items():
        assert_array_equal(tensor.read(), whole[name].read())


@pytest.mark.parametrize(
    ("held", "asked_more"),
    [
        (["model.safetensors", "pytorch_model.bin"], []),
        (["pytorch_model.bin", "optimizer.pt"], ["pytorch_model.bin"]),
        (["mobileclip_s0.pt"], ["pytorch_model.bin", "*.pt"]),
    ],
)
def test_pickles_of_the_hub_are_fetched_only_where_no_safetensors_are(
    held: list[str], asked_more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetch(name: str, *, allow_patterns: list[str], ignore_patterns: str) -> str:
        asked.append(allow_patterns[0])
        for file in held:
            if any(Path(file).match(pattern) for pattern in allow_patterns):
                (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr("export.exporter.snapshot_download", fetch)
    assert located("some/clip", lambda line: None)[0] == tmp_path
    assert asked[1:] == asked_more
