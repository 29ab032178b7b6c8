"""A structure that is late: because of itself, or because of others'."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from bundle.errors import OverloadedError, ParameterError
from serving.engine.sampling.grammar import Grammars
from serving.models import structures
from serving.models.crew import Crew
from serving.models.structures import compiled_structure
from serving.protocol import Structure
from serving.watch import Patience

NEEDED = Structure("regex", "a", "guided_regex")
OPTIONAL = Structure("tools", "{}", "tools", is_optional=True)


class Endless:
    """Compiles until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def compiled(self, structure: Structure, count: int = 1) -> Any:
        self.go.wait(30)
        raise ParameterError("nobody waits for this", structure.param)


@pytest.fixture
def endless() -> Iterator[Endless]:
    endless = Endless()
    yield endless
    endless.go.set()


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew("grammars-test", 2, Patience(60.0, 60.0))
    yield crew
    crew.close()


async def compiled(crew: Crew, endless: Endless, structure: Structure) -> Any:
    work = compiled_structure(crew, "r", cast(Grammars, endless), structure, 1)
    return await asyncio.wait_for(work, 20)


@pytest.mark.parametrize("structure", [NEEDED, OPTIONAL], ids=["needed", "optional"])
def test_one_that_only_waited_is_told_of_the_others(
    crew: Crew, endless: Endless, structure: Structure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structures, "COMPILE_TIMEOUT_S", 0.1)

    async def main() -> None:
        held = [asyncio.create_task(crew.run(f"other {each}", endless.go.wait, 30)) for each in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(
            OverloadedError, match=f"{structure.param} waited 0.1 s behind structures of other requests"
        ):
            await compiled(crew, endless, structure)
        endless.go.set()
        await asyncio.gather(*held)

    asyncio.run(main())


def test_one_that_was_hardly_begun_is_told_of_the_others_too(
    crew: Crew, endless: Endless, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structures, "COMPILE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(structures, "ALONE_S", 60.0)
    with pytest.raises(OverloadedError, match="behind structures of other requests"):
        asyncio.run(compiled(crew, endless, NEEDED))


def test_one_that_is_itself_too_slow_is_refused_or_left_out(
    crew: Crew, endless: Endless, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structures, "COMPILE_TIMEOUT_S", 2.0)  # in which a busy machine begins it
    monkeypatch.setattr(structures, "ALONE_S", 0.0)

    async def main() -> None:
        both = (compiled(crew, endless, structure) for structure in (NEEDED, OPTIONAL))
        refused, left_out = await asyncio.gather(*both, return_exceptions=True)
        assert isinstance(refused, ParameterError)
        assert "guided_regex was not compiled within 2 s; ask for a simpler structure" in refused.message
        assert left_out is None

    asyncio.run(main())
