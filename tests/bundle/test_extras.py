"""The table of extras is pyproject.toml's, and what it advises works."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bundle.extras import MODULES_OF_EXTRA, extra_of, install_line

ROOT = Path(__file__).resolve().parents[2]
tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML parser")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
UNUSED = {"optimum", "llguidance"}
"""In pyproject.toml for what comes; nothing imports them, so nobody is told to install them."""


def distributions_of(extra: str) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in EXTRAS[extra]}


def test_every_extra_that_something_uses_is_listed() -> None:
    assert set(MODULES_OF_EXTRA) == set(EXTRAS) - {"gpu", "dev"} - UNUSED


@pytest.mark.parametrize("extra", MODULES_OF_EXTRA)
def test_an_extra_installs_the_modules_that_it_is_said_to_bring(extra: str) -> None:
    homes = metadata.packages_distributions()
    for module in MODULES_OF_EXTRA[extra]:
        if module not in homes:
            pytest.skip(f"{module} is not installed here")
        assert {canonicalize_name(home) for home in homes[module]} & distributions_of(extra), module


@pytest.mark.parametrize("extra", MODULES_OF_EXTRA)
def test_every_distribution_of_an_extra_is_found_by_some_module(extra: str) -> None:
    homes = metadata.packages_distributions()
    listed = {module for modules in MODULES_OF_EXTRA.values() for module in modules}
    found = {canonicalize_name(home) for module in listed for home in homes.get(module, ())}
    installed = {canonicalize_name(home) for names in homes.values() for home in names}
    assert (distributions_of(extra) & installed) - UNUSED <= found


def test_a_module_stands_once() -> None:
    modules = [module for listed in MODULES_OF_EXTRA.values() for module in listed]
    assert len(modules) == len(set(modules))


def test_a_submodule_belongs_to_the_extra_of_its_package() -> None:
    assert extra_of("prometheus_client.exposition") == extra_of("prometheus_client") == "serve"


def test_a_module_that_no_extra_brings_has_none() -> None:
    assert extra_of("numpy") is None
    assert extra_of("") is None


def test_the_install_line_names_a_folder_and_no_index() -> None:
    assert install_line("gpu") == "pip install -e '.[gpu]' in a checkout of PocketVLM"
