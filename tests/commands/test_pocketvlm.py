"""The entry: what every subcommand says of itself, and how a call ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer.main
from rich.text import Text

import serving.doctor
from bundle.errors import SettingsError
from commands.app import app
from commands.bench import bench
from loadtests.latency import BenchmarkPlan

SUBCOMMANDS = (
    *("adopt", "ask", "bench", "chat", "compile", "compression", "demo", "deploy", "doctor"),
    *("embed", "evaluate", "export", "index", "inspect", "keys", "loadtest", "models", "quantize"),
    *("replay", "report", "run", "search", "serve", "sync", "top"),
)


def test_the_subcommands_are_these() -> None:
    command: Any = typer.main.get_command(app)
    assert set(command.commands) == set(SUBCOMMANDS)


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_every_subcommand_explains_itself(pocketvlm, subcommand: str) -> None:
    done = pocketvlm(subcommand, "--help")
    assert done.returncode == 0
    assert "--help" in done.stdout


def test_no_word_of_a_help_text_is_taken_for_markup() -> None:
    """Rich prints nothing of [words] that it takes for a style; a backslash before the bracket keeps them."""
    command: Any = typer.main.get_command(app)
    texts = [param.help for sub in command.commands.values() for param in sub.params if getattr(param, "help", None)]
    assert any("[" in text for text in texts)
    assert [text for text in texts if Text.from_markup(text).plain != text.replace("\\[", "[")] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "nowhere/at-all/here", "-o", "{out}"], "nowhere/at-all/here"),
        (["export", "{vlm}", "-o", "{out}", "--keep-quantized"], "--decoder-gguf FILE"),
        (
            ["export", "{vlm}", "-o", "{out}", "--keep-quantized", "--decoder-gguf", "d", "--dialect", "portable"],
            "wants --dialect contrib, not portable",
        ),
        (["inspect", "{out}"], "is not a bundle"),
        (["run", "{vlm}", "--image", "absent.png", "hi"], "absent.png"),
        (["run", "{clip}", "hi"], "dual-encoder"),
        (["embed", "{vlm}", "--text", "hi"], "image-text-to-text"),
        (["quantize", "{vlm}", "-o", "{out}", "--weights", "int8", "--eval", "{out}.jsonl"], "out.jsonl"),
        (["bench", "{out}"], "is not a bundle"),
        (["serve", "{vlm}", "--config", "{out}.toml"], "out.toml"),
        (["loadtest", "http://192.0.2.1:8000"], "--allow-remote"),
    ],
)
def test_a_mistake_is_one_line_naming_it(
    pocketvlm, arguments: list[str], words: str, tmp_path: Path, smolvlm_bundle: Path, clip_bundle: Path
) -> None:
    names = {"out": tmp_path / "out", "vlm": smolvlm_bundle, "clip": clip_bundle}
    done = pocketvlm(*(argument.format(**names) for argument in arguments))
    assert done.returncode == 1
    assert sum(line.startswith("error:") for line in done.stderr.splitlines()) == 1
    assert words in done.stderr


def test_a_wrong_command_line_is_exit_code_two(pocketvlm) -> None:
    assert pocketvlm("run").returncode == 2
    assert pocketvlm("export", "x", "-o", "y", "--dialect", "french").returncode == 2
    assert pocketvlm("embed", "x").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quantize", "{vlm}", "-o", "{out}", "--weights", "int3"], "unknown weights 'int3'; known: fp32"),
        (["quantize", "{vlm}", "-o", "{out}", "--weights", "int8", "--limit", "kl=1"], "no gate measures kl"),
        (["quantize", "{vlm}", "-o", "{out}"], "--weights fp32 changes nothing; name one of fp16, int8"),
        (["quantize", "{vlm}", "-o", "{out}", "--kv-cache", "int2"], "'int2' is not one of 'int8', 'int4'"),
        (["bench", "{vlm}", "--repeats", "2"], "greater than or equal to 3"),
        (["bench", "{vlm}", "--batch-size", "0"], "--batch-size"),
        (["loadtest", "127.0.0.1:1"], "is not http://HOST[:PORT]"),
        (["loadtest", "http://127.0.0.1:1", "--mix", "chat"], "must be a whole number"),
        (["loadtest", "http://127.0.0.1:1", "--objective", "speed<5"], "no metric 'speed'"),
        (["loadtest", "http://127.0.0.1:1", "--users", "2"], "users 2 is out of range: it may be 3 to 1,000"),
        (["run", "{vlm}", "hi", "--image", "s3://bucket/a.png"], "images come from files, from http and https"),
        (["run", "{vlm}", "hi", "--image", "data:image/png;base64," + "A" * 5000], "images come from files"),
        (["run", "{vlm}", ""], "the question needs a text of at least one character"),
        (["run", "{vlm}", "hi", "--top-p", "0"], "top_p is 0.0; it must be above 0"),
        (["run", "{vlm}", "hi", "--seed", "-1"], "--seed"),
        (["run", "{vlm}", "\udcff"], "the question is not UTF-8"),
        (["embed", "{clip}", "--text", ""], "--text needs a text of at least one character"),
        (["embed", "{clip}"], "give at least one --image or --text"),
    ],
)
def test_a_value_that_a_flag_does_not_take_is_told_and_is_exit_code_two(
    pocketvlm, arguments: list[str], words: str, tmp_path: Path, smolvlm_bundle: Path, clip_bundle: Path
) -> None:
    names = {"out": tmp_path / "out", "vlm": smolvlm_bundle, "clip": clip_bundle}
    done = pocketvlm(*(argument.format(**names) for argument in arguments))
    told = " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode == 2, done.stderr
    assert words in told
    assert len(told) < 1000


def test_every_option_tells_its_default() -> None:
    """By typer's own line, or in words; a flag without a value is off."""
    command: Any = typer.main.get_command(app)
    silent = [
        f"{name} {option.opts[0]}"
        for name, sub in command.commands.items()
        for option in sub.params
        if option.param_type_name == "option" and not (option.required or option.is_flag or option.name == "help")
        if option.default is None and "Default" not in (option.help or "")
    ]
    assert silent == []


