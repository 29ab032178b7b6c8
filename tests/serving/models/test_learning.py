"""Demonstrations as they are cut out of a conversation."""

import numpy as np

from bundle.image import TileLayout
from bundle.prompt import Placeholder, Turn
from serving.models.learning import _examples


def test_each_demonstration_has_its_own_images_and_videos() -> None:
    shown = [(Placeholder.VIDEO, "a?"), (Placeholder.IMAGE, Placeholder.VIDEO, "b?"), ("c?",), (Placeholder.IMAGE,)]
    turns = [turn for parts in shown for turn in (Turn("user", parts), Turn("assistant", ("d",)))]
    layouts = [TileLayout(1, number) for number in (1, 2, 3, 4)]
    features = [np.full((1, 2), number, np.float32) for number in range(4)]
    found = list(_examples(turns, layouts, features))
    assert [each.question for each in found] == turns[::2]
    assert [list(each.layouts) for each in found] == [layouts[:1], layouts[1:3], [], layouts[3:]]
    assert [len(each.features) for each in found] == [1, 2, 0, 1]
