"""llama.cpp beside an fp32 bundle: the same tokens, our own measures, in turns. A fake plays llama.cpp."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from bundle.directory import open_bundle, read_manifest
from bundle.errors import CheckpointError, SettingsError
from bundle.prompt import Turn
from loadtests import llama_cpp
from loadtests.contestants import Reading, Station, Variant
from loadtests.gguf_files import weight_error
from loadtests.llama_cpp import FLOAT32, PARENT, Plan, compare, main, make_files, print_rivals, speed_of
from loadtests.llama_stations import LlamaStations
from quant.comparison.rivals import Rivals, read_rivals
from runtime.decoder import Logits
from runtime.filled_prompt import FilledPrompt
from runtime.one_request import VisionLanguageRunner
from runtime.turns import Quartiles

QUESTIONS = (("What is it?", "a cat"), ("Why?", "no"), ("How many are there, then?", "three of them"))
NO_SPEED = Plan(rounds=0)


@dataclass
class BundleSession:
    """A session that computes what a bundle does: it keeps the tokens of its rows and runs them all again."""

    runner: VisionLanguageRunner
    vocab_size: int
    added: Logits
    rows: list[int] = field(default_factory=list)
    runs: list[tuple[list[int], int]] = field(default_factory=list)
    is_closed: bool = False

    def run(self, token_ids: Sequence[int], start: int) -> Logits:
        assert start <= len(self.rows), "rows are missing before these"
        self.rows = [*self.rows[:start], *token_ids]
        self.runs.append((list(token_ids), start))
        prompt = FilledPrompt.of_ids(np.array(self.rows, np.int64))
        return self.runner.prefill(prompt, 0).logits[: self.vocab_size] + self.added[: self.vocab_size]

    def close(self) -> None:
        self.is_closed = True


class FakeLlama:
    """llama.cpp, of files whose names say how far their logits lie from the bundle's."""

    version = "a fake"

    def __init__(self, bundle: Path, distances: dict[str, float], vocab_size: int | None = None) -> None:
        opened = open_bundle(bundle)
        assert opened.manifest.decoder is not None
        self._whole = opened.manifest.decoder.vocab_size
        self._vocab_size = vocab_size or self._whole
        self._runner = VisionLanguageRunner(opened)
        self._distances = distances
        self.sessions: list[BundleSession] = []
        self.quantized: list[tuple[str, str, str]] = []

    def added(self, distance: float) -> Logits:
        """What a file's logits have more: the same at every place."""
        size = max(self._whole, self._vocab_size)
        return (distance * np.random.default_rng(5).standard_normal(size)).astype(np.float32)

    def quantize(self, file: Path, output: Path, kind: str, threads: int) -> None:
        if kind == "Q0":
            output.write_bytes(b"half")
            raise CheckpointError("llama.cpp cannot write it")
        self.quantized.append((file.name, kind, str(threads)))
        output.write_bytes(file.read_bytes())

    def open(self, file: Path, context_tokens: int, threads: int) -> BundleSession:
        session = BundleSession(self._runner, self._vocab_size, self.added(self._distances.get(file.stem, 0.0)))
        self.sessions.append(session)
        return session


def write_gguf(path: Path, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32) -> Path:
    """A file with one matrix and one vector."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_file_type(3)
    matrix = np.linspace(-1, 1, 256, dtype=np.float32).reshape(4, 64)
    data = matrix if kind == gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(matrix, kind)
    writer.add_tensor("token_embd.weight", data, raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    rows = ({"image": [], "question": question, "answer": answer} for question, answer in QUESTIONS)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    return [write_gguf(folder / f"{name}.gguf") for name in (FLOAT32, "Q4_0")]


def silent(_: object) -> None:
    pass


def compared(llama: FakeLlama, bundle: Path, files: Sequence[Path], questions: Path) -> Rivals:
    return compare(llama, open_bundle(bundle), files, questions, NO_SPEED, silent)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def expected_kl(bundle: Path, added: Logits, vocab_size: int) -> float:
    """Mean over all answer tokens, computed from whole runs of the bundle, one a token."""
    runner = VisionLanguageRunner(open_bundle(bundle))
    losses: list[float] = []
    for question, answer in QUESTIONS:
        prompt = runner.prompt_about([Turn("user", (question,))], runner.see([])).prompt.token_ids.tolist()
        answer_ids = runner.answer_ids(answer)
        for at in range(len(answer_ids)):
            ids = np.array([*prompt, *answer_ids[:at]], np.int64)
            logits = runner.prefill(FilledPrompt.of_ids(ids), 0).logits.astype(np.float64)[:vocab_size]
            p, q = softmax(logits), softmax(logits + added[:vocab_size])
            losses.append(float((p * np.log(p / q)).sum()))
    return float(np.mean(losses))


def test_the_bundles_own_function_has_no_loss_and_the_same_replies(
    smolvlm_bundle: Path, files: list[Path], questions: Path
) -> None:
    """Rows and tokens are the bundle's, whatever was fed before: a slip of one would show as a loss."""
    found = compared(FakeLlama(smolvlm_bundle, {}), smolvlm_bundle, files, questions)
    for each in (found.parity, *found.rivals):
        assert each.teacher_forced.kl_mean < 1e-8  # float32 sums of prompts and steps
        assert each.teacher_forced.top1_agreement == each.replies.identical == 1
    assert found.parity.teacher_forced.num_samples == 3
    assert (found.parent_sha256, found.version) == (read_manifest(smolvlm_bundle).source_sha256, "a fake")


