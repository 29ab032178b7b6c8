"""Every metric of a server: its name, its kind, what it means, and whether vLLM has the same under its own prefix.

`python -m serving.api.metric_table` prints the table of docs/operations.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "pocketvlm:"
"""vLLM's is `vllm:`: one replacement makes its dashboards ours, where they ask for what both have."""
MODEL = "model_name"
ENGINE = "engine"
"""Label of what one engine tells: "0" in one process, under Ray the replica's id."""

LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)

Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True)
class MetricSpec:
    """One metric.

    Attributes:
        name: Without prefix; a counter's samples end in `_total` beside it.
        kind: Prometheus' own word.
        text: What it means, in one sentence.
        labels: Beside none that Prometheus adds itself.
        is_vllms: vLLM has it under the same name, meaning the same.
        buckets: Upper ends, of a histogram.
    """

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = (MODEL,)
    is_vllms: bool = False
    buckets: tuple[float, ...] = LATENCY_S

    @property
    def sample(self) -> str:
        """The name that a query begins with."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


_OF_ENGINE = (MODEL, ENGINE)

ENGINE_METRICS = (
    MetricSpec("num_requests_running", "gauge", "Sequences that have a slot.", _OF_ENGINE, True),
    MetricSpec("num_requests_waiting", "gauge", "Requests that were taken and have no slot yet.", _OF_ENGINE, True),
    MetricSpec(
        "kv_cache_usage_perc", "gauge", "Share of the cache that running sequences fill, 0 to 1.", _OF_ENGINE, True
    ),
    MetricSpec("num_tokens_running", "gauge", "Rows of the cache that running sequences fill.", _OF_ENGINE),
    MetricSpec("num_tokens_waiting", "gauge", "Prompt tokens of accepted requests that are not read yet.", _OF_ENGINE),
    MetricSpec("kv_cache_rows", "gauge", "Rows that may hold something at once.", _OF_ENGINE),
    MetricSpec("kv_cache_bytes", "gauge", "Bytes of all rows that may hold something at once.", _OF_ENGINE),
    MetricSpec("prefix_cache_bytes", "gauge", "Bytes of prompts that outlived their sequence.", _OF_ENGINE),
    MetricSpec(
        "prefix_cache_queries", "counter", "Prompt tokens that were looked for among kept rows.", _OF_ENGINE, True
    ),
    MetricSpec("prefix_cache_hits", "counter", "Those of them whose rows were there.", _OF_ENGINE, True),
    MetricSpec("num_preemptions", "counter", "How often a running sequence lost its slot.", _OF_ENGINE, True),
    MetricSpec("tokens_read", "counter", "Prompt tokens that ran, as they do; those of kept rows do not.", _OF_ENGINE),
    MetricSpec("tokens_sampled", "counter", "Tokens of answers, as they are chosen.", _OF_ENGINE),
    MetricSpec("num_images_waiting", "gauge", "Images that are encoded or wait for the encoder.", _OF_ENGINE),
    MetricSpec(
        "num_preprocess_waiting", "gauge", "Images that wait for a thread to decode or resize them.", _OF_ENGINE
    ),
    MetricSpec("image_cache_bytes", "gauge", "Bytes of kept image features.", _OF_ENGINE),
    MetricSpec("image_cache_hits", "counter", "Images whose features were kept.", _OF_ENGINE),
    MetricSpec("image_cache_misses", "counter", "Images whose features had to be made.", _OF_ENGINE),
    MetricSpec("num_replicas", "gauge", "Replicas that Ray runs of the model; absent without Ray."),
)
"""What engines tell with their health, by the names of their gauges."""

REQUEST_METRICS = (
    MetricSpec(
        "time_to_first_token_seconds", "histogram", "From the parsed request to its first token.", is_vllms=True
    ),
    MetricSpec(
        "inter_token_latency_seconds", "histogram", "Between two tokens.", is_vllms=True, buckets=TOKEN_LATENCY_S
    ),
    MetricSpec(
        "request_time_per_output_token_seconds",
        "histogram",
        "Mean time of a request's tokens behind its first.",
        is_vllms=True,
        buckets=TOKEN_LATENCY_S,
    ),
    MetricSpec("e2e_request_latency_seconds", "histogram", "From the parsed request to its last event.", is_vllms=True),
    MetricSpec("request_receive_time_seconds", "histogram", "From a request's head to its parsed body."),
    MetricSpec("request_parse_time_seconds", "histogram", "Decoding and resizing images, templating, tokenizing."),
    MetricSpec("vision_encode_time_seconds", "histogram", "In the vision encoder and waiting for it."),
    MetricSpec("request_queue_time_seconds", "histogram", "Waiting for a slot.", is_vllms=True),
    MetricSpec("request_prefill_time_seconds", "histogram", "From the slot to the first token.", is_vllms=True),
    MetricSpec("request_decode_time_seconds", "histogram", "From the first token to the last.", is_vllms=True),
    MetricSpec("request_inference_time_seconds", "histogram", "From the slot to the last token.", is_vllms=True),
    MetricSpec("request_prompt_tokens", "histogram", "Tokens of a request's prompt.", is_vllms=True, buckets=TOKENS),
    MetricSpec(
        "request_generation_tokens", "histogram", "Tokens of a request's answers.", is_vllms=True, buckets=TOKENS
    ),
    MetricSpec("prompt_tokens", "counter", "Tokens of prompts and texts, images' included.", is_vllms=True),
    MetricSpec("prompt_tokens_cached", "counter", "Those of prompts that were not read again.", is_vllms=True),
    MetricSpec("generation_tokens", "counter", "Tokens generated, as they come.", is_vllms=True),
    MetricSpec("image_tokens", "counter", "Tokens of images and frames, before any was left out."),
    MetricSpec("image_tokens_kept", "counter", "Those that a decoder read in their place."),
    MetricSpec("image_tokens_cached", "counter", "Those whose features were not made again."),
    MetricSpec(
        "request_success",
        "counter",
        "Requests that ended well; `abort`: the client left.",
        (MODEL, "finished_reason"),
        True,
    ),
    MetricSpec("request_errors", "counter", "Requests that failed, by the error's code.", (MODEL, "error_type")),
    MetricSpec("admission_rejections", "counter", "Requests refused with 429.", is_vllms=True),
)
"""What the application counts of requests. The label is empty where no model was found."""

SERVER_METRICS = (
    MetricSpec(
        "model_info", "gauge", "1 for each served model, with what it is.", (MODEL, "task", "model_type", "kv_cache")
    ),
    MetricSpec("model_weight_bytes", "gauge", "Bytes of a served model's weights."),
    MetricSpec("build_info", "gauge", "1, with the server's version.", ("version",)),
    MetricSpec("ready", "gauge", "1 when requests are answered, as `/health/ready` says.", ()),
)
"""What the server tells of itself; `process_*` comes beside it, under Prometheus' own names."""

METRICS = (*ENGINE_METRICS, *REQUEST_METRICS, *SERVER_METRICS)


def table() -> str:
    """Return all metrics as a table in Markdown."""
    lines = ["| metric | kind | labels | meaning | vLLM's |", "|---|---|---|---|---|"]
    for each in METRICS:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        same = "yes" if each.is_vllms else ""
        lines.append(f"| `{each.sample}` | {each.kind} | {labels} | {each.text} | {same} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
