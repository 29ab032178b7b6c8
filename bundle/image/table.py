"""Which geometries there are, by the `kind` that `preprocessor.json` gives."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from bundle.image.area import Area
from bundle.image.cropped import Cropped
from bundle.image.fixed import Fixed
from bundle.image.nearest_grid import NearestGrid
from bundle.image.pan_and_scan import PanAndScan
from bundle.image.tiled import Tiled

KnownGeometry: TypeAlias = Annotated[
    Area | Cropped | Fixed | NearestGrid | PanAndScan | Tiled, Field(discriminator="kind")
]
