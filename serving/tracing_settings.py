"""Whether traces are made, and where they go."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator


class TracingSettings(BaseModel):
    """Traces of requests; OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_HEADERS`, ...) hold beside these.

    Attributes:
        endpoint: URL that takes OTLP over HTTP, such as http://collector:4318/v1/traces. None: no traces are made.
        sample_share: Of requests that come without a trace; one that comes with one is traced as that says.
        service_name: Under which a viewer lists them.
        flush_timeout_s: How long the end of a server waits for traces to be taken; after that they are dropped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str | None = None
    sample_share: float = Field(default=1.0, ge=0, le=1)
    service_name: str = "pocketvlm"
    flush_timeout_s: float = Field(default=2.0, ge=0)

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str | None) -> str | None:
        if endpoint is not None:
            parts = urlsplit(endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{endpoint!r} is no URL of HTTP; write such as http://collector:4318/v1/traces")
        return endpoint
