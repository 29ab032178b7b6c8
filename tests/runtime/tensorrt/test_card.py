"""The card that decides what an engine is, told by the driver and by a board itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import runtime.tensorrt.card as card_module
from runtime.tensorrt.card import Card, card_here


@pytest.mark.parametrize(
    ("name", "board", "expected"),
    [
        ("NVIDIA H200", None, "NVIDIA H200, 9.0"),
        ("Orin (nvgpu)", "NVIDIA Jetson Orin Nano", "Orin (nvgpu) of NVIDIA Jetson Orin Nano, 9.0"),
        (None, None, "unknown, 9.0"),
    ],
)
def test_a_card_has_a_name_and_a_compute_capability(
    monkeypatch, name: str | None, board: str | None, expected: str
) -> None:
    closed: list[bool] = []
    device = SimpleNamespace(
        name=lambda: name,
        compute_capability=lambda: "9.0",
        driver_version=lambda: None,
        close=lambda: closed.append(True),
    )
    monkeypatch.setattr(card_module, "open_device", lambda: device)
    monkeypatch.setattr(card_module, "board_model", lambda: board)
    assert str(card_here()) == expected
    assert card_here().driver == "unknown"
    assert closed == [True, True]


def test_without_a_driver_a_board_names_itself(monkeypatch) -> None:
    monkeypatch.setattr(card_module, "open_device", lambda: None)
    monkeypatch.setattr(card_module, "board_model", lambda: "NVIDIA Jetson Orin Nano")
    assert card_here() == Card("NVIDIA Jetson Orin Nano")
