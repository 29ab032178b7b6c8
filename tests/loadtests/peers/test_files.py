"""What other systems read of a checkpoint: every weight of the decoder, and its words."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from loadtests.peers.decoder_checkpoint import write_decoder_checkpoint
from loadtests.peers.llama_files import write_decoder


@pytest.fixture(scope="module")
def checkpoint(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a head of its own, and a table of more rows than there are words."""
    folder = tmp_path_factory.mktemp("untied") / "smolvlm"
    config = checkpoints.smolvlm_config({"rms_norm_eps": 1e-5, "vocab_size": 300}, tie_word_embeddings=False)
    config["text_config"]["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0}
    checkpoints.save_smolvlm(folder, config)
    return folder


def test_a_gguf_holds_the_decoders_weights_under_llamas_names(checkpoint: Path, tmp_path: Path) -> None:
    write_decoder(checkpoint, tmp_path / "F32.gguf")
    reader = gguf.GGUFReader(tmp_path / "F32.gguf")
    found = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    source = load_file(checkpoint / "model.safetensors")
    assert len(found) == 3 + 3 * 9  # table, norm, head; nine of each layer
    assert np.array_equal(found["output.weight"], source["lm_head.weight"])
    down = source["model.text_model.layers.2.mlp.down_proj.weight"]
    assert np.array_equal(found["blk.2.ffn_down.weight"], down)


def test_a_gguf_has_a_token_for_every_row_of_the_table(checkpoint: Path, tmp_path: Path) -> None:
    write_decoder(checkpoint, tmp_path / "F32.gguf")
    fields = gguf.GGUFReader(tmp_path / "F32.gguf").fields
    config = json.loads((checkpoint / "config.json").read_text())["text_config"]
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == config["vocab_size"]
    assert tokens[config["eos_token_id"]] == "<end_of_utterance>"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == config["eos_token_id"]


def test_a_decoder_alone_is_a_checkpoint_that_transformers_takes(checkpoint: Path, tmp_path: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    write_decoder_checkpoint(checkpoint, tmp_path / "decoder")
    model, told = LlamaForCausalLM.from_pretrained(tmp_path / "decoder", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    weight = load_file(checkpoint / "model.safetensors")["lm_head.weight"]
    assert torch.equal(model.lm_head.weight, torch.from_numpy(weight))
