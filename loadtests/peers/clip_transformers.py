"""transformers on torch, from JPEGs to CLIP's vectors: `python -m loadtests.peers.clip_transformers CHECKPOINT`.

It runs in an environment of its own, and imports nothing of ours but this folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from loadtests.peers.measures import Measure
from loadtests.peers.photographs import Photographs
from loadtests.peers.worker import Prepare, Work, serve


def open_system(checkpoint: Path, dtype: str, threads: int) -> Mapping[str, Prepare]:
    """Return what prepares images of a CLIP checkpoint."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor, CLIPModel

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = CLIPModel.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()
    processor, photographs = AutoProcessor.from_pretrained(checkpoint), Photographs()

    def embed(measure: Measure) -> Work:
        files = photographs.take(measure.size)

        def work() -> None:
            images = [Image.open(BytesIO(file)) for file in files]
            pixels = processor(images=images, return_tensors="pt")["pixel_values"].to(model.dtype)
            model.get_image_features(pixel_values=pixels)

        return work, 1

    return {"embed": embed}


def main() -> None:
    """Answer the comparison's questions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    serve(lambda: open_system(options.checkpoint, options.dtype, options.threads), ("torch", "transformers"))


if __name__ == "__main__":
    main()
