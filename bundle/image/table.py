"""Which geometries there are, by the `kind` that `preprocessor.json` gives."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from bundle.image.area import Area
from bundle.image.canvas import Canvas
from bundle.image.cropped import Cropped
from bundle.image.fixed import Fixed
from bundle.image.nearest_grid import NearestGrid
from bundle.image.split_area import SplitArea
from bundle.image.tiled import Tiled

KnownGeometry: TypeAlias = Annotated[
    Area | Canvas | Cropped | Fixed | NearestGrid | SplitArea | Tiled, Field(discriminator="kind")
]
