"""A server's settings, checked; `serving.settings_sources` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, model_validator

from bundle.decode import DEFAULT_LIMITS
from bundle.frames.limits import DEFAULT_VIDEO_LIMITS
from bundle.manifest import Manifest
from quant.kv.table import POLICIES
from runtime.cache_shape import context_of
from runtime.limits import Limits
from runtime.settings import (
    DEFAULT_CONTEXT_TOKENS,
    DEFAULT_VISION_TILES,
    EncoderRuntime,
    RuntimeSettings,
    chunk_tokens_of,
)
from serving.access.settings import AccessSettings, RecordingSettings, RemoteSettings
from serving.protocol import KVCompression, VisionReduction
from serving.ray_settings import RaySettings
from serving.tracing_settings import TracingSettings
from serving.watch import Patience


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ApiSettings(_Frozen):
    """What the HTTP application accepts of one request, and of all of them together.

    Attributes:
        max_body_bytes: Of a request body, counted while it is read. The default holds one image of the largest size
            in base64 (4/3 of its bytes) and some text.
        max_bodies_bytes: Of all bodies and their images that are held at once, from arrival to the end of the answer;
            one more is refused with 429. While one is parsed, it takes up to two times as much again.
        max_json_values: Values in one body, counted as its commas and opening brackets before it is parsed, those
            within texts among them. Parsing that many takes tens of milliseconds, in which nothing else runs.
        max_image_bytes: Of one encoded image; at most what the engine decodes.
        max_images: In one request.
        max_videos: In one request.
        max_video_bytes: Of one encoded video, or of all pictures of a list of frames.
        max_frames: That a model looks at in one request; of a list, its pictures.
        video_frames: Looked at in a video whose request does not say how many.
        max_text_characters: Of one text; a model's own limit is far below. What holds no images stays small by it.
        max_messages: Of one conversation.
        max_parts: Texts and images in all messages of one request.
        max_inputs: Texts and images in one embedding request.
        max_labels: Candidate labels in one classification.
        max_choices: Answers to one request (`n`): each takes a place in the queue, and a slot while it runs.
        body_timeout_s: In every span of so long, a body must bring `body_bytes_per_s` times the span, or its end.
        body_bytes_per_s: The slowest client that is waited for.
        request_timeout_s: From a request's arrival to the end of its answer; also the most that a client may ask for
            with `X-Request-Timeout`. OpenAI's own clients wait for 600 s: after that, nobody reads the answer.
        retry_after_s: What a refused client is told to wait.
        aliases: Further names of served models: alias to name. `/v1/models` lists them.
        stalled_client_s: A client that takes nothing of its answer for so long is gone: its place is somebody else's.
        prefix_folder: Where `/v1/prefixes` keeps beginnings of conversations, for whoever reaches the port; processes
            that serve the same models share one. None: there are no such routes.
        max_prefix_bytes: Of all of them together.
        access: Who is let in.
        remote: Which images are fetched.
        recording: Whether requests are written down.
        max_prefixes: Most of them.
    """

    max_body_bytes: int = Field(default=32 << 20, ge=1024)
    max_bodies_bytes: int = Field(default=96 << 20, ge=1024)
    max_json_values: int = Field(default=100_000, ge=100)
    max_image_bytes: int = Field(default=DEFAULT_LIMITS.max_bytes, ge=1, le=DEFAULT_LIMITS.max_bytes)
    max_images: int = Field(default=16, ge=1)
    max_videos: int = Field(default=4, ge=1)
    max_video_bytes: int = Field(default=DEFAULT_VIDEO_LIMITS.max_bytes, ge=1, le=DEFAULT_VIDEO_LIMITS.max_bytes)
    max_frames: int = Field(default=64, ge=1, le=4096)
    video_frames: int = Field(default=8, ge=1)
    max_text_characters: int = Field(default=4_000_000, ge=1)
    max_messages: int = Field(default=1024, ge=1)
    max_parts: int = Field(default=1024, ge=1)
    max_inputs: int = Field(default=256, ge=1)
    max_labels: int = Field(default=1000, ge=1)
    max_choices: int = Field(default=8, ge=1)
    body_timeout_s: float = Field(default=20.0, gt=0)
    body_bytes_per_s: int = Field(default=4096, ge=0)
    request_timeout_s: float = Field(default=600.0, gt=0)
    retry_after_s: int = Field(default=1, ge=1)
    stalled_client_s: float = Field(default=60.0, gt=0)
    aliases: dict[str, str] = Field(default_factory=dict)
    prefix_folder: Path | None = None
    max_prefix_bytes: int = Field(default=256 << 20, ge=1024)
    access: AccessSettings = AccessSettings()
    remote: RemoteSettings = RemoteSettings()
    recording: RecordingSettings = RecordingSettings()
    max_prefixes: int = Field(default=1024, ge=1)

    @model_validator(mode="after")
    def _check_frames(self) -> ApiSettings:
        if self.video_frames > self.max_frames:
            raise ValueError(f"video_frames {self.video_frames} is above max_frames {self.max_frames}")
        return self

    @model_validator(mode="after")
    def _check_folder(self) -> ApiSettings:
        if self.prefix_folder is not None and self.prefix_folder.exists() and not self.prefix_folder.is_dir():
            raise ValueError(f"prefix_folder {self.prefix_folder} is no folder; name one, or a place where one can be")
        return self


class HttpSettings(_Frozen):
    """Connections of the one-process server; under Ray they are its proxy's.

    Attributes:
        head_timeout_s: For URL and headers, from the first byte to the last; also how long a new connection may be
            silent. Apache's is 20 s, nginx's 60 s.
        idle_timeout_s: A connection without a request is closed after so long.
        max_head_bytes: Of URL and headers together; also of requests that are sent before the last is answered.
        max_connections: Open at once, and at most what descriptors allow. One more closes the one that was idle for
            longest, or is refused with 503 where all are at work.
        health_port: Answers `/health/live` and `/health/ready` from a thread of its own, on the same address, so that
            no load keeps probes waiting. None: on the one port alone.
        loop_timeout_s: The thread tells live as false when the event loop has been silent for so long.
        allow_cache_clear: Take `POST /v1/cache/clear` from whoever reaches the port: it makes others' requests slower,
            so it is for servers of one's own. Where there are keys, an administrator's is asked for.
        tls_certificate: PEM, its chain behind it; given with `tls_key`. The server then speaks HTTPS alone. Under Ray,
            its proxy does.
        tls_key: PEM, without a passphrase.
    """

    head_timeout_s: float = Field(default=20.0, gt=0)
    idle_timeout_s: int = Field(default=5, ge=1)
    max_head_bytes: int = Field(default=32 << 10, ge=1024)
    max_connections: int = Field(default=1000, ge=4)
    health_port: int | None = Field(default=None, ge=0, le=65535)
    loop_timeout_s: float = Field(default=15.0, gt=0)
    allow_cache_clear: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    @model_validator(mode="after")
    def _check_tls(self) -> HttpSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together; give both or neither")
        return self


class EngineSettings(RuntimeSettings):
    """Settings of every model that a client loads; read once, passed explicitly.

    Attributes:
        max_sequences: Answers of one generative model that are made at once: the largest decode batch.
        context_tokens: Of one sequence, at most. None: the model's own limit, at most `DEFAULT_CONTEXT_TOKENS`, and
            no more than `kv_memory_bytes` holds.
        kv_memory_bytes: Of each generative model's cache, for running answers and kept prompts together; a number or
            a text such as "512MiB". None: half of `max_sequences` whole contexts, few of which are ever full.
        prefix_cache: Keep what was read of prompts for those that begin alike.
        kv_policy: Which rows of a prompt stay in the cache once it was read, for requests that do not say
            (`quant.kv.table`). None: all do.
        kv_budget: The share of them that stays; given with `kv_policy` and not without.
        max_gap_ms: While answers run, prompts are read in chunks so that a chunk and a decode step take no longer
            together, by what they took until now, as far as that can be kept.
        max_waiting: Requests per model that may wait for a slot; one more is refused.
        prefill_chunk_tokens: Most tokens of a prompt in one run; from 32 on, where a prompt is cut changes no bit.
            None: 256 on a CPU, 1,024 on a GPU, where a run takes about as long whatever it holds.
        vision_batch_tiles: Images or tiles in one run of a vision encoder; bounds its activation memory.
        text_batch_rows: Texts in one run of a text encoder.
        vision_method: How images are reduced where a request does not say (docs/compression.md).
        vision_keep: Share of each tile's image tokens that is read then; 1 reduces nothing.
        image_cache_bytes: Bytes of image features kept for reuse, of all models together; 0 keeps none.
        preprocess_threads: Threads that decode images, fill templates and tokenize.
        verify_digests: Compare every file with its recorded digest at start (reads the weights once).
        check_golden: Replay the canary recorded at export before serving.
        allow_ungated: Load a variant whose quality gate failed, or whose quality was never measured on samples.
        image_timeout_s: For decoding one image; it is stopped then, and refused.
        stall_timeout_s: An engine that has work and finishes no step for so long fails what it has, takes nothing new
            and is not ready, until it goes on.
        restart_after_stall_s: An engine that hangs for so long more is not alive either: whoever watches the process
            shall restart it.
    """

    encoder_runtime: EncoderRuntime = "auto"
    max_sequences: int = Field(default=8, ge=1, le=256)
    context_tokens: int | None = Field(default=None, ge=2)
    kv_memory_bytes: ByteSize | None = None
    prefix_cache: bool = True
    kv_policy: str | None = None
    kv_budget: float | None = Field(default=None, gt=0, le=1)
    max_gap_ms: float = Field(default=250.0, gt=0)
    max_waiting: int = Field(default=64, ge=0)
    prefill_chunk_tokens: int | None = Field(default=None, ge=1)
    vision_batch_tiles: int = Field(default=DEFAULT_VISION_TILES, ge=1)
    text_batch_rows: int = Field(default=32, ge=1)
    vision_method: str = "uniform"
    vision_keep: float = Field(default=1.0, gt=0, le=1)
    image_cache_bytes: int = Field(default=64 << 20, ge=0)
    preprocess_threads: int = Field(default=2, ge=1)
    verify_digests: bool = True
    check_golden: bool = True
    allow_ungated: bool = False
    image_timeout_s: float = Field(default=20.0, gt=0)
    stall_timeout_s: float = Field(default=120.0, gt=0)
    restart_after_stall_s: float = Field(default=120.0, ge=0)

    @model_validator(mode="after")
    def _check_device(self) -> EngineSettings:
        named = [
            name
            for name, is_set in (("engines", self.engines), ("device_runtime", self.device_runtime != "cuda"))
            if is_set
        ]
        if named and self.provider == "cpu":
            raise ValueError(f"{' and '.join(named)} beside provider cpu: they are of a device; set provider to cuda")
        return self

    @model_validator(mode="after")
    def _check_kv(self) -> EngineSettings:
        if (self.kv_policy is None) != (self.kv_budget is None):
            given, lacking = ("kv_policy", "kv_budget") if self.kv_budget is None else ("kv_budget", "kv_policy")
            raise ValueError(
                f"{given} {getattr(self, given)} without {lacking}: together they say which rows of a prompt stay; "
                "give both or neither"
            )
        if self.kv_policy is not None and self.kv_policy not in POLICIES:
            raise ValueError(f"kv_policy {self.kv_policy!r} is none of {', '.join(POLICIES)}")
        return self

    @property
    def chunk_tokens(self) -> int:
        """Most tokens of a prompt in one run, there where it runs."""
        return self.prefill_chunk_tokens or chunk_tokens_of(self.provider)

    def limits(self, manifest: Manifest) -> Limits:
        """Return the largest runs of a bundle that is served by these settings."""
        rows = context_of(manifest, self.context_tokens) or DEFAULT_CONTEXT_TOKENS
        batch = self.text_batch_rows if manifest.decoder is None else self.max_sequences
        return Limits(rows, batch, min(self.chunk_tokens, rows), self.vision_batch_tiles)

    @property
    def vision(self) -> VisionReduction:
        """How images are reduced where a request does not say."""
        return VisionReduction(self.vision_method, self.vision_keep)

    @property
    def kv(self) -> KVCompression | None:
        """What is done to a prompt's rows where a request does not say; None: all stay."""
        if self.kv_policy is None or self.kv_budget is None:
            return None
        return KVCompression(self.kv_policy, self.kv_budget)

    @property
    def patience(self) -> Patience:
        """How long the threads of a model may be silent."""
        return Patience(self.stall_timeout_s, self.stall_timeout_s + self.restart_after_stall_s)


class ServerSettings(_Frozen):
    """All settings of a server.

    Attributes:
        host: Address to listen on. The default is reached from this machine alone.
        port: TCP port; 0 picks a free one.
        log_level: Least severe line that is logged.
        log_format: "text", or "json": one object a line.
        drain_timeout_s: How long running requests may go on after SIGTERM.
        api: Limits of a request.
        http: Limits of a connection.
        engine: How models run.
        ray: Replicas on a cluster.
        tracing: Traces of requests.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    drain_timeout_s: int = Field(default=30, ge=0)
    api: ApiSettings = ApiSettings()
    http: HttpSettings = HttpSettings()
    engine: EngineSettings = EngineSettings()
    ray: RaySettings = RaySettings()
    tracing: TracingSettings = TracingSettings()
