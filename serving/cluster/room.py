"""Whether a cluster's nodes have room for an application, told before Ray would wait for ever for one that has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bundle.errors import MachineError

_UNITS = {"CPU": "CPUs", "GPU": "GPUs"}


@dataclass(frozen=True)
class Wanted:
    """The replicas of one deployment.

    Attributes:
        deployment: Its name.
        num_replicas: That it begins with.
        resources: Of each, by Ray's names.
        setting: That says so, for the advice.
    """

    deployment: str
    num_replicas: int
    resources: Mapping[str, float]
    setting: str


def check_room(wanted: Sequence[Wanted], nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse an application of which a replica fits on no node, or whose first replicas do not fit all together.

    Args:
        wanted: All deployments.
        nodes: Resources of each node, by Ray's names.

    Raises:
        MachineError: There is no room.
    """
    for each in wanted:
        for name, amount in each.resources.items():
            most = max((node.get(name, 0.0) for node in nodes), default=0.0)
            if amount > most:
                raise MachineError(
                    f"a replica of {each.deployment} asks for {amount:g} {_UNITS[name]}; of {_counted(len(nodes))}, "
                    f"the largest has {most:g}. Lower {each.setting}, add a larger node, or set ray.waits_for_nodes "
                    "where one will come."
                )
    for name, unit in _UNITS.items():
        total = sum(each.num_replicas * each.resources.get(name, 0.0) for each in wanted)
        room = sum(node.get(name, 0.0) for node in nodes)
        if total > room:
            raise MachineError(
                f"the replicas that the application begins with ask for {total:g} {unit} together; "
                f"{_counted(len(nodes))} have {room:g}. Lower min_replicas or what a replica asks for, add nodes, or "
                "set ray.waits_for_nodes where they will come."
            )


def _counted(num_nodes: int) -> str:
    return "1 node" if num_nodes == 1 else f"{num_nodes} nodes"
