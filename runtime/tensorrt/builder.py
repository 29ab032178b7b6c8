"""One engine, built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bundle.errors import MachineError, SettingsError
from runtime.tensorrt.library import Library
from runtime.tensorrt.monitor import build_monitor, held_signals
from runtime.tensorrt.network import Network
from runtime.tensorrt.profiles import Profile

Say = Callable[[str], None]
_CARDS = {
    87: "Jetson Orin",
    90: "Hopper",
    100: "Blackwell of data centres",
    103: "Blackwell of data centres",
    110: "Jetson Thor",
}
"""That TensorRT-RTX builds nothing for."""


def read_capability(text: str) -> int:
    """Return a compute capability as TensorRT counts it: "8.6" is 86.

    Raises:
        SettingsError: It is none.
    """
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and len(minor) == 1 and minor.isdecimal() and int(major) < 100):
        raise SettingsError(f"--compute-capability {text!r} is none; write it as NVIDIA does, such as 8.6")
    return 10 * int(major) + int(minor)


def check_capabilities(library: Library, capabilities: Sequence[int]) -> None:
    """Check that engines can be built for cards, before anything is.

    Raises:
        SettingsError: They cannot.
    """
    if not capabilities:
        return
    if library.flavour == "tensorrt":
        raise SettingsError(
            "--compute-capability: TensorRT builds for the card that it runs on. Leave it out and compile there, or "
            "take --target tensorrt-rtx"
        )
    members = library.module.ComputeCapability.__members__
    accepted = sorted(int(name[2:]) for name in members if name.startswith("SM"))
    if refused := [each for each in capabilities if each not in accepted]:
        card = f" ({_CARDS[refused[0]]})" if refused[0] in _CARDS else ""
        raise SettingsError(
            f"--compute-capability {written(refused[0])}{card}: {library.name} {library.version} builds for "
            f"{', '.join(map(written, accepted))}. For other cards compile on the card, with --target tensorrt"
        )


def written(capability: int) -> str:
    """Return a compute capability as NVIDIA writes it: 86 is "8.6"."""
    return f"{capability // 10}.{capability % 10}"


def build(network: Network, profiles: Sequence[Profile], capabilities: Sequence[int], say: Say) -> bytes:
    """Return an engine.

    Args:
        network: Parsed and checked.
        profiles: The sizes that it shall take.
        capabilities: Of cards, as TensorRT counts them; empty: as the builder sees fit.
        say: Told of each phase.

    Raises:
        MachineError: The builder cannot; the message is its own.
    """
    library = network.library
    config = network.builder.create_builder_config()
    _set_capabilities(library, config, capabilities)
    for profile in profiles:
        _add_profile(network, config, profile)
    with held_signals() as held:
        config.progress_monitor = build_monitor(library.module, say, held)
        engine = network.builder.build_serialized_network(network.definition, config)
    if engine is None:
        reason = next(iter(network.log.errors), "it does not say why")
        raise MachineError(
            f"{network.path}: {library.name} {library.version} builds no engine of it: {' '.join(reason.split())}"
        )
    return bytes(memoryview(engine))


def _set_capabilities(library: Library, config: Any, capabilities: Sequence[int]) -> None:
    if not capabilities:
        return
    config.num_compute_capabilities = len(capabilities)
    for at, capability in enumerate(capabilities):
        if not config.set_compute_capability(library.module.ComputeCapability(capability), at):
            raise SettingsError(
                f"--compute-capability {written(capability)}: {library.name} {library.version} refuses it"
            )


def _add_profile(network: Network, config: Any, profile: Profile) -> None:
    """Give a network's free sizes their ranges."""
    made = network.builder.create_optimization_profile()
    free = []
    for at in range(network.definition.num_inputs):
        value = network.definition.get_input(at)
        if any(size < 0 for size in value.shape):
            made.set_shape(value.name, *profile[value.name])
            free.append(value.name)
    if free and config.add_optimization_profile(made) < 0:
        raise MachineError(
            f"{network.path}: {network.library.name} refuses the sizes of {', '.join(free)}: {dict(profile)}"
        )
