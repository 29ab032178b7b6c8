"""A vision encoder on the other side of a deployment handle.

Pixels and features cross as arrays, whose bytes Ray keeps out of its pickles: through the shared memory of a node
between its processes, through Ray's object store between nodes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from serving.cluster.call import Outlook, first_of
from serving.cluster.watch import watch_of
from serving.models.elsewhere import Features, SentImage


class RemoteEncoder:
    """`Elsewhere` over a deployment handle; an image whose replica is lost goes to another, once.

    Args:
        handle: Ray's, of the encoder's deployment.
        deployment: Its name.
        patience_s: How long an image waits while no replica can take it.
    """

    def __init__(self, handle: Any, deployment: str, patience_s: float) -> None:
        # By reference: large arguments and results go by Ray's object store, not through a message.
        self._handle = handle.options(_by_reference=True)
        self._watch = watch_of(deployment)
        self._patience_s = patience_s

    async def see(self, image: SentImage) -> Features:
        """Return what the encoder makes of an image; not to be written to.

        Raises:
            PocketVLMError: As a replica raised it, or what happened to the last one.
        """
        send = partial(self._handle.see.remote, image)
        _, seen = await first_of(send, lambda: Outlook(self._watch, self._patience_s))
        features: Features = seen
        return features
