"""A Ray cluster of two nodes on the loopback that serves a fake model: run as a script by `test_ray_kills.py`.

Prints one line of JSON when it serves; adds a node for each line that it reads, and ends at the end of its input.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
warnings.simplefilter("ignore")

MODEL = "steady"
TOKEN_S = 0.05
HEAD_ADDRESS, OTHER_ADDRESS = "127.0.0.2", "127.0.0.3"
"""Of the loopback; Ray puts the machine's own address in the place of 127.0.0.1."""


def main(head_port: int, other_port: int, folder: str) -> None:
    """Serve until the input ends."""
    os.environ["RAY_SERVE_WORKER_PROXY_HTTP_PORT"] = str(other_port)  # two proxies on one machine
    from serving.cluster.environment import set_ray_environment

    set_ray_environment()
    import ray
    from ray import serve
    from ray._common.utils import reset_ray_address
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 4, "include_dashboard": False, "object_store_memory": 100 << 20}
    head = {**node, "temp_dir": folder, "node_ip_address": HEAD_ADDRESS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    reset_ray_address()  # where every other `ray.init()` on this machine would find it
    cluster.add_node(**node, node_ip_address=OTHER_ADDRESS)
    ray.init(address=cluster.address, log_to_driver=False)
    with suppress(TimeoutError):  # of a minute for the proxies, which start all the same
        serve.start(http_options={"host": "127.0.0.1", "port": head_port}, proxy_location="EveryNode")
    serve.run(_application(), name="pocketvlm", route_prefix="/")
    print(json.dumps({"raylets": [_raylet(each) for each in cluster.list_all_nodes()]}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"raylets": [_raylet(cluster.add_node(**node, node_ip_address=OTHER_ADDRESS))]}), flush=True)
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


def _raylet(node: Any) -> int:
    (info,) = node.all_processes["raylet"]
    return int(info.process.pid)


def _application() -> Any:
    from serving.cluster.application import ClusterArgs, ServedModel, application
    from serving.fake import FakeBehaviour, FakeClient
    from serving.protocol import ModelCard

    card = ModelCard(MODEL, "image-text-to-text", "fake", {}, 0, 1000)
    model = ServedModel(card, partial(FakeClient, (card,), FakeBehaviour(first_token_s=TOKEN_S, token_s=TOKEN_S)))
    # One of each kind on each node, and room for the one that takes a lost one's place.
    generator = {"num_cpus": 1.5, "min_replicas": 2, "max_replicas": 2}
    ray = {"ingress_num_cpus": 1, "generator": generator}
    return application([model], ClusterArgs.model_validate({"bundles": ["unused"], "drain_timeout_s": 5, "ray": ray}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
