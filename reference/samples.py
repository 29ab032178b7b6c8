"""Write the sample images that demos and documents show: `python -m reference.samples`."""

from __future__ import annotations

import pathlib
import random

from reference.layout import Scene, render, sample_scene
from reference.seeds import held_out_seed

FOLDER = pathlib.Path(__file__).parent / "samples"


def _is_scene(scene: Scene) -> bool:
    names = [t.name for t in scene.shapes]
    return len(names) == 4 and names.count("star") == 1 and len({t.colour for t in scene.shapes}) == 3


def _is_relation(scene: Scene) -> bool:
    named = {t.name: t for t in scene.shapes}
    if set(named) != {"circle", "star"} or named["circle"].size != "large":
        return False
    return (named["circle"].colour, named["star"].colour) == ("red", "blue") and (
        named["circle"].centre_px[0] + 40 < named["star"].centre_px[0]
    )


def samples() -> dict[str, Scene]:
    """Return the sample scenes by file name, drawn from held-out seeds; digits from the test split."""
    found: dict[str, Scene] = {}
    for index in range(1 << 20):
        rng = random.Random(held_out_seed("sample", 0, index))
        if "scene.png" not in found:
            scene = sample_scene(rng, 4)
            if _is_scene(scene):
                found["scene.png"] = scene
        elif "relation.png" not in found:
            scene = sample_scene(rng, 2)
            if _is_relation(scene):
                found["relation.png"] = scene
        elif "text.png" not in found:
            found["text.png"] = sample_scene(rng, 1, texts=("VLM2",))
        else:
            found["digit.png"] = sample_scene(rng, 1, num_digits=1, digit_split="test")
            return found
    raise ValueError(f"no seed gave every sample; found {sorted(found)}")


def main() -> None:
    """Write every sample as PNG."""
    FOLDER.mkdir(exist_ok=True)
    for name, scene in samples().items():
        render(scene).save(FOLDER / name)


if __name__ == "__main__":
    main()
