"""How many images a model's memory has room for."""

from __future__ import annotations

from bundle.errors import ContextLengthError


def check_memory_room(num_images: int, most_images: int) -> None:
    """Check that a memory has room for all images of a conversation.

    Raises:
        ContextLengthError: It has not.
    """
    if num_images > most_images:
        raise ContextLengthError(
            f"the messages hold {num_images} images, frames of videos among them; the model's memory has room "
            f"for {most_images}. Send fewer.",
            "messages",
        )
