"""The benchmark runs every station of a real bundle and says what it ran on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bundle.errors import BundleFileError, SettingsError
from bundle.machine import peak_memory_bytes
from devices.energy.account import EnergyAccount, FoundMeters
from loadtests.latency import BenchmarkPlan, BenchmarkReport, measure_bundle, print_benchmark, run_benchmark
from tests.loadtests.conftest import METER_WATTS, Steady

PLAN = BenchmarkPlan(
    batch_sizes=(1, 2), prompt_tokens=6, output_tokens=3, image_px=48, warmup=1, repeats=3, budget_s=0.5, threads=1
)


@pytest.fixture(scope="module")
def vlm_report(smolvlm_bundle: Path) -> BenchmarkReport:
    return run_benchmark(smolvlm_bundle, PLAN)


def printed(report: BenchmarkReport) -> str:
    with Path("/dev/null").open("w") as nowhere:
        console = Console(width=240, record=True, file=nowhere)
        print_benchmark(report, console)
        return console.export_text()


def names(report: BenchmarkReport) -> list[str]:
    return [line.name for line in report.lines]


def test_a_vision_language_model_is_measured_at_every_station_and_batch(vlm_report: BenchmarkReport) -> None:
    told = " | ".join(names(vlm_report))
    for part in ("first token, a 48 px image not seen before", "48 px image seen before", "1 answer at once"):
        assert part in told
    for part in ("2 answers at once", "vision, 1 tile of", "vision, 2 tiles of", "preprocess a 48 px image"):
        assert part in told
    for part in ("prefill, 6 tokens", "decode step, batch 1, 6 tokens cached", "decode step, batch 2, 6 tokens cached"):
        assert part in told
    assert all(line.milliseconds.n == 3 and line.milliseconds.p50 > 0 for line in vlm_report.lines)


def test_rates_count_tokens_over_all_sequences(vlm_report: BenchmarkReport) -> None:
    (decode,) = [line for line in vlm_report.lines if line.name.startswith("decode step, batch 2")]
    assert decode.unit == "tokens"
    assert decode.per_second == pytest.approx(2000 / decode.milliseconds.p50)


def test_a_dual_encoder_is_measured_in_images_and_texts(clip_bundle: Path) -> None:
    report = run_benchmark(clip_bundle, PLAN)
    units = {line.name: line.unit for line in report.lines}
    assert units["embed 2 images of 48 px"] == "images"
    assert units["embed 2 texts"] == "texts"
    assert not any("decode" in name for name in units)
    assert report.cache_bytes == 0
    assert report.decoder_schemes is None


def test_the_report_says_what_it_measured_and_where(vlm_report: BenchmarkReport, smolvlm_bundle: Path) -> None:
    data: dict[str, Any] = json.loads(json.dumps(vlm_report.to_json()))
    assert data["name"] == json.loads((smolvlm_bundle / "manifest.json").read_text(encoding="utf-8"))["name"]
    assert data["plan"]["threads"] == 1
    assert data["machine"]["cores"] >= 1
    assert {"python", "onnxruntime", "numpy"} <= set(data["machine"]["versions"])
    assert data["load_s"] > 0
    assert len(data["lines"]) == len(vlm_report.lines)


def test_peak_memory_is_the_benchmarks_own_and_not_its_parents(clip_bundle: Path) -> None:
    ballast = np.ones(1 << 29, np.uint8)
    try:
        report = run_benchmark(clip_bundle, PLAN)
        # The tiny model and the libraries need about 120 MB; a figure taken over from this process holds the ballast.
        assert 0 < report.memory_before_bytes <= report.peak_memory_bytes < ballast.nbytes < peak_memory_bytes()
    finally:
        del ballast


def test_energy_is_told_per_request_where_there_is_a_meter(smolvlm_bundle: Path, monkeypatch) -> None:
    account = EnergyAccount(FoundMeters((Steady(),), ("no second",)))
    monkeypatch.setattr("loadtests.latency.EnergyAccount", lambda: account)
    report = measure_bundle(smolvlm_bundle, PLAN)
    (line,) = [line for line in report.lines if line.name.startswith("2 answers at once")]
    assert line.energy is not None
    # 10 W over all rounds, shared by two: at least as long as the quickest of them, at most a run that was held up
    least = METER_WATTS * line.milliseconds.p50 / 1e3 / 2 / 4
    assert least < line.energy.joules < METER_WATTS * 60
    assert line.energy.tokens_per_joule == pytest.approx(line.energy.tokens / line.energy.joules)
    assert report.energy.idle_watts == pytest.approx(METER_WATTS, rel=0.5)  # a reading may be held up on its way
    told = printed(report)
    assert "J/request" in told
    assert f"energy of steady, {report.energy.idle_watts:.2f} W when idle" in told
    assert report.to_json()["lines"][report.lines.index(line)]["energy"]["tokens_per_joule"] > 0


def test_without_a_meter_the_report_says_that_there_is_none(vlm_report: BenchmarkReport) -> None:
    if vlm_report.energy.meters:
        pytest.skip("this machine has a meter of its own")
    assert all(line.energy is None for line in vlm_report.lines)
    told = printed(vlm_report)
    assert "energy: no meter (" in told
    assert "J/request" not in told


def test_the_table_holds_every_line(vlm_report: BenchmarkReport) -> None:
    console = Console(width=200, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    print_benchmark(vlm_report, console)
    text = console.export_text()
    assert all(name in text for name in names(vlm_report))
    assert "1 thread" in text
    console.file.close()


def test_a_second_decoder_is_told_with_what_each_of_the_two_runs(
    vlm_report: BenchmarkReport, dual_bundle: Path
) -> None:
    dual = run_benchmark(dual_bundle, dataclasses.replace(PLAN, allow_ungated=True))
    assert dual.decoder_schemes == ("int8", "int4")
    assert names(dual) == names(vlm_report)
    with Path("/dev/null").open("w") as nowhere:
        console = Console(width=200, record=True, file=nowhere)
        print_benchmark(dual, console)
        assert "profile dual: prompts run in int8, single tokens in int4" in console.export_text()
        print_benchmark(vlm_report, console)
        assert "profile" not in console.export_text()


def test_the_cache_is_the_states_of_every_slot(vlm_report: BenchmarkReport, smolvlm_checkpoint: Path) -> None:
    text = json.loads((smolvlm_checkpoint / "config.json").read_text(encoding="utf-8"))["text_config"]
    head_size = text["hidden_size"] // text["num_attention_heads"]
    bytes_per_token = 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * head_size * 4  # float32
    assert vlm_report.cache_bytes == max(PLAN.batch_sizes) * text["max_position_embeddings"] * bytes_per_token


def test_a_prompt_longer_than_the_context_is_refused(smolvlm_bundle: Path) -> None:
    with pytest.raises(SettingsError, match="do not fit the context"):
        measure_bundle(smolvlm_bundle, BenchmarkPlan(**{**vars(PLAN), "prompt_tokens": 100_000}))


def test_an_error_of_the_other_process_keeps_its_class(clip_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_bundle, tmp_path / "altered")
    (tmp_path / "altered" / "tokenizer.json").unlink()
    with pytest.raises(BundleFileError, match=r"tokenizer\.json is missing"):
        run_benchmark(tmp_path / "altered", PLAN)


@pytest.mark.parametrize(
    "field",
    [{"batch_sizes": ()}, {"batch_sizes": (0,)}, {"batch_sizes": (65,)}, {"repeats": 2}, {"warmup": 0}]
    + [{"output_tokens": 1}, {"image_px": 1}, {"threads": -1}, {"budget_s": 0.0}, {"prompt_tokens": 0}],
)
def test_a_value_out_of_its_range_is_refused_by_name(field: dict[str, Any]) -> None:
    (name,) = field
    with pytest.raises(SettingsError, match=name):
        BenchmarkPlan(**field)
