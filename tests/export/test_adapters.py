"""Several LoRA adapters in one decoder that embeds, held to what PEFT merges of each."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bundle.directory import open_bundle, read_manifest
from bundle.errors import CheckpointError, UnsupportedConfigError
from commands.app import app
from export.embedding import EmbeddingOptions
from export.exporter import export_checkpoint
from runtime.filled_prompt import FilledPrompt
from runtime.prompt_embedder import PromptEmbedder
from runtime.settings import RuntimeSettings

SETTINGS: dict[str, dict[str, Any]] = {
    "french": {"target_modules": r".*text_model.*\.(q_proj|v_proj|down_proj)", "r": 4, "lora_alpha": 16},
    "legal": {"target_modules": r".*text_model.*\.(q_proj|o_proj)", "r": 2, "lora_alpha": 3, "use_rslora": True},
    "tower": {"target_modules": r".*vision_model.*q_proj", "r": 2},
    "whole": {"target_modules": ["v_proj"], "r": 2, "modules_to_save": ["modality_projection"]},
}
IDS = np.arange(3, 15)
RUN = RuntimeSettings(intra_threads=1)


@pytest.fixture(scope="module")
def adapters(smolvlm_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of adapters of random weights, and as NAME-merged of the checkpoints that PEFT merges them into."""
    peft = pytest.importorskip("peft", reason="peft is not installed here")
    import torch
    import transformers

    folder, made = tmp_path_factory.mktemp("adapters"), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers by a name that is deprecated
        for seed, (name, settings) in enumerate(SETTINGS.items()):
            torch.manual_seed(seed)
            model = transformers.AutoModelForImageTextToText.from_pretrained(smolvlm_checkpoint, dtype=torch.float32)
            wrapped = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, **settings))
            made[name], merged = folder / name, folder / f"{name}-merged"
            wrapped.save_pretrained(made[name])
            wrapped.merge_and_unload().save_pretrained(merged)
            for file in smolvlm_checkpoint.iterdir():
                if not (merged / file.name).exists():
                    shutil.copy(file, merged / file.name)
            made[f"{name}-merged"] = merged
    return made


def vectors(bundle: Path, *numbers: int) -> list[np.ndarray]:
    """Return a text's vector through each adapter, all in one batch."""
    embedder = PromptEmbedder(open_bundle(bundle), RUN)
    return [own[0] for own in embedder.embed([replace(FilledPrompt.of_ids(IDS), adapter=each) for each in numbers])]


@pytest.mark.parametrize("dialect", ["contrib", "portable"])
def test_each_sequence_of_a_batch_runs_through_its_own_adapter(
    adapters: dict[str, Path], smolvlm_checkpoint: Path, tmp_path: Path, dialect: Any
) -> None:
    options = EmbeddingOptions("last")
    chosen = {name: adapters[name] for name in ("french", "legal")}
    export_checkpoint(smolvlm_checkpoint, tmp_path / "all", dialect=dialect, adapters=chosen, embedding=options)
    sources = [smolvlm_checkpoint, adapters["french-merged"], adapters["legal-merged"]]
    found = vectors(tmp_path / "all", 2, 0, 1, 2, 0)
    for number, source in enumerate(sources):
        export_checkpoint(source, tmp_path / str(number), embedding=options)
    expected = [vectors(tmp_path / str(number), 0)[0] for number in range(3)]
    for own, number in zip(found, (2, 0, 1, 2, 0), strict=True):
        np.testing.assert_allclose(own, expected[number], atol=1e-5)
    assert expected[0] @ expected[1] < 0.999
    manifest = read_manifest(tmp_path / "all")
    assert manifest.embedder is not None
    assert manifest.embedder.adapter_names == ("base", "french", "legal")
    parts = (manifest.weight_bytes, read_manifest(tmp_path / "0").weight_bytes)
    assert parts[1] < parts[0] < 1.3 * parts[1]
    assert manifest.source_sha256 != read_manifest(tmp_path / "0").source_sha256


@pytest.mark.parametrize(
    ("name", "adapter", "task", "told"),
    [
        ("a", "tower", "embed", r"change linear layers of the decoder, and these change .*vision_model"),
        ("a", "whole", "embed", r"modality_projection.* is no low-rank change of a linear layer"),
        ("base", "french", "embed", "base is what a request calls the weights without an adapter"),
        ("legal.query", "french", "embed", "no request could choose the adapter"),
        ("a", "french", "both", "not of one that does both"),
    ],
)
def test_what_no_request_can_choose_is_refused(
    adapters: dict[str, Path],
    smolvlm_checkpoint: Path,
    tmp_path: Path,
    name: str,
    adapter: str,
    task: str,
    told: str,
) -> None:
    embedding = EmbeddingOptions("last", also_answers=task == "both")
    with pytest.raises((UnsupportedConfigError, CheckpointError), match=told):
        export_checkpoint(
            smolvlm_checkpoint, tmp_path / "bundle", adapters={name: adapters[adapter]}, embedding=embedding
        )


def test_the_command_takes_one_adapter_or_several_with_names(
    adapters: dict[str, Path], smolvlm_checkpoint: Path, tmp_path: Path
) -> None:
    def export(*given: str) -> Any:
        options = [part for value in given for part in ("--lora", value)]
        command = ["export", str(smolvlm_checkpoint), "-o", str(tmp_path / "bundle"), "--task", "embed", *options]
        return CliRunner().invoke(app, command)

    french, legal = str(adapters["french"]), str(adapters["legal"])
    for given in ((french, legal), (f"a={french}", legal), (f"a={french}", f"a={legal}")):
        refused = export(*given)
        assert refused.exit_code != 0
        assert "one adapter is merged" in str(refused.exception)
    assert export(f"a={french}", f"b={legal}").exit_code == 0
