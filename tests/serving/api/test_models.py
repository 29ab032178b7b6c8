"""Loading and unloading at run time: who may, and what may be named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import BundleFileError, OutOfMemoryError, SettingsError
from serving.access.keys import ApiKey, digest_of
from serving.access.settings import AccessSettings
from serving.api.app import create_app
from serving.api.openapi import ROUTES
from serving.fake import FakeClient
from serving.settings import ApiSettings
from serving.settings_sources import load_settings

LOAD, UNLOAD = "/v1/models/load", "/v1/models/unload"
PLAIN, ADMIN = "pvlm-plain-0123456789", "pvlm-admin-0123456789"
KEYS = (
    ApiKey(name="plain", sha256=digest_of(PLAIN.encode())),
    ApiKey(name="admin", sha256=digest_of(ADMIN.encode()), admin=True),
)
AS_ADMIN = {"Authorization": f"Bearer {ADMIN}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of bundles, as far as their names go, and one beside it."""
    folder = tmp_path / "models"
    for bundle in (folder / "late", folder / "below" / "deep", tmp_path / "outside"):
        bundle.mkdir(parents=True)
        (bundle / "manifest.json").touch()
    (folder / "empty").mkdir()
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "inner").symlink_to(folder / "late")
    return folder


@pytest.fixture
def api(engine: FakeClient, folder: Path, make_caller: Callable[..., Any]) -> Any:
    access = AccessSettings(keys=KEYS, models_dir=folder)
    return type(make_caller())(create_app(engine, ApiSettings(access=access), control=engine))


def names(api: Any) -> list[str]:
    return [card["id"] for card in api.get("/v1/models", headers=AS_ADMIN).json()["data"]]


def test_a_model_is_loaded_answers_and_is_unloaded(api: Any, ask: Callable[..., Any]) -> None:
    loaded = api.post(LOAD, {"model": "late"}, headers=AS_ADMIN)
    assert (loaded.status_code, loaded.json()["id"], loaded.json()["capabilities"]["chat"]) == (200, "late", True)
    assert names(api) == ["fake-vlm", "fake-clip", "late"]
    chat = {**ask(), "model": "late"}
    assert api.post("/v1/chat/completions", chat, headers=AS_ADMIN).status_code == 200
    unloaded = api.post(UNLOAD, {"model": "late"}, headers=AS_ADMIN)
    for path, answer in ((LOAD, loaded), (UNLOAD, unloaded)):
        assert path in api.get("/openapi.json").json()["paths"]
        described = ROUTES[path].answer
        assert described is not None
        described.model_validate_json(answer.text, strict=True)
    assert unloaded.json() == {"id": "late", "object": "model", "unloaded": True}
    assert api.post("/v1/chat/completions", chat, headers=AS_ADMIN).status_code == 404


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
def test_without_an_administrators_key_nothing_changes(api: Any, path: str) -> None:
    for headers, status in (({}, 401), ({"x-api-key": PLAIN}, 403), ({"x-api-key": "wrong"}, 401)):
        assert api.post(path, {"model": "fake-vlm"}, headers=headers).status_code == status
    assert names(api) == ["fake-vlm", "fake-clip"]


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        ("../outside", 400, "not within the folder"),
        ("late/../../outside", 400, "not within the folder"),
        ("link", 400, "not within the folder"),
        ("/etc", 400, "not within the folder"),
        (".", 400, "not within the folder"),
        ("", 400, "not within the folder"),
        ("a\0b", 400, "no folder's name"),
        ("x" * 300, 400, "256"),
        ("empty", 404, "no bundle 'empty' in the folder of models; there are: inner, late, link"),
        ("nowhere", 404, "no bundle 'nowhere'"),
    ],
)
def test_only_bundles_of_the_operators_folder_are_loaded(api: Any, name: str, status: int, told: str) -> None:
    answer = api.post(LOAD, {"model": name}, headers=AS_ADMIN)
    assert (answer.status_code, told in answer.json()["error"]["message"]) == (status, True), answer.text
    assert answer.json()["error"]["param"] == "model"
    assert "/tmp" not in answer.text  # where the folder lies is nobody's business
    assert names(api) == ["fake-vlm", "fake-clip"]


@pytest.mark.parametrize("name", ["below/deep", "inner"])
def test_a_bundle_may_lie_deeper_or_behind_a_link_that_stays_within(api: Any, name: str) -> None:
    assert api.post(LOAD, {"model": name}, headers=AS_ADMIN).status_code == 200


def test_what_is_wrong_with_a_bundle_is_told_as_at_a_start(api: Any, engine: FakeClient) -> None:
    async def refuse(directory: Path) -> Any:
        raise BundleFileError("decoder.onnx was altered")

    async def lack(directory: Path) -> Any:
        raise OutOfMemoryError("too little memory")

    engine.load = refuse  # type: ignore[method-assign]
    answer = api.post(LOAD, {"model": "late"}, headers=AS_ADMIN)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "model late: decoder.onnx was altered")
    engine.load = lack  # type: ignore[method-assign]
    assert api.post(LOAD, {"model": "late"}, headers=AS_ADMIN).status_code == 503


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        (LOAD, {}, "model"),
        (LOAD, {"model": 3}, "model"),
        (LOAD, {"model": "late", "path": "/etc"}, "path"),
        (UNLOAD, {"model": "fake-vlm", "drain_timeout_s": -1}, "drain_timeout_s"),
        (UNLOAD, {"model": "fake-vlm", "drain_timeout_s": 1e9}, "drain_timeout_s"),
    ],
)
def test_a_wrong_body_is_named(api: Any, path: str, body: dict[str, Any], named: str) -> None:
    answer = api.post(path, body, headers=AS_ADMIN)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, named)
    assert names(api) == ["fake-vlm", "fake-clip"]


def test_loading_what_is_served_and_unloading_what_is_not_are_refused(api: Any) -> None:
    api.post(LOAD, {"model": "late"}, headers=AS_ADMIN)
    assert "is served already" in api.post(LOAD, {"model": "late"}, headers=AS_ADMIN).json()["error"]["message"]
    assert api.post(UNLOAD, {"model": "nobody"}, headers=AS_ADMIN).status_code == 404


def test_without_a_folder_there_are_no_such_routes(engine: FakeClient, make_caller: Callable[..., Any]) -> None:
    api = type(make_caller())(create_app(engine, ApiSettings(access=AccessSettings(keys=KEYS)), control=engine))
    assert api.post(LOAD, {"model": "late"}, headers=AS_ADMIN).status_code in (404, 405)
    assert LOAD not in api.get("/openapi.json").json()["paths"]


def test_a_folder_of_models_wants_keys(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nobody is asked for a key"):
        load_settings(None, {}, {"api.access.models_dir": folder})
    with pytest.raises(SettingsError, match="is no folder"):
        load_settings(None, {"POCKETVLM_ADMIN_KEYS": ADMIN}, {"api.access.models_dir": tmp_path / "none"})
    assert load_settings(None, {"POCKETVLM_ADMIN_KEYS": ADMIN}, {"api.access.models_dir": folder})