def test_a_files_loss_is_measured_over_the_tokens_that_both_know(
    smolvlm_bundle: Path, files: list[Path], questions: Path
) -> None:
    decoder = read_manifest(smolvlm_bundle).decoder
    assert decoder is not None
    known = decoder.vocab_size - 9
    llama = FakeLlama(smolvlm_bundle, {"Q4_0": 0.5}, vocab_size=known)
    (found,) = compared(llama, smolvlm_bundle, files, questions).rivals
    assert found.name == "Q4_0"
    assert found.teacher_forced.kl_mean == pytest.approx(expected_kl(smolvlm_bundle, llama.added(0.5), known), rel=1e-4)
    assert found.teacher_forced.top1_agreement < 1


def test_answers_are_fed_one_token_at_a_time_behind_the_prompt(
    smolvlm_bundle: Path, files: list[Path], questions: Path
) -> None:
    llama = FakeLlama(smolvlm_bundle, {})
    compared(llama, smolvlm_bundle, files, questions)
    runs = llama.sessions[0].runs
    prompts = [len(ids) for ids, start in runs if start == 0]
    assert len(prompts) == len(QUESTIONS)
    assert min(prompts) > 1
    assert all(len(ids) == 1 for ids, start in runs if start)
    assert all(session.is_closed for session in llama.sessions)


def test_the_bundle_answers_each_question_once_however_many_files_there_are(
    smolvlm_bundle: Path, files: list[Path], questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    forced = VisionLanguageRunner.forced_logits
    monkeypatch.setattr(VisionLanguageRunner, "forced_logits", lambda *given: (asked.append(1), forced(*given))[1])
    compared(FakeLlama(smolvlm_bundle, {}), smolvlm_bundle, files, questions)
    assert len(asked) == len(QUESTIONS)


def test_sizes_are_of_the_tensors_and_of_the_file(smolvlm_bundle: Path, files: list[Path], questions: Path) -> None:
    found = compared(FakeLlama(smolvlm_bundle, {}), smolvlm_bundle, files, questions).parity
    assert found.weight_bytes == 4 * (256 + 64)
    assert found.file_bytes == files[0].stat().st_size > found.weight_bytes


def test_a_file_of_other_weights_is_refused(smolvlm_bundle: Path, files: list[Path], questions: Path) -> None:
    with pytest.raises(SettingsError, match=r"not of the same weights: KL is .*Export the bundle with --decoder-gguf"):
        compared(FakeLlama(smolvlm_bundle, {FLOAT32: 0.5}), smolvlm_bundle, files, questions)


def test_a_file_of_more_tokens_than_the_bundle_is_refused(
    smolvlm_bundle: Path, files: list[Path], questions: Path
) -> None:
    with pytest.raises(SettingsError, match=r"F32\.gguf knows 9000 tokens"):
        compared(FakeLlama(smolvlm_bundle, {}, vocab_size=9000), smolvlm_bundle, files, questions)


def test_a_token_that_the_files_do_not_know_is_told(smolvlm_bundle: Path, files: list[Path], questions: Path) -> None:
    """The token that ends an answer, or one of the prompt, may be among those that a checkpoint added."""
    ends = open_bundle(smolvlm_bundle).manifest.eos_token_ids[0]
    for known in (ends, 60):
        with pytest.raises(SettingsError, match=f"knows {known}: its vocabulary is not the bundle's"):
            compared(FakeLlama(smolvlm_bundle, {}, vocab_size=known), smolvlm_bundle, files, questions)


def test_questions_with_images_are_refused(smolvlm_bundle: Path, files: list[Path], tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "What?", "answer": "yes"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row))
    with pytest.raises(SettingsError, match="questions without images"):
        compared(FakeLlama(smolvlm_bundle, {}), smolvlm_bundle, files, tmp_path / "questions.jsonl")


