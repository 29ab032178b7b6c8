"""Weights run where they were made for, or say that they do not."""

import logging
from pathlib import Path

import pytest

from bundle.directory import Bundle, read_manifest, seal
from bundle.errors import MachineError
from bundle.manifest import Scheme, Target
from serving.models.client import load_model
from serving.models.targets import check_target
from serving.settings import EngineSettings

CPU, CUDA = EngineSettings(provider="cpu"), EngineSettings(provider="cuda")


def with_decoder(bundle: Path, scheme: Scheme, target: Target) -> Bundle:
    manifest = read_manifest(bundle)
    decoder = manifest.components["decoder"].model_copy(update={"scheme": scheme})
    changes = {"components": {**manifest.components, "decoder": decoder}, "target": target}
    return Bundle(bundle, manifest.model_copy(update=changes))


def test_float16_weights_are_refused_on_a_cpu_and_the_message_says_what_to_take(smolvlm_bundle) -> None:
    bundle = with_decoder(smolvlm_bundle, "fp16", "cuda")
    with pytest.raises(MachineError, match=r"decoder hold float16 weights.* int8 variant .*engine\.provider to cuda"):
        check_target(bundle, CPU)
    check_target(bundle, CUDA)


@pytest.mark.parametrize(
    ("scheme", "target", "settings", "is_told"),
    [
        ("int4", "cpu", CPU, False),
        ("int4", "cpu", CUDA, True),
        ("int8", "tensorrt", CPU, True),
        ("int4", "cuda", CUDA, False),
        ("fp32", "cpu", CUDA, False),
    ],
)
def test_weights_made_for_elsewhere_run_and_are_logged(
    smolvlm_bundle, caplog, scheme, target, settings, is_told
) -> None:
    with caplog.at_level(logging.WARNING):
        check_target(with_decoder(smolvlm_bundle, scheme, target), settings)
    told = f"was quantized for {target} and runs on {settings.provider}"
    assert (told in caplog.text) == is_told


def test_a_bundle_is_judged_before_its_graphs_are_opened(smolvlm_bundle, pool, tmp_path: Path) -> None:
    manifest = with_decoder(smolvlm_bundle, "fp16", "cuda").manifest
    for component in manifest.components.values():
        (tmp_path / component.file).write_bytes(b"")
    seal(tmp_path, manifest)
    with pytest.raises(MachineError, match="float16"):
        load_model(tmp_path, EngineSettings(allow_ungated=True), pool)
