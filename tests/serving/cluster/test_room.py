"""Whether nodes have room for an application; no cluster runs."""

from __future__ import annotations

import pytest

from bundle.errors import MachineError
from serving.cluster.room import Wanted, check_room

NODES = [{"CPU": 4.0, "memory": 1e9}, {"CPU": 2.0, "GPU": 1.0}]


def generator(num_replicas: int = 1, cpus: float = 1.0, gpus: float = 0.0) -> Wanted:
    return Wanted("generator-m", num_replicas, {"CPU": cpus, "GPU": gpus}, "num_cpus or num_gpus of ray.generator")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (generator(cpus=5), r"generator-m asks for 5 CPUs; of 2 nodes, the largest has 4\. Lower num_cpus or num_gpus"),
        (generator(gpus=2), "asks for 2 GPUs; of 2 nodes, the largest has 1"),
        (generator(7), "ask for 7 CPUs together; 2 nodes have 6"),
        (generator(4, 0.5, 0.3), "ask for 1.2 GPUs together; 2 nodes have 1"),
    ],
)
def test_an_application_without_room_is_refused_by_name(wanted: Wanted, said: str) -> None:
    with pytest.raises(MachineError, match=said):
        check_room([wanted], NODES)


def test_what_fits_and_what_begins_with_no_replica_is_taken() -> None:
    check_room([generator(3, 2.0, 0.25)], NODES)
    check_room([generator(0, 4.0)] * 9, NODES)


def test_a_cluster_without_nodes_has_room_for_nothing() -> None:
    with pytest.raises(MachineError, match="of 0 nodes, the largest has 0"):
        check_room([generator()], [])
