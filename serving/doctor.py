"""What this machine can run: providers, operators by one-node probes, memory, missing extras."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from bundle.errors import MachineError
from bundle.extras import MODULES_OF_EXTRA, install_line
from bundle.machine import memory_bytes, num_usable_cores
from devices.board import board_model
from devices.energy.account import find_meters
from devices.heat import Heat, read_heat
from devices.nvml import free_bytes
from devices.power_mode import power_mode
from runtime.onnx_runtime import runtime_version
from runtime.operators import failure_of, probed_operators, runs_here
from runtime.providers import CPU, CUDA, available_providers

_PROBED_PROVIDERS = (CPU, CUDA)


@dataclass(frozen=True)
class OperatorFinding:
    """Whether one operator runs on one provider; `failure` is the runtime's own first line, None where it runs."""

    operator: str
    provider: str
    failure: str | None


@dataclass(frozen=True)
class Diagnosis:
    """What `pocketvlm doctor` prints.

    Attributes:
        machine: Operating system, architecture and Python.
        cpu_cores: Cores this process may use.
        memory_bytes: Physical memory; None where the system does not say.
        onnxruntime: Its version; None where it is not installed.
        providers: Execution providers it was built with.
        loads_cuda: Whether the CUDA provider can be loaded here; None where none was built in.
        device_free_bytes: Free memory of the NVIDIA device; None where no driver says.
        board: What it calls itself; None on machines that are no boards.
        power_mode: Of a Jetson, in words; None on other machines.
        heat: Temperatures, lowered clocks, events of the power supply.
        meters: Of energy, by name.
        no_meters: Why there are no others.
        operators: One finding per probe and provider.
        missing: Extra that lacks a module -> what installs it.
    """

    machine: str
    cpu_cores: int
    memory_bytes: int | None
    onnxruntime: str | None
    providers: tuple[str, ...]
    loads_cuda: bool | None
    device_free_bytes: int | None
    board: str | None
    power_mode: str | None
    heat: Heat
    meters: tuple[str, ...]
    no_meters: tuple[str, ...]
    operators: tuple[OperatorFinding, ...]
    missing: dict[str, str]

    @property
    def can_serve(self) -> bool:
        """True where what every shipped bundle needs runs on some provider."""
        needed = {"GroupQueryAttention", "MatMulNBits-4bit", "MatMulNBits-8bit", "GatherBlockQuantized-8bit"}
        return needed <= {finding.operator for finding in self.operators if finding.failure is None}


def diagnose() -> Diagnosis:
    """Return what this machine can run; takes about a second."""
    try:
        version, providers = runtime_version(), available_providers()
    except MachineError:
        version, providers = None, ()
    operators = tuple(
        OperatorFinding(operator, provider, failure_of(operator, provider))
        for provider in providers
        if provider in _PROBED_PROVIDERS
        for operator in probed_operators()
    )
    mode = power_mode()
    meters = find_meters()
    for meter in meters.meters:
        meter.close()
    return Diagnosis(
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        cpu_cores=num_usable_cores(),
        memory_bytes=memory_bytes(),
        onnxruntime=version,
        providers=providers,
        loads_cuda=runs_here("cuda") if CUDA in providers else None,
        device_free_bytes=free_bytes(),
        board=board_model(),
        power_mode=None if mode is None else str(mode),
        heat=read_heat(),
        meters=tuple(meter.name for meter in meters.meters),
        no_meters=meters.silent,
        operators=operators,
        missing={
            extra: install_line(extra)
            for extra, modules in MODULES_OF_EXTRA.items()
            if any(find_spec(module) is None for module in modules)
        },
    )


def lines(found: Diagnosis) -> Iterator[RenderableType]:
    """Yield what to print of a diagnosis."""
    memory = f", {found.memory_bytes / 2**30:.1f} GiB of memory" if found.memory_bytes else ""
    yield f"{found.machine}, {found.cpu_cores} cores{memory}"
    yield f"ONNX Runtime {found.onnxruntime or 'is not installed'}; providers: {', '.join(found.providers) or 'none'}"
    if found.device_free_bytes is not None:
        yield f"NVIDIA device: {found.device_free_bytes / 2**30:.1f} GiB of memory free"
    yield from _of_board(found)
    if found.loads_cuda is False:
        yield (
            "[red]CUDA cannot be loaded[/red]: no device, a driver that is too old, or libraries (cuBLAS, cuDNN, "
            "cudart of the version that ONNX Runtime was built for) that are not on LD_LIBRARY_PATH"
        )
    table = Table("operator", "provider", "runs")
    for finding in found.operators:
        runs = "yes" if finding.failure is None else f"[red]no[/red]: {escape(finding.failure)}"
        table.add_row(finding.operator, finding.provider, runs)
    yield table
    for extra, line in found.missing.items():
        yield f"not installed: {extra:10} {escape(line)}"


def _of_board(found: Diagnosis) -> Iterator[str]:
    """Yield what a board, its heat and its meters tell; what is not shown is said not to be."""
    if found.board is not None:
        yield f"board: {escape(found.board)}"
    if found.power_mode is not None:
        yield f"power mode: {escape(found.power_mode)}; sudo nvpmodel -m NUMBER sets another"
    heat = found.heat
    if heat.celsius:
        yield "temperatures: " + escape(", ".join(f"{name} {value:.0f} C" for name, value in heat.celsius.items()))
    for name in heat.alerts:
        yield f"[red]clocks are lowered now[/red], says {escape(name)}: cool it, or choose a lower power mode"
    for name, count in heat.events.items():
        if count:
            yield f"{escape(name)}: {count} events since the machine started; look at its cooling and power supply"
    if found.meters:
        yield f"energy: {escape(', '.join(found.meters))}"
    else:
        yield f"energy: no meter ({escape('; '.join(found.no_meters))})"
