"""A cluster of several raylets on this machine, with one model on it: processes, placement, routing are a real one's.

Cores are not: logical CPUs admit replicas, and all share the machine's.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from serving.fake import FAKE_VLM, FakeBehaviour, FakeClient
from serving.listener import open_listener

APPLICATION = "pocketvlm"
_OBJECT_STORE_BYTES = 80 << 20
_REPORT_S = "1"
"""Between two reports of load to Ray's autoscaler, which by itself come every 10 s; a short run would be over."""
_LOOK_S = 1.0
_PACE = FakeBehaviour(first_token_s=0.2, token_s=0.2)
"""Of the engine without a model: an answer takes about two seconds."""
_ADDRESS = "127.0.0.{}"
"""Of each node on the loopback; Ray puts the machine's own address in the place of 127.0.0.1."""


@dataclass(frozen=True)
class Moment:
    """How many replicas there were at a time.

    Attributes:
        time_s: By `time.perf_counter`.
        num_running: That answered.
        num_starting: That were on their way.
    """

    time_s: float
    num_running: int
    num_starting: int


class ReplicaRecord:
    """Looks how many replicas a deployment has, once a second, on a thread of its own.

    Args:
        deployment: Its name, as Ray knows it.

    Attributes:
        moments: In order.
    """

    def __init__(self, deployment: str) -> None:
        self.moments: list[Moment] = []
        self._deployment = deployment
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()

    def wait_for(self, num_running: int, timeout_s: float) -> bool:
        """Wait until just so many replicas run and none starts or stops; False where that takes too long."""
        deadline_s = time.perf_counter() + timeout_s
        while time.perf_counter() < deadline_s:
            if self.moments and self.moments[-1].num_running == num_running and not self.moments[-1].num_starting:
                return True
            time.sleep(_LOOK_S)
        return False

    def stop(self) -> None:
        """Look no more."""
        self._is_over.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._is_over.wait(_LOOK_S):
            states = replica_states(self._deployment)
            running = states.get("RUNNING", 0)
            self.moments.append(Moment(time.perf_counter(), running, sum(states.values()) - running))


def replica_states(deployment: str) -> Mapping[str, int]:
    """Return how many replicas of a deployment are in which state, by Ray's names."""
    from ray import serve

    found = serve.status().applications[APPLICATION].deployments[deployment]
    return {str(getattr(state, "value", state)): count for state, count in found.replica_states.items()}


@contextmanager
def serving_nodes(bundle: Path | None, num_nodes: int, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Serve a model on a head without replicas and so many nodes while the block lasts; yields URL and deployment.

    Args:
        bundle: Directory; None: an engine without a model, which answers at a pace and computes nothing.
        num_nodes: Each with two logical CPUs.
        settings: Of `ClusterArgs`, beside the bundle.

    Raises:
        PocketVLMError: The bundle is refused.
    """
    prepare_environment()
    from serving.cluster.application import ClusterArgs, ServedModel, application, served_models

    args = ClusterArgs.model_validate({"bundles": ["unused" if bundle is None else str(bundle.resolve())], **settings})
    if bundle is None:
        models: tuple[ServedModel, ...] = (ServedModel(FAKE_VLM, partial(FakeClient, (FAKE_VLM,), _PACE)),)
    else:
        models = served_models(args)
    with nodes_serving(application(models, args), num_nodes) as url:
        yield url, models[0].deployment


def prepare_environment() -> None:
    """Set what Ray's processes are started with; before Ray is imported."""
    os.environ["RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = _REPORT_S
    os.environ["RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = _REPORT_S
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_root()), os.environ.get("PYTHONPATH", "")]))
    from serving.cluster.environment import set_ray_environment

    set_ray_environment()


@contextmanager
def nodes_serving(application: Any, num_nodes: int) -> Iterator[str]:
    """Serve an application of Ray's on a head and so many nodes while the block lasts; yields the URL."""
    import ray
    from ray import serve
    from ray._common.utils import reset_ray_address
    from ray.cluster_utils import Cluster

    node = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    head = {**node, "num_cpus": 1, "node_ip_address": _ADDRESS.format(2)}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    with ExitStack() as ends:
        ends.callback(cluster.shutdown)
        reset_ray_address()  # where every other `ray.init()` on this machine would find it
        for number in range(num_nodes):
            cluster.add_node(**node, num_cpus=2, node_ip_address=_ADDRESS.format(3 + number))
        ends.callback(ray.shutdown)
        ray.init(address=cluster.address, log_to_driver=False)
        ends.callback(serve.shutdown)
        with open_listener("127.0.0.1", 0) as listener:
            port = listener.getsockname()[1]
        with suppress(TimeoutError):  # of a minute for the proxy, which starts all the same
            serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
        serve.run(application, name=APPLICATION, route_prefix="/")
        yield f"http://127.0.0.1:{port}"


def _root() -> Path:
    return Path(sys.modules[__name__].__file__ or ".").resolve().parents[2]