def test_without_a_file_of_questions_built_in_texts_are_asked(smolvlm_bundle: Path, files: list[Path]) -> None:
    """No reply to them is right or wrong: accuracy is not measured, and replies are compared all the same."""
    found = compare(FakeLlama(smolvlm_bundle, {}), open_bundle(smolvlm_bundle), files, 3, NO_SPEED, silent)
    assert found.evaluation.source == "built-in evaluation texts"
    assert found.parity.teacher_forced.num_samples == 3
    assert found.parity.replies.n == 3
    assert found.parity.tasks == {}


def test_only_an_fp32_bundle_with_a_decoder_is_a_parent(
    dual_bundle: Path, clip_bundle: Path, smolvlm_bundle: Path, files: list[Path], questions: Path
) -> None:
    for bundle in (dual_bundle, clip_bundle):
        opened = open_bundle(bundle, allow_ungated=True)
        with pytest.raises(SettingsError, match="is no fp32 bundle with a decoder"):
            compare(FakeLlama(smolvlm_bundle, {}), opened, files, questions, NO_SPEED, silent)


def test_files_are_made_from_the_restored_weights_and_once(smolvlm_bundle: Path, tmp_path: Path) -> None:
    llama = FakeLlama(smolvlm_bundle, {})
    parent = write_gguf(tmp_path / "parent.gguf", gguf.GGMLQuantizationType.Q4_1)
    for _ in range(2):
        made = make_files(llama, parent, ["Q8_0", "Q4_0"], tmp_path / "made", 3, silent)
        assert [file.name for file in made] == ["F32.gguf", "Q8_0.gguf", "Q4_0.gguf"]
    assert llama.quantized == [("F32.gguf", "Q8_0", "3"), ("F32.gguf", "Q4_0", "3")]
    (matrix, _) = gguf.GGUFReader(made[0]).tensors
    stored = gguf.GGUFReader(parent).tensors[0]
    assert matrix.tensor_type == gguf.GGMLQuantizationType.F32
    np.testing.assert_array_equal(matrix.data, gguf.quants.dequantize(stored.data, stored.tensor_type))


def test_a_file_that_fails_half_way_is_not_taken_for_a_whole_one(smolvlm_bundle: Path, tmp_path: Path) -> None:
    parent = write_gguf(tmp_path / "parent.gguf")
    with pytest.raises(CheckpointError, match="cannot write it"):
        make_files(FakeLlama(smolvlm_bundle, {}), parent, ["Q0"], tmp_path / "made", 1, silent)
    assert not (tmp_path / "made" / "Q0.gguf").exists()


def test_the_error_of_weights_is_over_the_length_of_the_parents(tmp_path: Path) -> None:
    parent = write_gguf(tmp_path / "parent.gguf")
    rounded = write_gguf(tmp_path / "rounded.gguf", gguf.GGMLQuantizationType.Q4_0)
    matrix = np.linspace(-1, 1, 256, dtype=np.float32).reshape(4, 64)
    kind = gguf.GGMLQuantizationType.Q4_0
    off = gguf.quants.dequantize(gguf.quants.quantize(matrix, kind), kind) - matrix
    whole = np.concatenate([matrix.ravel(), np.ones(64)])  # the norm's weights count, and are not rounded
    expected = np.linalg.norm(off) / np.linalg.norm(whole)
    assert weight_error(parent, rounded) == pytest.approx(expected, rel=1e-5)
    assert expected > 0.01
    assert weight_error(parent, parent) == 0
    empty = gguf.GGUFWriter(tmp_path / "empty.gguf", "llama")
    empty.write_header_to_file()
    empty.write_kv_data_to_file()
    empty.write_tensors_to_file()
    empty.close()
    with pytest.raises(CheckpointError, match=r"empty\.gguf has no token_embd\.weight"):
        weight_error(parent, tmp_path / "empty.gguf")


def readings(**wall_ms: list[float]) -> dict[str, list[Reading]]:
    return {name.replace("_", " "): [Reading(ms, 3 * ms**2) for ms in values] for name, values in wall_ms.items()}


def test_a_rate_counts_tokens_and_a_ratio_is_taken_within_each_turn() -> None:
    found = speed_of(readings(fp32_bundle=[100.0, 400.0, 200.0], Q4=[50.0, 100.0, 50.0]), "Q4", 8)
    assert found.per_second == Quartiles(120, 160, 160)
    assert found.ratio == Quartiles(3, 4, 4)
    assert found.processor_ratio == Quartiles(10, 16, 16)
    own = speed_of(readings(fp32_bundle=[100.0, 400.0]), PARENT, 1)
    assert own.ratio == Quartiles(1, 1, 1)


