from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bundle.errors import SettingsError
from serving.ray_settings import ScalingSettings
from serving.settings import ServerSettings
from serving.settings_sources import load_settings


def write(folder: Path, text: str) -> Path:
    path = folder / "server.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_any_source_the_defaults_hold() -> None:
    assert load_settings(None, {}, {}) == ServerSettings()


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "port = 1\nhost = 'a'\nlog_level = 'error'\n[engine]\nmax_sequences = 2")
    environment = {"POCKETVLM_PORT": "2", "POCKETVLM_HOST": "b", "POCKETVLM_ENGINE__MAX_SEQUENCES": "3", "HOME": "/x"}
    settings = load_settings(file, environment, {"port": 3, "host": None, "engine.context_tokens": 64})
    assert (settings.port, settings.host, settings.log_level) == (3, "b", "error")
    assert (settings.engine.max_sequences, settings.engine.context_tokens) == (3, 64)


def test_nested_tables_reach_their_places(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "[ray.generator]\nmax_replicas = 5\n[api]\nmax_images = 1"))
    assert (settings.ray.generator.max_replicas, settings.ray.embedder.max_replicas) == (5, 2)
    assert settings.api.max_images == 1


CANARY = '[[ray.canaries]]\nname = "a"\nvariants = [{{model = "m", weight = {}}}, {{model = "n", weight = {}}}]'


@pytest.mark.parametrize(
    ("text", "environment", "flags", "named"),
    [
        ("prot = 1", {}, {}, "prot"),
        ("[api]\nmax_image = 1", {}, {}, "api.max_image"),
        ("", {"POCKETVLM_PROT": "1"}, {}, "prot"),
        ("", {"POCKETVLM_API__MAX_IMAGE": "1"}, {}, "api.max_image"),
        ("", {}, {"engine.slots": 1}, "engine.slots"),
        ("port = 99999", {}, {}, "port = 99999"),
        ("", {"POCKETVLM_PORT": "eighty"}, {}, "port = 'eighty'"),
        ("log_level = 'loud'", {}, {}, "log_level = 'loud'"),
        ("[api]\nmax_image_bytes = 20971521", {}, {}, "api.max_image_bytes = 20971521"),
        ("[ray.generator]\nmin_replicas = 3", {}, {}, "max_replicas 2 is below min_replicas 3"),
        ("[ray.generator]\nmax_ongoing_requests = 2", {}, {}, "below target_ongoing_requests 8"),
        (
            "[ray.generator]\nmin_replicas = 0\nmax_held_requests = 0",
            {},
            {},
            "would bring the first replica is refused",
        ),
        ("[ray.generator]\nmin_replicas = 0\nmax_queued_requests = 8", {}, {}, "32 is above max_queued_requests 8"),
        ("[ray.generator]\nnum_gpus = 1.5", {}, {}, "whole GPUs, or a part of one"),
        ("[ray.generator.targets]\ncache_share = 0", {}, {}, "greater than 0"),
        (CANARY.format(90, 20), {}, {}, r"canary a: the weights 90 \+ 20 sum to 110"),
        (CANARY.format(100, 0).replace('"n"', '"m"'), {}, {}, "variant m is there twice"),
        ('[[ray.canaries]]\nname = "a"\nvariants = [{model = "m", weight = 100}]', {}, {}, "at least 2"),
        ("port = 1", {"POCKETVLM_PORT__X": "1"}, {}, "port is a value"),
        ("", {}, {"api.prefix_folder": Path(__file__)}, "is no folder"),
    ],
)
def test_a_wrong_setting_is_named(
    tmp_path: Path, text: str, environment: dict[str, str], flags: dict[str, object], named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        load_settings(write(tmp_path, text), environment, flags)


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        (
            "",
            {"POCKETVLM_API_MAX_IMAGES": "1"},
            "variable POCKETVLM_API_MAX_IMAGES: api_max_images is no setting of the server; "
            "did you mean POCKETVLM_API__MAX_IMAGES?",
        ),
        (
            "[api]\nmax_image = 1",
            {},
            "settings file {file}: api.max_image is no setting of the server; did you mean api.max_images?",
        ),
        (
            "",
            {"POCKETVLM_FOO": "1"},
            "variable POCKETVLM_FOO: foo is no setting of the server; see pocketvlm serve --help and "
            "docs/architecture.md",
        ),
        (
            "port = 1\n[ray.generator]\nmin_replicas = 3",
            {"POCKETVLM_RAY__GENERATOR__MAX_REPLICAS": "1", "POCKETVLM_PORT": "2"},
            "settings file {file}, variable POCKETVLM_RAY__GENERATOR__MAX_REPLICAS: settings ray.generator: "
            "max_replicas 1 is below min_replicas 3",
        ),
        (
            "api = 1",
            {},
            "settings file {file}: api is a table of settings, not a value such as 1",
        ),
        (
            "api = 1",
            {"POCKETVLM_API__MAX_IMAGES": "1"},
            "variable POCKETVLM_API__MAX_IMAGES: api is a value, not a table of settings, in settings file {file}",
        ),
    ],
)
def test_a_wrong_setting_is_told_with_where_it_was_read(
    tmp_path: Path, text: str, environment: dict[str, str], message: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(SettingsError) as error:
        load_settings(file, environment)
    assert str(error.value) == message.format(file=file)


def test_the_source_of_a_replaced_value_is_the_one_that_replaced_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^variable POCKETVLM_PORT: setting port = '0x1'"):
        load_settings(write(tmp_path, "port = 1"), {"POCKETVLM_PORT": "0x1"})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.toml cannot be read: No such file"):
        load_settings(tmp_path / "absent.toml")
    with pytest.raises(SettingsError, match="is not TOML"):
        load_settings(write(tmp_path, "port ="))


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ServerSettings().port = 1  # type: ignore[misc]


def test_a_replica_can_hold_the_load_that_adds_another() -> None:
    scaling = ScalingSettings()
    assert scaling.max_ongoing_requests > scaling.target_ongoing_requests


@pytest.mark.parametrize("text", ["512MiB", "536870912", " 0.5 GiB", "524288KiB"])
def test_memory_is_a_number_or_a_text_with_a_unit(text: str) -> None:
    assert load_settings(flags={"engine.kv_memory_bytes": text}).engine.kv_memory_bytes == 512 << 20


@pytest.mark.parametrize("text", ["much", "-5", "5 tons", ""])
def test_memory_that_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(SettingsError, match=r"engine\.kv_memory_bytes"):
        load_settings(flags={"engine.kv_memory_bytes": text})


def test_a_kv_policy_is_given_with_its_budget() -> None:
    engine = load_settings(flags={"engine.kv_policy": "snapkv", "engine.kv_budget": 0.2}).engine
    assert (engine.kv_policy, engine.kv_budget) == ("snapkv", 0.2)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"engine.kv_policy": "snapkv"}, r"^flag engine\.kv_policy: .*kv_policy snapkv without kv_budget"),
        (
            {"engine.kv_budget": 0.2, "engine.intra_threads": 1},
            r"^flag engine\.kv_budget: settings engine: kv_budget 0\.2 without kv_policy.*both or neither",
        ),
        ({"engine.kv_policy": "best", "engine.kv_budget": 0.2}, "'best' is none of random, uniform"),
        ({"engine.kv_policy": "snapkv", "engine.kv_budget": 0.0}, r"engine\.kv_budget = 0\.0"),
        ({"engine.kv_policy": "snapkv", "engine.kv_budget": 1.1}, r"engine\.kv_budget = 1\.1"),
    ],
)
def test_a_kv_policy_or_budget_that_means_nothing_is_refused(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings(flags=flags)
