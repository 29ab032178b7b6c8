"""Bundles served as Ray Serve deployments until a signal comes: `pocketvlm deploy`."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import ray
from ray import serve
from ray.exceptions import RayError

from bundle.errors import MachineError
from serving.cluster.application import ClusterArgs, application, num_local_cpus, served_models, wanted
from serving.cluster.drain import drain
from serving.cluster.environment import set_ray_environment
from serving.cluster.room import Wanted, check_room
from serving.listener import open_listener, url_of
from serving.log import configure_logging, warn_of_strangers
from serving.settings import ServerSettings

logger = logging.getLogger(__name__)

APPLICATION = "pocketvlm"


def deploy(bundles: Sequence[Path], settings: ServerSettings, announce: Callable[[str], None] = print) -> None:
    """Serve bundles as Ray Serve deployments until SIGTERM or SIGINT, let requests end, then take everything down.

    Requests that run may end within `settings.drain_timeout_s`, or until a second signal; new ones are refused. A
    cluster named by RAY_ADDRESS is joined; without one, a local cluster is started and stopped here.

    Raises:
        SettingsError: The port or the address cannot be had.
        BundleError: A bundle is refused.
        MachineError: The cluster has no room for the replicas, or Ray Serve could not start the application.
        KeyboardInterrupt: SIGINT came, and everything is stopped.
    """
    configure_logging(settings)
    warn_of_strangers(settings)
    args = ClusterArgs(
        bundles=tuple(path.resolve() for path in bundles),
        api=settings.api,
        engine=settings.engine,
        ray=settings.ray,
        drain_timeout_s=settings.drain_timeout_s,
        tracing=settings.tracing,
    )
    models = served_models(args)
    app = application(models, args)
    with open_listener(settings.host, settings.port) as listener:
        scheme = "https" if settings.http.tls_certificate else "http"
        port, url = listener.getsockname()[1], url_of(listener, scheme)
    _join_cluster(num_local_cpus(models, args), wanted(models, args), waits=settings.ray.waits_for_nodes)
    signals = _Signals()
    try:
        with signals.received(signal.SIGTERM):
            _start(app, settings, port)
            with signals.received(signal.SIGINT):
                if not signals.first.is_set():
                    names = ", ".join(model.name for model in models)
                    announce(f"PocketVLM serves {names} at {url} (how to ask: {url}/docs)")
                signals.first.wait()
                asyncio.run(drain(APPLICATION, settings.drain_timeout_s, signals.second))
    finally:
        _take_down()
    if signals.is_interrupted:
        raise KeyboardInterrupt


def _start(app: serve.Application, settings: ServerSettings, port: int) -> None:
    options: dict[str, str | int] = {"host": settings.host, "port": port}
    if settings.http.tls_certificate and settings.http.tls_key:  # Ray judges the certificate by the key, read before
        options |= {"ssl_keyfile": str(settings.http.tls_key.resolve())}
        options |= {"ssl_certfile": str(settings.http.tls_certificate.resolve())}
    try:
        with suppress(TimeoutError):  # of a minute for the proxy, which starts all the same: the replicas take longer
            serve.start(http_options=options)
        serve.run(app, name=APPLICATION, route_prefix="/")
    except (RuntimeError, RayError) as error:
        raise MachineError(f"Ray Serve could not start the application: {error}") from error


def _join_cluster(num_cpus: int, deployments: Sequence[Wanted], *, waits: bool) -> None:
    set_ray_environment()
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(
            "local",  # else Ray looks for a cluster that somebody else runs on this machine
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
    if not waits:
        try:
            check_room(deployments, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        except MachineError:
            ray.shutdown()
            raise


def _take_down() -> None:
    """Stop Serve, then leave the cluster, which a local one does not outlive."""
    try:
        # Ray prints there that its controller, which ends itself, will be asked for ever.
        with redirect_stdout(_DebugLines()):
            serve.shutdown()
    except (RuntimeError, RayError) as error:
        logger.error("Ray Serve could not be shut down: %s", error)
    finally:
        ray.shutdown()


class _DebugLines(io.TextIOBase):
    """A text file whose lines go to the log, for whoever wants every detail."""

    def write(self, text: str) -> int:
        """Log a piece of text that is not blank."""
        if text.strip():
            logger.debug("Ray: %s", text.strip())
        return len(text)


@dataclass
class _Signals:
    """What came.

    To be listened to once Ray is there: joining a cluster installs a handler that ends the process with a core dump.

    Attributes:
        first: A signal came: drain.
        second: Another came: end what still runs.
        is_interrupted: One of them was SIGINT.
    """

    first: threading.Event = field(default_factory=threading.Event)
    second: threading.Event = field(default_factory=threading.Event)
    is_interrupted: bool = False

    @contextmanager
    def received(self, number: signal.Signals) -> Iterator[None]:
        """Take a signal down while the block lasts, in place of what it does otherwise."""
        previous = signal.signal(number, self._receive)
        try:
            yield
        finally:
            signal.signal(number, previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.is_interrupted |= number == signal.SIGINT
        (self.second if self.first.is_set() else self.first).set()
