"""Bundles served as Ray Serve deployments until a signal comes: `pocketvlm deploy`."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import serve
from ray.exceptions import RayError

from bundle.errors import MachineError
from serving.cluster.application import ClusterArgs, application, num_local_cpus, served_models
from serving.edge import configure_logging, open_listener, url_of
from serving.settings import ServerSettings

APPLICATION = "pocketvlm"


def deploy(bundles: Sequence[Path], settings: ServerSettings, announce: Callable[[str], None] = print) -> None:
    """Serve bundles as Ray Serve deployments until SIGTERM or SIGINT, then take everything down.

    A cluster named by RAY_ADDRESS is joined; without one, a local cluster is started and stopped here.

    Raises:
        SettingsError: The port or the address cannot be had.
        BundleError: A bundle is refused.
        MachineError: Ray Serve could not start the application.
        KeyboardInterrupt: SIGINT came, and everything is stopped.
    """
    configure_logging(settings)
    args = ClusterArgs(
        bundles=tuple(path.resolve() for path in bundles),
        api=settings.api,
        engine=settings.engine,
        ray=settings.ray,
        drain_timeout_s=settings.drain_timeout_s,
    )
    models = served_models(args)
    app = application(models, args)
    with open_listener(settings.host, settings.port) as listener:
        port, url = listener.getsockname()[1], url_of(listener)
    _join_cluster(num_local_cpus(models, args))
    try:
        with _stop_event() as stop:
            serve.start(http_options={"host": settings.host, "port": port})
            _run(app)
            names = ", ".join(model.name for model in models)
            announce(f"PocketVLM serves {names} at {url} (how to ask: {url}/docs)")
            stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


def _run(app: serve.Application) -> None:
    try:
        serve.run(app, name=APPLICATION, route_prefix="/")
    except (RuntimeError, RayError) as error:
        raise MachineError(f"Ray Serve could not start the application: {error}") from error


def _join_cluster(num_cpus: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine unasked
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")


@contextmanager
def _stop_event() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets; SIGINT stays KeyboardInterrupt.

    To be entered once Ray is there: joining a cluster installs a handler that ends the process with a core dump.
    """
    stop = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)
