"""infinity's engine on torch, from JPEGs to CLIP's vectors: `python -m loadtests.peers.clip_infinity CHECKPOINT`.

It runs in an environment of its own, and imports nothing of ours but this folder. No server is in between: its engine,
with its batching and its threads, is asked from the same process. It runs images by torch alone.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path

from loadtests.peers.measures import Measure
from loadtests.peers.photographs import Photographs
from loadtests.peers.worker import Prepare, Work, serve


def open_system(checkpoint: Path, threads: int) -> Mapping[str, Prepare]:
    """Return what prepares images of a CLIP checkpoint."""
    import torch
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    torch.set_num_threads(threads)
    arguments = EngineArgs(
        model_name_or_path=str(checkpoint),
        engine="torch",
        device="cpu",
        dtype="float32",
        model_warmup=False,
        bettertransformer=False,
    )
    engine, photographs, loop = AsyncEmbeddingEngine.from_args(arguments), Photographs(), asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(engine.astart(), loop).result()

    def embed(measure: Measure) -> Work:
        files = photographs.take(measure.size)

        def work() -> None:
            asyncio.run_coroutine_threadsafe(engine.image_embed(images=files), loop).result()

        return work, 1

    return {"embed": embed}


def main() -> None:
    """Answer the comparison's questions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    serve(lambda: open_system(options.checkpoint, options.threads), ("torch", "transformers", "infinity_emb"))


if __name__ == "__main__":
    main()
