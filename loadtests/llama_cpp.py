"""llama.cpp as a rival on the same weights: `python -m loadtests.llama_cpp BUNDLE GGUF --questions FILE --json OUT`.

The GGUF holds the decoder of the fp32 bundle. Its weights are restored to float32, and llama.cpp's own quantizer makes
files of other types from that. Each answers the questions beside the bundle, with the same token ids and measured by
the code of our own gates; then all take turns at a prompt and at single tokens. `pocketvlm report --rivals OUT` puts
the figures beside the bundle's variants.

    pocketvlm export CK -o fp32 --decoder-gguf model.gguf
    python -m loadtests.llama_cpp fp32 model.gguf --questions questions.jsonl --json rivals.json
    pocketvlm report fp32 int8 int4 --rivals rivals.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bundle.directory import Bundle, open_bundle
from bundle.errors import PocketVLMError, SettingsError
from bundle.machine import num_usable_cores, this_machine
from bundle.report import EvaluationFacts
from loadtests.contestants import Bench, Contestant, Opening, Reading, Station
from loadtests.gguf_files import restore_float32, weight_bytes, weight_error
from loadtests.llama_answers import LlamaAnswers, RecalledAnswers
from loadtests.llama_binding import Llama, NativeLlama
from loadtests.llama_stations import GgufBench
from loadtests.wording import counted, number
from quant.comparison.rivals import Rival, Rivals, Speed, SpeedFacts, write_rivals
from quant.evaluation.gate_samples import read_samples
from quant.quality.answers import measure_answers
from quant.quality.evaluation import Evaluation, Measured
from quant.samples.built_in import MOST_TEXTS, built_in_texts
from runtime.one_request import VisionLanguageRunner
from runtime.settings import RuntimeSettings
from runtime.turns import Quartiles, Turns

SYSTEM = "llama.cpp"
PARENT = "fp32 bundle"
"""The bundle's name among the contestants; no file is called so."""
FLOAT32 = "F32"
"""The file from which the others are made; held against the bundle first."""
TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_1", "Q4_0")
_MOST_KL = 1e-3
"""Between the bundle and the float32 file: of one function, with llama.cpp's float16 cache, 1e-6 was measured."""
_CONTEXT_TOKENS = 4096
"""Of a question with its answer."""
_PACKAGES = ("pocketvlm", "onnxruntime", "numpy", "llama-cpp-python")

Say = Callable[[str], None]
Readings = Mapping[Station, Mapping[str, Sequence[Reading]]]
"""By station, and by the contestant's name."""


@dataclass(frozen=True)
class Plan:
    """How speed is measured.

    Attributes:
        threads: Of each contestant.
        prompt_tokens: Of a prefill into an empty cache.
        cached_tokens: Before each decoded token.
        steps: Tokens decoded in a turn.
        rounds: Turns; 0 measures no speed.
    """

    threads: int = 1
    prompt_tokens: int = 512
    cached_tokens: int = 64
    steps: int = 8
    rounds: int = 15

    def __post_init__(self) -> None:
        """Check every bound.

        Raises:
            SettingsError: A value is out of its range.
        """
        for name, least in {"threads": 1, "prompt_tokens": 2, "cached_tokens": 1, "steps": 1}.items():
            if getattr(self, name) < least:
                raise SettingsError(f"{name} {getattr(self, name)} is out of range: at least {least}")
        if self.rounds < 3 and self.rounds != 0:
            raise SettingsError(f"rounds {self.rounds} is out of range: at least 3, or 0 for no speed")

    @property
    def tokens_of(self) -> dict[Station, int]:
        """How many tokens each station runs: a prompt into an empty cache, and one behind a prompt."""
        return {Station("prefill", self.prompt_tokens): self.prompt_tokens, Station("decode", 1, self.cached_tokens): 1}

    @property
    def stations(self) -> tuple[Station, ...]:
        """A prompt into an empty cache, then single tokens of one sequence."""
        return tuple(self.tokens_of)


def make_files(llama: Llama, parent: Path, types: Sequence[str], into: Path, threads: int, say: Say) -> list[Path]:
    """Return the float32 file and one of each type, made from it by llama.cpp's quantizer where not there yet.

    Raises:
        CheckpointError: A file cannot be read or written.
        SettingsError: llama.cpp has no such type.
    """
    into.mkdir(parents=True, exist_ok=True)
    float32 = into / f"{FLOAT32}.gguf"
    _make(float32, lambda aside: restore_float32(parent, aside), say)
    files = {kind: into / f"{kind}.gguf" for kind in types}
    for kind, file in files.items():
        _make(file, lambda aside, kind=kind: llama.quantize(float32, aside, kind, threads), say)  # type: ignore[misc]
    return [float32, *files.values()]


def _make(file: Path, write: Callable[[Path], None], say: Say) -> None:
    """Write a file where it is not there yet; it appears whole or not at all."""
    if not file.is_file():
        say(f"writing {file.name}")
        aside = file.with_suffix(".part")
        write(aside)
        aside.rename(file)