def test_bench_takes_what_its_help_says_it_takes() -> None:
    """The bounds of the command line are those of the work itself."""
    hints = get_type_hints(bench, include_extras=True)
    names = ("prompt_tokens", "output_tokens", "image_px", "repeats", "threads")
    for name in names:
        option = hints[name].__metadata__[0]
        for end in (option.min, option.max):
            BenchmarkPlan(**{name: end})
        for beyond in (option.min - 1, option.max + 1):
            with pytest.raises(SettingsError, match="out of range"):
                BenchmarkPlan(**{name: beyond})


def test_an_interrupted_command_is_exit_code_130(pocketvlm, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serving.doctor, "diagnose", interrupted)
    assert pocketvlm("doctor").returncode == 130


def test_square_brackets_in_a_message_are_printed_as_they_are(pocketvlm) -> None:
    done = pocketvlm("inspect", "x[/red][quant]")
    assert done.returncode == 1
    assert "x[/red][quant] is not a bundle" in done.stderr


def test_an_error_that_nobody_foresaw_keeps_its_traceback(pocketvlm, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ModuleNotFoundError("No module named 'bundle.nothing'", name="bundle.nothing")

    monkeypatch.setattr(serving.doctor, "diagnose", broken)
    with pytest.raises(ModuleNotFoundError):
        pocketvlm("doctor")


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("onnxscript", "export", ["export", "{checkpoint}", "-o", "{out}"]),
        ("gguf", "export", ["export", "{checkpoint}", "-o", "{out}", "--decoder-gguf", "decoder.gguf"]),
        ("uvicorn", "serve", ["serve", "{bundle}"]),
        ("uvicorn", "serve", ["serve"]),
        ("ray", "ray", ["deploy"]),
        ("ray", "ray", ["deploy", "{bundle}"]),
        ("onnxruntime", "cpu", ["run", "{bundle}", "hi"]),
    ],
)
def test_a_missing_package_is_one_line_that_says_how_to_install_it(
    process, module: str, extra: str, arguments: list[str], tmp_path: Path, smolvlm_checkpoint: Path, smolvlm_bundle
) -> None:
    names = {"out": tmp_path / "out", "checkpoint": smolvlm_checkpoint, "bundle": smolvlm_bundle}
    done = process(*(argument.format(**names) for argument in arguments), without=(module,))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert f"this command needs {module}" in line or "running a bundle needs" in line
    assert f"pip install -e '.[{extra}]' in a checkout of PocketVLM" in line


def test_the_installed_command_is_the_module(process) -> None:
    script = Path(sys.executable).with_name("pocketvlm")
    if not script.is_file():
        pytest.skip("PocketVLM is not installed beside this Python")
    assert "from pocketvlm import main" in script.read_text(encoding="utf-8")
    done = process("inspect", "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: nowhere is not a bundle")
