"""MM1 and MM1.5 (arXiv 2403.09611, 2409.20566), and Honeybee: a CLIP tower, a C-Abstractor and a decoder.

No weights of MM1 and MM1.5 are published. What is read is a checkpoint in LLaVA's layout whose config says `model_type`
mm1 and, as `projector_config`, what Honeybee's own configuration calls so. Where its image processor is LLaVA-NeXT's,
an image is its tiles and then the whole, as MM1.5 has them (arXiv 2409.20566, section 3.4); no word stands between.
"""

from __future__ import annotations

from collections.abc import Sequence

from bundle.layouts.llava import LlavaPrompt
from bundle.manifest import TensorSpec
from export.config import Raw
from export.connectors.c_abstractor import CAbstractor, CAbstractorConfig
from export.found_processor import FoundProcessor
from export.models.llava import PROJECTOR, Llava
from export.nn.module import Module


class MM1(Llava):
    """`model_type` mm1."""

    def __init__(self, config: Raw) -> None:
        super().__init__(config)
        self._abstractor = CAbstractorConfig.read(config.get("projector_config") or {}, self._vision.grid)
        self.require_patches("the connector convolves patches alone")

    @property
    def tokens_per_tile(self) -> int:
        """What the connector gives."""
        return self._abstractor.side**2

    @property
    def tells_tower(self) -> bool:
        """False: tokens are not those of the tower's patches."""
        return False

    def tower_outputs(self) -> Sequence[TensorSpec]:
        """Return nothing."""
        return ()

    def projector(self) -> Module:
        """Return the connector."""
        width = self._vision.tower.hidden_size * len(self._layers)
        return CAbstractor(self._abstractor, self._vision.grid, width, self.decoder.config.hidden_size, name=PROJECTOR)

    def image_prompt(self, found: FoundProcessor) -> LlavaPrompt:
        """Return the image token repeated, for each tile and the whole.

        Raises:
            UnsupportedConfigError: The token is not in the vocabulary, or has another id than the config says.
        """
        token = found.token("image_token", "<image>")
        return LlavaPrompt(
            image_token=token,
            image_token_id=found.image_token_id(self.config, token),
            tokens_per_tile=self.tokens_per_tile,
        )
