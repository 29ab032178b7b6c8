"""Which geometries there are, by the `kind` that `preprocessor.json` gives."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from bundle.image.area import Area
from bundle.image.beside import Beside
from bundle.image.bounded import Bounded
from bundle.image.canvas import Canvas
from bundle.image.canvas_grid import CanvasGrid
from bundle.image.covering_grid import CoveringGrid
from bundle.image.cropped import Cropped
from bundle.image.fixed import Fixed
from bundle.image.grid_canvas import GridCanvas
from bundle.image.longest_edge import LongestEdge
from bundle.image.most_patches import MostPatches
from bundle.image.nearest_grid import NearestGrid
from bundle.image.overlapping_crops import OverlappingCrops, WholeCrop
from bundle.image.padded import Padded
from bundle.image.padded_patches import PaddedPatches
from bundle.image.padded_pinpoints import PaddedPinpoints
from bundle.image.padded_with_tiles import PaddedWithTiles
from bundle.image.pan_and_scan import PanAndScan
from bundle.image.pinpoints import Pinpoints
from bundle.image.shortest_edge import ShortestEdge
from bundle.image.sliced import Sliced
from bundle.image.soft_tokens import SoftTokens
from bundle.image.split_area import SplitArea
from bundle.image.stacked_crops import StackedCrops
from bundle.image.stretched_crop import StretchedCrop
from bundle.image.stretched_grid import StretchedGrid
from bundle.image.thumbnail import Thumbnail
from bundle.image.tiled import Tiled
from bundle.image.whole_patches import WholePatches

KnownGeometry: TypeAlias = Annotated[
    Area
    | Beside
    | Bounded
    | Canvas
    | CanvasGrid
    | CoveringGrid
    | Cropped
    | Fixed
    | GridCanvas
    | LongestEdge
    | MostPatches
    | NearestGrid
    | OverlappingCrops
    | StackedCrops
    | Padded
    | PaddedPatches
    | PaddedPinpoints
    | PaddedWithTiles
    | PanAndScan
    | Pinpoints
    | ShortestEdge
    | Sliced
    | SoftTokens
    | SplitArea
    | StretchedCrop
    | StretchedGrid
    | Thumbnail
    | Tiled
    | WholeCrop
    | WholePatches,
    Field(discriminator="kind"),
]
