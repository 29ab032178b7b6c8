"""Bundles are compared in turns, on the same work, each in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bundle.directory import read_manifest, seal
from bundle.errors import BundleError, MachineError, QuantizationError, SettingsError
from bundle.manifest import RunPhase, Scheme
from loadtests.contestants import Bench, Contestant, Reading, Station, StationBench, Variant
from loadtests.schemes import Comparison, Plan, compare, judge, main, make_variants, print_comparison
from runtime.decoder import Decoder, Logits
from runtime.feeds import TokenBatch
from runtime.turns import Quartiles
from serving.models.vision import VisionStage

PLAN = Plan(prompt_tokens=9, batch_sizes=(1, 2), cached_tokens=4, steps=2, rounds=3, threads=1)


def renamed(bundle: Path, folder: Path, scheme: Scheme = "fp32") -> Path:
    """Return a copy of a bundle whose decoder is said to be of another scheme."""
    copied = Path(shutil.copytree(bundle, folder))
    manifest = read_manifest(copied)
    decoder = manifest.components["decoder"].model_copy(update={"scheme": scheme})
    seal(copied, manifest.model_copy(update={"components": {**manifest.components, "decoder": decoder}}))
    return copied


@pytest.fixture(scope="module")
def compared(smolvlm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    other = renamed(smolvlm_bundle, tmp_path_factory.mktemp("other") / "small", "int8")
    return compare([smolvlm_bundle, other], PLAN)


def test_every_bundle_is_read_at_every_station_and_the_first_is_as_fast_as_itself(compared: Comparison) -> None:
    stations = ["vision, 1 tile", "prefill, 9 tokens", "decode, batch 1", "decode, batch 2"]
    names = ["tiny-smolvlm", "small"]
    assert [(line.station, line.variant) for line in compared.lines] == [(s, n) for s in stations for n in names]
    for line in compared.lines:
        assert line.wall_ms > 0
        assert line.processor_ms > 0
        if line.variant == "tiny-smolvlm":
            assert line.wall_ratio == line.processor_ratio == Quartiles(1, 1, 1)


def test_rates_count_all_sequences_of_a_batch(compared: Comparison) -> None:
    (line,) = [line for line in compared.lines if line.station == "decode, batch 2" and line.variant == "small"]
    assert line.per_second == pytest.approx(2000 / line.wall_ms)


def test_bytes_are_those_of_the_language_model_alone(compared: Comparison, smolvlm_bundle: Path) -> None:
    parts = read_manifest(smolvlm_bundle).components
    first = compared.variants[0]
    assert first.language_model_bytes == parts["embed_tokens"].weight_bytes + parts["decoder"].weight_bytes
    assert first.step_bytes == parts["decoder"].weight_bytes
    assert set(compared.peak_memory_bytes) == {"tiny-smolvlm", "small"}
    assert all(20e6 < peak < 4e9 for peak in compared.peak_memory_bytes.values())  # bytes, of Python and libraries


def test_the_tables_and_the_json_hold_what_was_measured(compared: Comparison) -> None:
    with Path("/dev/null").open("w") as nowhere:
        console = Console(width=200, record=True, file=nowhere)
        print_comparison(compared, console)
    text = console.export_text()
    for part in (
        "tiny-smolvlm",
        "decode, batch 2",
        "prefill, 9 tokens: small over tiny-smolvlm",
        "1 thread",
        "3 turns",
    ):
        assert part in text
    data = json.loads(json.dumps(compared.to_json()))
    assert data["verdicts"][0]["is_met"] in (True, False)
    assert data["machine"]["cores"] >= 1


def variant(name: str, prompts: str, steps: str, step_bytes: int = 1000) -> Variant:
    return Variant(name, {"decoder": steps, "decoder_prefill": prompts}, prompts, steps, step_bytes, step_bytes)


def readings(**wall_ms: list[float]) -> dict[str, list[Reading]]:
    return {name: [Reading(value, 2 * value) for value in values] for name, values in wall_ms.items()}


def test_targets_judge_each_pair_by_the_graph_that_runs_the_station() -> None:
    variants = [variant("wide", "fp32", "fp32"), variant("both", "int8", "int4"), variant("narrow", "int4", "ternary")]
    prefill, alone, eight = Station("prefill", 512), Station("decode", 1, 128), Station("decode", 8, 128)
    times = {
        prefill: readings(wide=[300.0] * 3, both=[100.0] * 3, narrow=[400.0] * 3),
        alone: readings(wide=[50.0] * 3, both=[13.0] * 3, narrow=[10.0] * 3),
        eight: readings(wide=[50.0] * 3, both=[13.0] * 3, narrow=[10.0] * 3),
    }
    ternary, prompts = judge(variants, times, cache_bytes=1000)
    assert (ternary.station, ternary.faster, ternary.slower) == ("decode, batch 1", "narrow", "both")
    assert ternary.wall_ratio.median == pytest.approx(1.3)
    assert not ternary.is_met
    assert ternary.exceeds_cache is False
    assert (prompts.faster, prompts.slower, prompts.wall_ratio.median) == ("both", "wide", 3)
    assert prompts.is_met


def test_the_work_of_a_station_is_what_its_name_says(dual_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = StationBench(Bench(dual_bundle, PLAN.stations, threads=1, steps=2))
    work: list[tuple[object, ...]] = []
    run_tokens, run_tiles = Decoder._run, VisionStage.run

    def tokens(decoder: Decoder, phase: RunPhase, first_slot: int, batch: TokenBatch) -> Logits:
        rows = zip(batch.positions.tolist(), batch.lengths.T.tolist(), strict=True)
        work.append((phase, first_slot, *((batch.num_tokens, positions, lengths) for positions, lengths in rows)))
        return run_tokens(decoder, phase, first_slot, batch)

    def tiles(stage: VisionStage, batch: list[np.ndarray]) -> object:
        work.append(("vision", len(batch)))
        return run_tiles(stage, batch)

    monkeypatch.setattr(Decoder, "_run", tokens)
    monkeypatch.setattr(VisionStage, "run", tiles)
    for station in PLAN.stations * 2:
        bench.run(station)
    step, rows_of_slot = (1, [4], [4]), [("prompt", slot, (4, list(range(4)), [0])) for slot in range(2)]
    timed = [
        [("vision", 1), ("prompt", 0, (9, list(range(9)), [0]))],
        [("step", 0, step)] * 2,
        [("step", 0, step, step)] * 2,
    ]
    # each slot's rows are written once, before the first step behind them
    assert work == [
        *timed[0],
        rows_of_slot[0],
        *timed[1],
        rows_of_slot[1],
        *timed[2],
        *(run for runs in timed for run in runs),
    ]


def test_a_variant_is_what_its_manifest_says_of_each_phase(dual_bundle: Path) -> None:
    found = StationBench(Bench(dual_bundle, PLAN.stations, threads=1, steps=1)).variant
    parts = read_manifest(dual_bundle).components
    assert (found.scheme_of("prefill"), found.scheme_of("decode")) == ("int8", "int4")
    assert found.step_bytes == parts["decoder"].weight_bytes
    of_tokens = ("embed_tokens", "decoder", "decoder_prefill")
    assert found.language_model_bytes == sum(parts[name].weight_bytes for name in of_tokens)


def test_what_cannot_be_compared_is_refused_by_name(smolvlm_bundle: Path, clip_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="takes two bundles or more"):
        compare([smolvlm_bundle], PLAN)
    with pytest.raises(SettingsError, match="different names"):
        compare([smolvlm_bundle, smolvlm_bundle], PLAN)
    with pytest.raises(SettingsError, match="tiny-clip has no decoder"):
        StationBench(Bench(clip_bundle, PLAN.stations, 1, 1))
    with pytest.raises(SettingsError, match="600 tokens do not fit the context"):
        StationBench(Bench(smolvlm_bundle, (Station("prefill", 600),), 1, 1))
    with pytest.raises(BundleError, match="is not a bundle"):
        compare([tmp_path, smolvlm_bundle], PLAN)


@pytest.mark.parametrize("field", [{"rounds": 2}, {"steps": 0}, {"prompt_tokens": 1}, {"batch_sizes": ()}])
def test_a_value_out_of_its_range_is_refused_by_name(field: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=next(iter(field))):
        Plan(**field)


def test_a_process_that_dies_is_told_with_its_bundle(smolvlm_bundle: Path) -> None:
    before = set(multiprocessing.active_children())
    with Contestant(Bench(smolvlm_bundle, PLAN.stations, 1, 1)) as contestant:
        contestant.variant()
        (process,) = set(multiprocessing.active_children()) - before
        process.kill()
        with pytest.raises(MachineError, match=r"tiny-smolvlm ended with code -9; compare fewer bundles"):
            contestant.run(PLAN.stations[0])


def test_variants_are_made_by_the_command_once(
    smolvlm_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if command[-1] == "int3":
            return subprocess.CompletedProcess(command, 1, "", "unknown weights 'int3'\n")
        shutil.copytree(smolvlm_bundle, command[command.index("-o") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    for _ in range(2):
        assert make_variants(smolvlm_bundle, ["int8"], tmp_path, print) == [tmp_path / "tiny-smolvlm-int8"]
    assert [command[1:4] for command in commands] == [["-m", "pocketvlm", "quantize"]]
    assert "--no-evaluate" in commands[0]
    assert make_variants(smolvlm_bundle, ["int4:dual+int8"], tmp_path, print)[0].name == "tiny-smolvlm-int4-dual+int8"
    assert commands[1][-6:] == ["--weights", "int4", "--profile", "dual", "--kv-cache", "int8"]
    with pytest.raises(QuantizationError, match="unknown weights 'int3'"):
        make_variants(smolvlm_bundle, ["int3"], tmp_path, print)


def test_the_command_line_answers_with_an_error_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path / "other")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {tmp_path} is not a bundle")
