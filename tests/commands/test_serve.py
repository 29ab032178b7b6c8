"""`pocketvlm serve` where it refuses; what it serves is held in tests/serving."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from commands.serve import provider_flags
from serving.edge import serve as edge
from serving.settings import ServerSettings
from serving.settings_sources import load_settings


def test_a_folder_that_is_no_bundle_ends_it_with_one_line(process, tmp_path: Path) -> None:
    done = process("serve", tmp_path, "--port", 0)
    assert done.returncode == 1
    assert sum(line.startswith("error:") for line in done.stderr.splitlines()) == 1
    assert "is not a bundle" in done.stderr


def test_a_variant_without_a_measured_quality_is_inspected_but_not_served(
    pocketvlm, process, clip_bundle: Path, tmp_path: Path
) -> None:
    variant = tmp_path / "int8"
    made = pocketvlm("quantize", clip_bundle, "-o", variant, "--weights", "int8", "--no-evaluate", "--no-tune")
    assert made.returncode == 0, made.stderr
    assert "never measured on samples" in pocketvlm("inspect", variant).stdout
    served = process("serve", variant, "--port", 0)
    assert served.returncode == 1
    assert "was never measured on samples" in served.stderr
    assert "--allow-ungated" in served.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no device that is always full")
def test_a_full_disk_under_its_log_stops_no_server(clip_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "pocketvlm", "serve", str(clip_bundle), "--port", str(port)]
    with open("/dev/full", "w") as full, subprocess.Popen(command, stdout=full, stderr=full) as process:
        try:
            assert is_ready(process, f"http://127.0.0.1:{port}/health/ready")
            time.sleep(0.5)  # in which a line on stdout that failed would have ended it
            assert is_ready(process, f"http://127.0.0.1:{port}/health/ready")
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def is_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    deadline_s = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            with urlopen(url, timeout=5) as response:
                return response.status == 200
        except OSError:
            time.sleep(0.1)
    return False


def test_a_path_that_is_no_bundle_is_refused_before_the_port_is_opened(
    pocketvlm: Callable, clip_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(edge, "serve", lambda *arguments: pytest.fail("the server was started"))
    done = pocketvlm("serve", clip_bundle, tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: {tmp_path} is not a bundle: it holds no manifest.json. "
        "Make one with: pocketvlm export CHECKPOINT -o BUNDLE"
    ]


def test_flags_become_settings(pocketvlm: Callable, clip_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[ServerSettings] = []
    monkeypatch.setattr(edge, "serve", lambda bundles, settings, announce: served.append(settings))
    flags = ["--log-level", "error", "--drain-timeout-s", 7, "--provider", "cuda", "--kv-memory", "512MiB"]
    done = pocketvlm("serve", clip_bundle, *flags)
    assert done.returncode == 0, done.stderr
    assert (served[0].log_level, served[0].drain_timeout_s) == ("error", 7)
    assert (served[0].engine.provider, served[0].engine.kv_memory_bytes) == ("cuda", 512 << 20)


def test_the_defaults_that_help_names_are_the_settings(pocketvlm: Callable) -> None:
    told = " ".join(pocketvlm("serve", "--help").stdout.replace("│", " ").split())
    settings = ServerSettings()
    for default in (settings.host, settings.port, settings.log_level, settings.drain_timeout_s):
        assert f"Default: {default}." in told


@pytest.mark.parametrize("command", ["serve", "deploy"])
def test_a_cache_that_cannot_be_written_is_told_with_what_can_be_done(
    pocketvlm: Callable, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    done = pocketvlm(command)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"{tmp_path / 'file' / 'pocketvlm'}, which cannot be written: Not a directory" in line
    assert "Set XDG_CACHE_HOME" in line
    assert " -o" not in line


def test_tensorrts_providers_run_on_cudas_device() -> None:
    settings = load_settings(flags=provider_flags("tensorrt-rtx"))
    assert (settings.engine.provider, settings.engine.device_runtime) == ("cuda", "tensorrt-rtx")
    assert load_settings(flags=provider_flags("cuda")).engine.device_runtime == "cuda"
    assert load_settings(flags=provider_flags(None)).engine.provider == "cpu"


def test_traces_without_the_extra_are_refused_before_anything_is_loaded(process, clip_bundle: Path) -> None:
    arguments = ("serve", clip_bundle, "--port", 0, "--otlp-traces-endpoint", "http://127.0.0.1:1/v1/traces")
    done = process(*arguments, without=("opentelemetry.exporter",))
    assert done.returncode == 1
    assert "this command needs opentelemetry.exporter" in done.stderr
    assert "[tracing]" in done.stderr
