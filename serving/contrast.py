"""What an answer is held against: the same answer behind a prompt whose images are spoilt, or are not there.

What a model would say whatever it is shown is not of the image; taking it off leaves what is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class VCD:
    """Visual contrastive decoding (Leng et al. 2023, section 3): scores behind images under noise are subtracted.

    Attributes:
        alpha: What is added of the difference; 0 changes nothing.
        beta: Tokens less likely than the likeliest by more than this factor are not chosen (equation 4).
        noise_step: Of 1,000 steps of diffusion, in [0, 1000): how much noise (`bundle.image.noise`).
    """

    method: ClassVar[Literal["vcd"]] = "vcd"
    alpha: float = 1.0
    beta: float = 0.1
    noise_step: int = 500

    @property
    def changes_nothing(self) -> bool:
        """Whether an answer is the same without it."""
        return self.alpha == 0


@dataclass(frozen=True)
class M3ID:
    """Multi-modal mutual information decoding (Favero et al. 2024, algorithm 1): scores without images are subtracted.

    Attributes:
        decay: How fast an image is forgotten, per token of the answer: the difference counts exp(decay t) - 1 times at
            token t; 0 changes nothing.
        confidence: Where the likeliest token is at least so likely, nothing is subtracted; 0 changes nothing.
    """

    method: ClassVar[Literal["m3id"]] = "m3id"
    decay: float = 0.02
    confidence: float = 0.3

    @property
    def changes_nothing(self) -> bool:
        """Whether an answer is the same without it."""
        return self.decay == 0 or self.confidence == 0


Contrast = VCD | M3ID