@dataclass
class ConstantSession:
    """Notes what it is asked to run."""

    vocab_size: int = 50
    runs: list[tuple[int, int]] = field(default_factory=list)

    def run(self, token_ids: Sequence[int], start: int) -> Logits:
        assert all(0 <= token_id < self.vocab_size for token_id in token_ids)
        self.runs.append((len(token_ids), start))
        return np.zeros(self.vocab_size, np.float32)

    def close(self) -> None:
        pass


def test_the_work_of_a_station_is_what_its_name_says() -> None:
    session = ConstantSession()
    stations = LlamaStations(session, Variant("Q4_0", {}, "Q4_0", "Q4_0", 1, 1), steps=3)
    for station in replace(NO_SPEED, prompt_tokens=9, cached_tokens=4).stations:
        reading = stations.run(station)
        assert reading.wall_ms > 0
    assert session.runs == [(9, 0), (4, 0), *[(1, 4)] * 3]
    for other in (Station("vision", 1), Station("decode", 2, 4)):
        with pytest.raises(SettingsError, match="nothing else"):
            stations.run(other)


@pytest.mark.parametrize(
    "value", [{"threads": 0}, {"rounds": 2}, {"prompt_tokens": 1}, {"steps": 0}, {"cached_tokens": 0}]
)
def test_a_value_out_of_its_range_is_refused_by_name(value: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=next(iter(value))):
        Plan(**value)


@pytest.fixture
def command(
    smolvlm_bundle: Path, tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], Path]:
    """Arguments of a whole run over the fake, and the file that it writes."""
    monkeypatch.setattr(llama_cpp, "NativeLlama", lambda: FakeLlama(smolvlm_bundle, {"Q4_0": 0.5}))
    times = {"prefill": [40.0, 44.0, 40.0], "decode": [8.0, 8.0, 9.0]}

    def turns(bundle: Path, files: Sequence[Path], plan: Plan, say: object) -> object:
        assert bundle == smolvlm_bundle
        return {
            station: {
                PARENT: [Reading(2 * ms, ms) for ms in times[station.kind]],
                **{file.stem: [Reading(ms, ms) for ms in times[station.kind]] for file in files},
            }
            for station in plan.stations
        }

    monkeypatch.setattr(llama_cpp, "take_turns", turns)
    parent = write_gguf(tmp_path / "parent.gguf")
    arguments = [str(smolvlm_bundle), str(parent), "--questions", str(questions), "--types", "Q4_0", "--threads", "1"]
    return [*arguments, "--json", str(tmp_path / "rivals.json")], tmp_path / "rivals.json"


def test_the_command_writes_what_the_report_reads(
    command: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, output = command
    assert main(arguments) == 0
    found = read_rivals(output)
    assert [each.name for each in found.rivals] == ["Q4_0"]
    assert found.speed is not None
    assert found.speed.parent_decode.median == pytest.approx(1000 / 16)
    assert found.rivals[0].decode is not None
    assert found.rivals[0].decode.ratio == Quartiles(2, 2, 2)
    assert found.rivals[0].prefill is not None
    assert found.rivals[0].prefill.per_second.median == pytest.approx(512 / 40e-3)
    printed = capsys.readouterr().out
    assert "3 questions of questions.jsonl" in " ".join(printed.split())
    assert f"{found.rivals[0].teacher_forced.kl_mean:.4f}" in printed


def test_the_table_fits_a_terminal_of_eighty_columns(command: tuple[list[str], Path]) -> None:
    arguments, output = command
    main(arguments)
    with Path("/dev/null").open("w") as nowhere:
        console = Console(width=80, record=True, file=nowhere)
        print_rivals(read_rivals(output), console)
    text = console.export_text()
    assert "2.00 (2.00-2.00)" in text
    assert "…" not in text


def test_the_binding_that_is_absent_is_told_before_any_work(
    smolvlm_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    assert main([str(tmp_path), str(tmp_path / "absent.gguf"), "--questions", str(tmp_path / "absent.jsonl")]) == 1
    told = capsys.readouterr().err
    assert told.startswith(
        "error: this command needs llama.cpp's binding, llama-cpp-python. Install it with: pip install"
    )
    assert "[peers]" in told


def test_a_bundle_that_is_none_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(llama_cpp, "NativeLlama", lambda: None)
    assert main([str(tmp_path), str(tmp_path / "a.gguf"), "--questions", str(tmp_path / "a.jsonl")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is not a bundle")