def measure_quality(
    llama: Llama, bundle: Bundle, files: Sequence[Path], evaluation: Evaluation, threads: int, say: Say
) -> dict[str, Measured]:
    """Return how each file answers beside the bundle, by the file's name.

    Raises:
        SettingsError: The first file is of other weights than the bundle, or of more tokens.
    """
    runner = VisionLanguageRunner(bundle, RuntimeSettings(intra_threads=threads))
    num_tokens = bundle.manifest.decoder.vocab_size if bundle.manifest.decoder else 0
    parent: RecalledAnswers | None = None
    found: dict[str, Measured] = {}
    for file in files:
        say(f"{file.stem}: {counted(len(evaluation.questions), 'question')}")
        with closing(llama.open(file, _CONTEXT_TOKENS, threads)) as session:
            if session.vocab_size > num_tokens:
                raise SettingsError(
                    f"{file} knows {session.vocab_size} tokens, {bundle.directory} {num_tokens}: not of one model"
                )
            parent = parent or RecalledAnswers(runner, session.vocab_size)
            rival = LlamaAnswers(session, runner, bundle.manifest.eos_token_ids)
            found[file.stem] = measure_answers(
                parent, rival, evaluation.questions, lambda line: None, has_accuracy=not evaluation.no_accuracy
            )
        if file == files[0]:
            _require_one_model(file, bundle, found[file.stem])
    return found


def _require_one_model(file: Path, bundle: Bundle, found: Measured) -> None:
    loss = found.teacher_forced.kl_mean if found.teacher_forced else 0.0
    if loss > _MOST_KL:
        raise SettingsError(
            f"{file} and {bundle.directory} are not of the same weights: KL is {loss:.4g} nats a token, and at most "
            f"{_MOST_KL:g} comes of rounding. Export the bundle with --decoder-gguf of the same file."
        )


def speed_of(readings: Mapping[str, Sequence[Reading]], name: str, num_tokens: int) -> Speed:
    """Return a contestant's rate, and its ratio to the bundle's within each turn."""
    own, parents = readings[name], readings[PARENT]
    return Speed(
        per_second=Quartiles.of([num_tokens / reading.wall_ms * 1e3 for reading in own]),
        ratio=Quartiles.of_ratios([each.wall_ms for each in parents], [each.wall_ms for each in own]),
        processor_ratio=Quartiles.of_ratios(
            [each.processor_ms for each in parents], [each.processor_ms for each in own]
        ),
    )


def take_turns(bundle: Path, files: Sequence[Path], plan: Plan, say: Say) -> Readings:
    """Return the readings of the bundle and of each file, each in a process of its own, a first turn left out."""
    benches: list[tuple[str, Opening]] = [
        (PARENT, Bench(bundle, plan.stations, plan.threads, plan.steps)),
        *((file.stem, GgufBench(file, plan.stations, plan.threads, plan.steps)) for file in files),
    ]
    readings: dict[Station, Mapping[str, Sequence[Reading]]] = {}
    with ExitStack() as stack:
        contestants = {name: stack.enter_context(Contestant(bench)) for name, bench in benches}
        for contestant in contestants.values():
            contestant.variant()
        for station in plan.stations:
            say(f"{station.name}: {counted(plan.rounds, 'turn')} of {counted(len(contestants), 'contestant')}")
            works = {name: partial(contestant.run, station) for name, contestant in contestants.items()}
            readings[station] = Turns(warmup=1, repeats=plan.rounds).run(works)
    return readings


def compare(llama: Llama, bundle: Bundle, files: Sequence[Path], questions: Path | int, plan: Plan, say: Say) -> Rivals:
    """Return all figures of files beside a bundle; the first file is the float32 one.

    Args:
        llama: Runs the files.
        bundle: The fp32 parent.
        files: Of the same weights.
        questions: Samples without images; a number: so many of the built-in texts that variants are measured on.
        plan: How speed is measured.
        say: Called with a line at each step.

    Raises:
        SettingsError: Bundle and files are not of one model, or the questions have images.
        QuantizationError: The questions cannot be read.
    """
    manifest = bundle.manifest
    if manifest.decoder is None or manifest.is_gated is not None:
        raise SettingsError(f"{bundle.directory} is no fp32 bundle with a decoder; give the one that was exported")
    if isinstance(questions, int):
        evaluation = built_in_texts(bundle, "evaluation", questions)
    else:
        evaluation = read_samples(questions, manifest)
    measured = measure_quality(llama, bundle, files, evaluation, plan.threads, say)
    readings = take_turns(bundle.directory, files, plan, say) if plan.rounds else {}
    parity, *rivals = (
        rival_of(file, measured[file.stem], readings, plan).model_copy(
            update={"weight_error": weight_error(files[0], file)}
        )
        for file in files
    )
    return Rivals(
        system=SYSTEM,
        version=llama.version,
        parent=manifest.name,
        parent_sha256=manifest.source_sha256,
        evaluation=EvaluationFacts(source=evaluation.source, num_samples=evaluation.num_samples),
        speed=speed_facts(readings, plan) if readings else None,
        parity=parity,
        rivals=tuple(rivals),
        machine=this_machine(_PACKAGES),
    )


