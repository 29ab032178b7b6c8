"""The structure that a request asks for, compiled before its prompt is run, on a thread that does nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable

from bundle.errors import MachineError, OverloadedError, ParameterError
from serving.engine.sampling.constraint import Constraint
from serving.engine.sampling.grammar import Compiled, Grammars
from serving.models.crew import Crew
from serving.protocol import Structure

ALONE_S = 3.0
"""What may be compiled takes no longer where nothing else runs."""
COMPILE_TIMEOUT_S = 10.0
"""With the time behind others' structures."""


class CompiledStructure:
    """What every choice of a request is held to.

    Args:
        grammars: Of the model.
        compiled: At an answer's beginning.
        param: The field of the request, for errors.

    Attributes:
        lead: May stand before each choice, and is no part of its text.
    """

    def __init__(self, grammars: Grammars, compiled: Compiled, param: str) -> None:
        self._grammars = grammars
        self._matchers = list(compiled.matchers)
        self._param = param
        self.lead = compiled.lead

    def constraint(self) -> Constraint:
        """Return a fresh answer's constraint; as often as it was compiled for."""
        return self._grammars.constraint(self._matchers.pop(), self._param)


async def compiled_structure(
    crew: Crew, owner: Hashable, grammars: Grammars, structure: Structure | None, num_choices: int
) -> CompiledStructure | None:
    """Return a structure compiled; None where a request asks for none, or for one that may be left out and must be.

    Args:
        crew: Compiles.
        owner: The request: requests take turns.
        grammars: Of the model.
        structure: What is asked for.
        num_choices: Answers that are to have it.

    Raises:
        ParameterError: llguidance cannot express it, or it takes too long.
        OverloadedError: Others' took so long that it was hardly begun, one that may be left out as well.
    """
    if structure is None:
        return None
    try:
        return await _compiled(crew, owner, grammars, structure, num_choices)
    except (ParameterError, MachineError):
        if structure.is_optional:
            return None
        raise


async def _compiled(
    crew: Crew, owner: Hashable, grammars: Grammars, structure: Structure, num_choices: int
) -> CompiledStructure:
    begun_s: list[float] = []

    def compiled() -> Compiled:
        begun_s.append(time.monotonic())
        return grammars.compiled(structure, num_choices)

    try:
        work = crew.run(owner, compiled)
        return CompiledStructure(grammars, await asyncio.wait_for(work, COMPILE_TIMEOUT_S), structure.param)
    except asyncio.TimeoutError as error:
        if not begun_s or time.monotonic() - begun_s[0] < ALONE_S:
            raise OverloadedError(
                f"{structure.param} waited {COMPILE_TIMEOUT_S:g} s behind structures of other requests. Retry after a "
                "while."
            ) from error
        raise ParameterError(
            f"{structure.param} was not compiled within {COMPILE_TIMEOUT_S:g} s; ask for a simpler structure",
            structure.param,
        ) from error
