"""Decoders from llama.cpp files: names, row order, block types, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from numpy.testing import assert_array_equal
from safetensors.numpy import load_file, save_file

from bundle.directory import read_manifest
from bundle.errors import CheckpointError, MissingWeightError, SurplusWeightError, UnsupportedConfigError
from export.exporter import export_checkpoint
from graphs.store import open_graph

WIDTH = 256  # ternary blocks hold 256 weights
TENSORS = {
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
FOUR_NORMS = {
    **TENSORS,
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
Weights = dict[str, np.ndarray]


def text_config(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "config.json").read_text())["text_config"]


def llama_cpp_names(
    checkpoint: Path, prefix: str, *, permutes: bool, tensors: dict[str, str] = TENSORS, norms_above: float = 0.0
) -> Weights:
    """A decoder's weights as llama.cpp's converter writes them."""
    text = text_config(checkpoint)
    state = load_file(checkpoint / "model.safetensors")
    found = {
        "token_embd.weight": state[f"{prefix}.embed_tokens.weight"],
        "output_norm.weight": state[f"{prefix}.norm.weight"],
    }
    for head in (name for name in state if name.endswith("lm_head.weight")):
        found["output.weight"] = state[head]
    for layer in range(text["num_hidden_layers"]):
        for theirs, name in tensors.items():
            for kind in ("weight", "bias"):
                value = state.get(f"{prefix}.layers.{layer}.{theirs}.{kind}")
                if value is not None:
                    heads = {"attn_q": text["num_attention_heads"], "attn_k": text["num_key_value_heads"]}.get(name)
                    found[f"blk.{layer}.{name}.{kind}"] = permuted(value, heads) if heads and permutes else value
    shifted = {name: value + np.float32(norms_above) for name, value in found.items() if name.endswith("norm.weight")}
    return {**found, **shifted}


def permuted(value: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp wants them: row i of the first half of a head beside row i of its second half."""
    size = len(value) // heads
    order = [
        head * size + half * size // 2 + row for head in range(heads) for row in range(size // 2) for half in (0, 1)
    ]
    return value[order]


