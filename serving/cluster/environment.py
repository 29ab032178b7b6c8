"""Environment variables that Ray's processes are started with. Ray reads them once, in each process.

`pocketvlm deploy` sets them before it starts a local cluster; a cluster that is started otherwise gets them from who
starts it (`k8s/base/rayservice`). What is set already stays.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

RAY_ENVIRONMENT = {
    # Nothing leaves the machine unasked.
    "RAY_USAGE_STATS_ENABLED": "0",
    # A proxy that fails three times is replaced: one that died after 3 s, with Ray's own 10 s after half a minute. The
    # timeout (10 s) stays: less ends proxies of a machine that merely starts its replicas.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # A proxy that starts is given 3 x 30 s; Ray's own 3 x 5 s end it again and again on a small or busy machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    # A node whose raylet fails five times is dead: after 5 s where nothing listens, instead of 15 s.
    "RAY_health_check_period_ms": "1000",
    # An unhealthy replica holds requests that nobody will answer: it is ended, not drained.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # A request crosses two process borders. gRPC takes half of the processors' time that Ray's own calls take, for a
    # streamed answer less; so do event loops that share a thread, whose work here is short.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "1073741824",  # bytes; Ray's own 4 MiB hold no large image
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # What a proxy itself answers gets the API's form, and requests of an ingress that died are sent to another.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.cluster.proxy:middlewares",
    # Ray's lines among ours are plain text, for files as for terminals.
    "RAY_COLOR_PREFIX": "0",
}


def set_ray_environment(environment: MutableMapping[str, str] | None = None) -> None:
    """Set what is not set yet, in this process and so in all that it starts."""
    for name, value in RAY_ENVIRONMENT.items():
        (os.environ if environment is None else environment).setdefault(name, value)
