"""What a bundle says of sampling where a request is silent: `generation.json`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from bundle.json_file import read_json

GENERATION = "generation.json"


class SamplingDefaults(BaseModel):
    """The checkpoint's own defaults; None where it has none.

    Attributes:
        temperature: Of a request that states none; None is greedy.
        top_p: None keeps the whole vocabulary.
        top_k: None keeps the whole vocabulary.
        max_tokens: None generates up to the context's end.
        min_p: None forbids no token for being unlikely.
        repetition_penalty: None penalises nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)

    @classmethod
    def read(cls, path: Path) -> SamplingDefaults:
        """Return the defaults in a `generation.json`.

        Raises:
            BundleFileError: The file is missing, not JSON, or holds values out of range.
        """
        return read_json(cls, path)

    def write(self, directory: Path) -> None:
        """Write `generation.json` into a bundle that is being made."""
        (directory / GENERATION).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
