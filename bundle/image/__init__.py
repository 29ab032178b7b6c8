"""Image preprocessing: decoded images to the pixels that a vision encoder wants; one file per geometry."""

from bundle.image.area import Area as Area
from bundle.image.beside import Beside as Beside
from bundle.image.bounded import Bounded as Bounded
from bundle.image.canvas import Canvas as Canvas
from bundle.image.canvas_grid import CanvasGrid as CanvasGrid
from bundle.image.covering_grid import CoveringGrid as CoveringGrid
from bundle.image.cropped import Cropped as Cropped
from bundle.image.fixed import Fixed as Fixed
from bundle.image.geometry import Geometry as Geometry
from bundle.image.layout import Pixels as Pixels
from bundle.image.layout import ProcessedImages as ProcessedImages
from bundle.image.layout import TileLayout as TileLayout
from bundle.image.most_patches import MostPatches as MostPatches
from bundle.image.nearest_grid import NearestGrid as NearestGrid
from bundle.image.padded import Padded as Padded
from bundle.image.pan_and_scan import PanAndScan as PanAndScan
from bundle.image.pinpoints import Pinpoints as Pinpoints
from bundle.image.shortest_edge import ShortestEdge as ShortestEdge
from bundle.image.spec import PREPROCESSOR as PREPROCESSOR
from bundle.image.spec import ImageSpec as ImageSpec
from bundle.image.spec import Resample as Resample
from bundle.image.split_area import SplitArea as SplitArea
from bundle.image.stretched_crop import StretchedCrop as StretchedCrop
from bundle.image.table import KnownGeometry as KnownGeometry
from bundle.image.tiled import Tiled as Tiled
from bundle.image.whole_patches import WholePatches as WholePatches