def speed_facts(readings: Readings, plan: Plan) -> SpeedFacts:
    """Return how speeds were measured, and the bundle's own."""
    prefill, decode = (speed_of(readings[each], PARENT, num) for each, num in plan.tokens_of.items())
    return SpeedFacts(
        threads=plan.threads,
        prompt_tokens=plan.prompt_tokens,
        cached_tokens=plan.cached_tokens,
        steps=plan.steps,
        rounds=plan.rounds,
        parent_prefill=prefill.per_second,
        parent_decode=decode.per_second,
    )


def rival_of(file: Path, measured: Measured, readings: Readings, plan: Plan) -> Rival:
    """Return one file's figures.

    Raises:
        SettingsError: Nothing was measured with answers fed.
    """
    if measured.teacher_forced is None or measured.replies is None:
        raise SettingsError(f"{file}: the questions gave no figures")
    speeds = [speed_of(readings[each], file.stem, num) for each, num in plan.tokens_of.items() if readings]
    prefill, decode = speeds or (None, None)
    return Rival(
        name=file.stem,
        weight_bytes=weight_bytes(file),
        file_bytes=file.stat().st_size,
        teacher_forced=measured.teacher_forced,
        replies=measured.replies,
        tasks=measured.tasks,
        prefill=prefill,
        decode=decode,
    )


def print_rivals(found: Rivals, console: Console) -> None:
    """Print the figures as a table, with what they were measured on."""
    console.print(_table(found))
    first, machine = found.parity.teacher_forced, found.machine
    console.print(
        f"[dim]{found.system} ({found.version}) against {found.parent}: {counted(first.num_samples, 'question')} of "
        f"{found.evaluation.source}, {counted(first.num_tokens, 'answer token')}. {machine.cpu}, "
        f"{counted(machine.cores, 'core')}[/dim]"
    )
    if speed := found.speed:
        console.print(
            f"[dim]{counted(speed.rounds, 'turn')}, {counted(speed.threads, 'thread')} each; x fp32: times the "
            f"{number(speed.parent_decode.median)} tokens/s of the bundle behind {speed.cached_tokens} tokens, and its "
            f"{number(speed.parent_prefill.median)} tokens/s of a prompt of {speed.prompt_tokens}[/dim]"
        )


def _table(found: Rivals) -> Table:
    table = Table(title=f"{found.system} beside {found.parent} in fp32", pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("file", "MB", "KL mean", "p99", "top-1", "replies", "decode, x fp32", "prefill"):
        table.add_column(head, no_wrap=True, justify="left" if head == "file" else "right")
    for rival in (found.parity, *found.rivals):
        forced = rival.teacher_forced
        table.add_row(
            rival.name,
            f"{rival.weight_bytes / 1e6:.1f}",
            f"{forced.kl_mean:.4f}",
            f"{forced.kl_p99:.3f}",
            f"{forced.top1_agreement:.1%}",
            f"{rival.replies.identical:.0%}",
            str(rival.decode.ratio) if rival.decode else "",
            f"{rival.prefill.ratio.median:.2f}" if rival.prefill else "",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the module's own command line; return the exit code."""
    options = _parser().parse_args(arguments)
    told = Console(stderr=True, highlight=False)
    try:
        plan = Plan(options.threads, options.prompt_tokens, options.cached_tokens, options.steps, options.rounds)
        llama = NativeLlama()
        bundle = open_bundle(options.bundle)
        with tempfile.TemporaryDirectory() as scratch:
            into = options.into or Path(scratch)
            files = make_files(llama, options.gguf, options.types, into, plan.threads, told.print)
            questions = options.questions or options.texts
            found = compare(llama, bundle, [*files, *options.also], questions, plan, told.print)
        print_rivals(found, Console(highlight=False))
        if options.json:
            write_rivals(found, options.json)
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    plan = Plan()
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.llama_cpp",
        description="llama.cpp's types beside an fp32 bundle of the same weights: quality, bytes, speed in turns.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", type=Path, help="fp32 bundle, exported with --decoder-gguf GGUF or from the same weights")
    add("gguf", type=Path, help="the decoder; of whatever type, it is restored to float32 first")
    add("--questions", type=Path, help="JSONL without images, as --eval of quantize; else the built-in texts")
    add("--texts", type=int, default=MOST_TEXTS, help="built-in ones, where no questions are named")
    add("--types", nargs="*", default=TYPES, help="made by llama.cpp's quantizer from the float32 weights")
    add("--also", type=Path, nargs="*", default=[], help="other GGUF files of the same weights")
    add("--into", type=Path, help="keep the files in this folder, and take what is there already")
    add("--json", type=Path, help="write the figures here, for pocketvlm report --rivals")
    add("--threads", type=int, default=num_usable_cores(), help="of each contestant")
    add("--prompt-tokens", type=int, default=plan.prompt_tokens, help="of a prefill")
    add("--cached-tokens", type=int, default=plan.cached_tokens, help="before each decoded token")
    add("--steps", type=int, default=plan.steps, help="tokens decoded in a turn")
    add("--rounds", type=int, default=plan.rounds, help="turns; 0 measures no speed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