def write_gguf(
    path: Path,
    weights: Weights,
    checkpoint: Path,
    architecture: str = "llama",
    kind: Kind = Kind.F32,
    tokens: Sequence[str] = (),
    base: float | None = None,
    epsilon: float | None = None,
    **sizes: int,
) -> None:
    """Write a GGUF file; matrices of the layers in `kind`, all else in float32."""
    text = text_config(checkpoint)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(sizes.get("layers", text["num_hidden_layers"]))
    writer.add_embedding_length(text["hidden_size"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(sizes.get("heads", text["num_attention_heads"]))
    writer.add_head_count_kv(text["num_key_value_heads"])
    if tokens:
        writer.add_token_list(list(tokens))
    if base is not None:
        writer.add_rope_freq_base(base)
    if epsilon is not None:
        writer.add_layer_norm_rms_eps(epsilon)
    for name, value in weights.items():
        if kind != Kind.F32 and value.ndim == 2 and name.startswith("blk."):
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def wide(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose rows fill ternary blocks."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 8}
    checkpoints.save_smolvlm(folder, checkpoints.smolvlm_config(sizes))
    return folder


@pytest.fixture(scope="module")
def weights(wide: Path) -> Weights:
    return llama_cpp_names(wide, "model.text_model", permutes=True)


def decoder_files(bundle: Path) -> list[bytes]:
    names = [f"{part}.onnx{tail}" for part in ("decoder", "embed_tokens") for tail in ("", ".data")]
    return [(bundle / name).read_bytes() for name in names]


def save_llava_gemma3(checkpoints: ModuleType, folder: Path) -> None:
    """A LLaVA with Gemma 3's decoder: four norms a layer, and norms of queries and keys."""
    from weight_shapes import decoder_shapes

    config = checkpoints.llava_config()
    text = config["text_config"] | {"model_type": "gemma3_text", "head_dim": 16, "mlp_bias": False}
    shapes = decoder_shapes(text, "")
    for layer in range(text["num_hidden_layers"]):
        shapes |= {f"layers.{layer}.self_attn.{name}_norm.weight": (16,) for name in "qk"}
        for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            shapes[f"layers.{layer}.{name}.weight"] = (text["hidden_size"],)
    checkpoints.save_llava(folder, {**config, "text_config": text}, shapes)


@pytest.mark.parametrize(
    ("architecture", "prefix"),
    [
        ("llama", "model.text_model"),
        ("llama", "language_model.model"),
        ("qwen2", "language_model.model"),
        ("gemma3", "language_model.model"),
    ],
)
def test_a_file_in_float32_gives_the_graphs_of_the_checkpoint(
    architecture: str, prefix: str, checkpoints: ModuleType, tmp_path: Path
) -> None:
    """Tied and untied, with biases and without, byte for byte; the checkpoint's own decoder is not read."""
    of_layer, above = TENSORS, 0.0
    if prefix == "model.text_model":
        checkpoints.save_smolvlm(tmp_path / "checkpoint")
    elif architecture == "gemma3":
        save_llava_gemma3(checkpoints, tmp_path / "checkpoint")
        of_layer, above = FOUR_NORMS, 1.0
    else:
        checkpoints.save_llava(tmp_path / "checkpoint", checkpoints.llava_config(text=architecture))
    weights = llama_cpp_names(
        tmp_path / "checkpoint", prefix, permutes=architecture == "llama", tensors=of_layer, norms_above=above
    )
    write_gguf(tmp_path / "d.gguf", weights, tmp_path / "checkpoint", architecture)
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "expected")
    stored = load_file(tmp_path / "checkpoint" / "model.safetensors")
    is_text = ("language_model.", "lm_head.", "model.text_model.", "model.language_model.")
    save_file(
        {k: v for k, v in stored.items() if not k.startswith(is_text)}, tmp_path / "checkpoint" / "model.safetensors"
    )
    export_checkpoint(tmp_path / "checkpoint", tmp_path / "bundle", decoder_gguf=tmp_path / "d.gguf")
    assert decoder_files(tmp_path / "bundle") == decoder_files(tmp_path / "expected")


@pytest.mark.parametrize(
    "kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.TQ1_0, Kind.TQ2_0], ids=lambda kind: kind.name
)
def test_blocks_are_restored_as_the_gguf_package_does(kind: Kind, wide: Path, weights: Weights, tmp_path: Path) -> None:
    write_gguf(tmp_path / "d.gguf", weights, wide, kind=kind)
    export_checkpoint(wide, tmp_path / "bundle", decoder_gguf=tmp_path / "d.gguf")
    initializers = open_graph(tmp_path / "bundle" / "decoder.onnx").graph.initializers
    stored = weights["blk.0.ffn_up.weight"]
    expected = gguf.quants.dequantize(gguf.quants.quantize(stored, kind), kind)
    found = initializers["model.text_model.layers.0.mlp.up_proj.weight"].const_value.numpy().T
    assert_array_equal(found, expected)


def tq2_0(codes: np.ndarray, scale: np.ndarray) -> bytes:
    """256 ternary weights in 66 bytes: weight 128 g + 32 l + m in bits 2l of byte 32 g + m, plus 1; then float16."""
    stored = bytearray(64)
    for place, code in enumerate(codes):
        half, lane, byte = place // 128, place % 128 // 32, place % 32
        stored[32 * half + byte] |= (int(code) + 1) << (2 * lane)
    return bytes(stored) + scale.tobytes()


def tq1_0(codes: np.ndarray, scale: np.ndarray) -> bytes:
    """256 ternary weights in 54 bytes: digits of base 3, five a byte and four in the last four, as 256ths."""
    stored = bytearray()
    for start, width, digits in ((0, 32, 5), (160, 16, 5), (240, 4, 4)):
        for byte in range(width):
            value = sum((int(codes[start + width * digit + byte]) + 1) * 3 ** (4 - digit) for digit in range(digits))
            stored.append(-(-value * 256 // 243))
    return bytes(stored) + scale.tobytes()


@pytest.mark.parametrize(("kind", "encode"), [(Kind.TQ1_0, tq1_0), (Kind.TQ2_0, tq2_0)], ids=["TQ1_0", "TQ2_0"])
def test_ternary_blocks_written_by_hand_are_exact(
    kind: Kind,
    encode: Callable[[np.ndarray, np.ndarray], bytes],
    wide: Path,
    weights: Weights,
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(-1, 2, (WIDTH, WIDTH))
    scales = rng.uniform(0.01, 0.1, WIDTH).astype(np.float16)
    rows = [np.frombuffer(encode(*row), np.uint8) for row in zip(codes, scales, strict=True)]
    plain = gguf.quants.quantize
    name = "blk.0.ffn_down.weight"
    encoded = np.stack(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.quants, "quantize", lambda value, k: encoded if value is weights[name] else plain(value, k))
        write_gguf(tmp_path / "d.gguf", weights, wide, kind=kind)
    export_checkpoint(wide, tmp_path / "bundle", decoder_gguf=tmp_path / "d.gguf")
    initializers = open_graph(tmp_path / "bundle" / "decoder.onnx").graph.initializers
    found = initializers["model.text_model.layers.0.mlp.down_proj.weight"].const_value.numpy().T
    assert_array_equal(found, codes * scales.astype(np.float32)[:, None])


def test_digest_follows_the_file(wide: Path, weights: Weights, tmp_path: Path) -> None:
    digests = set()
    for number, kind in enumerate((Kind.F32, Kind.Q8_0)):
        write_gguf(tmp_path / "d.gguf", weights, wide, kind=kind)
        export_checkpoint(wide, tmp_path / f"{number}", decoder_gguf=tmp_path / "d.gguf")
        digests.add(read_manifest(tmp_path / f"{number}").source_sha256)
    export_checkpoint(wide, tmp_path / "plain")
    assert len(digests | {read_manifest(tmp_path / "plain").source_sha256}) == 3


def refused(checkpoint: Path, file: Path, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        export_checkpoint(checkpoint, file.parent / "bundle", decoder_gguf=file)
    assert not (file.parent / "bundle").exists()


def test_missing_tensor_is_named(wide: Path, weights: Weights, tmp_path: Path) -> None:
    kept = {name: value for name, value in weights.items() if name != "blk.0.ffn_up.weight"}
    write_gguf(tmp_path / "d.gguf", kept, wide)
    refused(wide, tmp_path / "d.gguf", MissingWeightError, r"layers\.0\.mlp\.up_proj\.weight")


def test_tensor_that_no_graph_uses_is_named(wide: Path, weights: Weights, tmp_path: Path) -> None:
    more = {"blk.0.attn_sub_norm.weight": np.ones(WIDTH), "blk.1.ffn_up.weight": np.ones((WIDTH, WIDTH))}
    write_gguf(tmp_path / "d.gguf", weights | more, wide)
    refused(wide, tmp_path / "d.gguf", SurplusWeightError, r"2 weights .*blk\.0\.attn_sub_norm\.weight")


def test_tensor_of_another_shape_is_refused(wide: Path, weights: Weights, tmp_path: Path) -> None:
    write_gguf(tmp_path / "d.gguf", weights | {"blk.0.ffn_up.weight": np.ones((8, WIDTH))}, wide)
    refused(wide, tmp_path / "d.gguf", CheckpointError, r"up_proj\.weight is \[8, 256\] in the GGUF file")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"heads": 4}, "head_count 4, config.json 8"), ({"layers": 2}, "block_count 2, config.json 1")],
)
def test_decoder_of_other_sizes_is_refused(
    sizes: dict[str, int], message: str, wide: Path, weights: Weights, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "d.gguf", weights, wide, **sizes)
    refused(wide, tmp_path / "d.gguf", CheckpointError, message)


def test_another_vocabulary_is_the_file_s_and_not_the_checkpoint_s(
    wide: Path, weights: Weights, tmp_path: Path
) -> None:
    table = weights["token_embd.weight"]
    write_gguf(tmp_path / "d.gguf", weights | {"token_embd.weight": table[:-3]}, wide)
    rows = len(table)
    refused(
        wide, tmp_path / "d.gguf", CheckpointError, rf"d\.gguf holds a vocabulary of {rows - 3} .*vocab_size {rows}"
    )


def tokens_of(checkpoint: Path) -> list[str]:
    from transformers import AutoTokenizer

    vocabulary = AutoTokenizer.from_pretrained(checkpoint).get_vocab()
    return [text for text, _ in sorted(vocabulary.items(), key=lambda pair: pair[1])]


def test_a_file_of_another_tokenizer_of_the_same_size_is_refused_with_the_first_token(
    wide: Path, weights: Weights, tmp_path: Path
) -> None:
    own = tokens_of(wide)
    write_gguf(tmp_path / "d.gguf", weights, wide, tokens=[own[0], *own[:0:-1]])
    refused(wide, tmp_path / "d.gguf", CheckpointError, rf"token 1 is {re.escape(repr(own[-1]))} there and .* in")


def test_tokens_that_a_checkpoint_renamed_are_taken(wide: Path, weights: Weights, tmp_path: Path) -> None:
    own = tokens_of(wide)
    spare = [f"[PAD{number}]" for number in range(len(own) // 2)]
    write_gguf(tmp_path / "d.gguf", weights, wide, tokens=[*spare, *own[len(spare) : -2], "<other>", "<another>"])
    export_checkpoint(wide, tmp_path / "bundle", decoder_gguf=tmp_path / "d.gguf")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [({"base": 500_000.0}, r"rope\.freq_base 500000, .* rope_theta 10000"), ({"epsilon": 1e-3}, "epsilon 0.001, .*")],
)
def test_a_decoder_with_another_rotation_or_norm_is_refused(
    numbers: dict[str, float], message: str, wide: Path, weights: Weights, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "d.gguf", weights, wide, **numbers)  # type: ignore[arg-type]
    refused(wide, tmp_path / "d.gguf", CheckpointError, message)


def test_other_architectures_are_refused(wide: Path, weights: Weights, tmp_path: Path) -> None:
    write_gguf(tmp_path / "d.gguf", weights, wide, "bitnet")
    refused(wide, tmp_path / "d.gguf", UnsupportedConfigError, "architecture 'bitnet'; read are llama, qwen2")


def test_a_decoder_for_an_encoder_is_refused(
    clip_checkpoint: Path, wide: Path, weights: Weights, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "d.gguf", weights, wide)
    refused(clip_checkpoint, tmp_path / "d.gguf", UnsupportedConfigError, "brings a decoder")


@pytest.mark.parametrize("size", [0, 3, 100, -1000])
def test_truncated_file_is_refused(size: int, wide: Path, weights: Weights, tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf", weights, wide)
    (tmp_path / "d.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:size])
    refused(wide, tmp_path / "d.gguf", CheckpointError, "cannot be read as a GGUF file")


def test_absent_file_is_refused(wide: Path, tmp_path: Path) -> None:
    refused(wide, tmp_path / "d.gguf", CheckpointError, r"d\.gguf cannot be read as a GGUF file")


def test_other_files_are_refused(wide: Path, tmp_path: Path) -> None:
    shutil.copyfile(wide / "model.safetensors", tmp_path / "d.gguf")
    refused(wide, tmp_path / "d.gguf", CheckpointError, "cannot be read as a GGUF file")
