"""The settings of an application on Ray Serve: replicas, what they are scaled by, routing, canaries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bundle.errors import SettingsError

Routing = Literal["content", "load"]
Composition = Literal["whole", "encoder"]
_FULL_WEIGHT = 100


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScalingTargets(_Frozen):
    """What one replica shall carry at most; a replica is added while those that run carry more of anything.

    None leaves that one out. Rows of the cache and images hold for vision-language models alone.

    Attributes:
        tokens: Of running requests, read or written, and of prompts that wait.
        images: That wait for the vision encoder or are in it.
        cache_share: Rows of the cache in use, and those that waiting prompts will take, as a share of all rows.
        first_token_s: The 95th percentile of the time from a request's arrival at the replica to its first token. While
            it is longer, one more replica than there are is wanted, as far as requests share replicas.
    """

    tokens: int | None = Field(default=None, ge=1)
    images: float | None = Field(default=8.0, gt=0)
    cache_share: float | None = Field(default=0.9, gt=0)
    first_token_s: float | None = Field(default=None, gt=0)


class ScalingSettings(_Frozen):
    """How Ray Serve scales the replicas of one model.

    Attributes:
        min_replicas: Kept when idle. With 0, the first request after a pause waits for a model to load.
        max_replicas: Most replicas of one model.
        target_ongoing_requests: Requests per replica, running and queued, that the autoscaler aims at. About the
            engine's `max_sequences`: below it a decode batch has room, above it requests wait for a slot.
        targets: What else a replica shall carry at most.
        max_ongoing_requests: Requests that one replica is handed at once; the engine queues those beyond its slots.
        max_queued_requests: Requests that wait at the ingress while every replica is full; one more is refused.
        max_held_requests: Requests that wait for the first replica of a model without any; one more is refused.
        hold_timeout_s: How long they wait for it.
        upscale_delay_s: How long load must stay high before a replica is added.
        downscale_delay_s: How long load must stay low before a replica is taken away.
        downscale_to_zero_delay_s: The same of the last replica; None: as of the others.
        look_back_period_s: Window over which the autoscaler averages load; above the 10 s between Ray's own reports.
        num_cpus: Logical CPUs that Ray reserves for a replica.
        num_gpus: GPUs that Ray reserves for a replica; may be a fraction.
    """

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=2, ge=1)
    target_ongoing_requests: float = Field(default=8.0, gt=0)
    targets: ScalingTargets = ScalingTargets()
    max_ongoing_requests: int = Field(default=16, ge=1)
    max_queued_requests: int = Field(default=64, ge=1)
    max_held_requests: int = Field(default=32, ge=0)
    hold_timeout_s: float = Field(default=120.0, gt=0)
    upscale_delay_s: float = Field(default=10.0, ge=0)
    downscale_delay_s: float = Field(default=120.0, ge=0)
    downscale_to_zero_delay_s: float | None = Field(default=None, ge=0)
    look_back_period_s: float = Field(default=15.0, gt=10)
    num_cpus: float = Field(default=1.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _check_order(self) -> ScalingSettings:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}")
        if self.max_ongoing_requests < self.target_ongoing_requests:
            raise ValueError(
                f"max_ongoing_requests {self.max_ongoing_requests} is below target_ongoing_requests "
                f"{self.target_ongoing_requests:g}: load would never reach the target, and no replica be added"
            )
        if self.min_replicas == 0 and self.max_held_requests == 0:
            raise ValueError(
                "min_replicas 0 with max_held_requests 0: the request that would bring the first replica is refused, "
                "and none ever comes; let at least one wait, or keep one replica"
            )
        if self.min_replicas == 0 and self.max_held_requests > self.max_queued_requests:
            raise ValueError(
                f"max_held_requests {self.max_held_requests} is above max_queued_requests {self.max_queued_requests}: "
                "requests that wait for a first replica wait in that queue"
            )
        if self.num_gpus > 1 and self.num_gpus != math.floor(self.num_gpus):
            raise ValueError(f"num_gpus {self.num_gpus:g}: Ray reserves whole GPUs, or a part of one")
        return self


class Variant(_Frozen):
    """One side of a canary.

    Attributes:
        model: The served model's name.
        weight: Its share of the requests, in percent.
    """

    model: str = Field(min_length=1)
    weight: int = Field(ge=0, le=_FULL_WEIGHT)


class Canary(_Frozen):
    """A name under which several variants of one model are served, each with a share of the requests.

    Attributes:
        name: That requests ask for; no served model's own.
        variants: At least two; their weights sum to 100.
    """

    name: str = Field(min_length=1)
    variants: tuple[Variant, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _check_weights(self) -> Canary:
        total = sum(each.weight for each in self.variants)
        if total != _FULL_WEIGHT:
            shares = " + ".join(str(each.weight) for each in self.variants)
            raise ValueError(f"canary {self.name}: the weights {shares} sum to {total}; they are percent, so 100")
        twice = [name for name, count in Counter(each.model for each in self.variants).items() if count > 1]
        if twice:
            raise ValueError(f"canary {self.name}: the variant {twice[0]} is there twice; give it one weight")
        return self


class LiveSettings(_Frozen):
    """What may change while an application runs, without a replica being started anew: an ingress' `user_config`.

    Attributes:
        canaries: Names that stand for several variants, by weight.
    """

    canaries: tuple[Canary, ...] = ()


def live_settings(fields: Mapping[str, Any]) -> LiveSettings:
    """Return the settings of a `user_config`.

    Raises:
        SettingsError: A field is none, or its value is not allowed.
    """
    try:
        return LiveSettings.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        told = first.get("ctx", {}).get("error", first["msg"])
        raise SettingsError(f"user_config {'.'.join(map(str, first['loc']))}: {told}") from error


class RaySettings(_Frozen):
    """The same application as Ray Serve deployments.

    Attributes:
        ingress_replicas: Processes that run the HTTP application. Two, so that one may die.
        ingress_num_cpus: Logical CPUs that Ray reserves for each.
        generator: Replicas of each vision-language model.
        embedder: Replicas of each dual encoder.
        compose: "whole": each generator has its model's vision encoder. "encoder": the encoder is a deployment of its
            own, that all generators of the model share.
        encoder: Replicas of each such encoder. Its requests are images.
        models: Of single models by name, in place of those of their kind.
        canaries: Names that stand for several variants, by weight.
        routing: "content" prefers the replica that read a conversation's images and beginning before, "load" the one
            with the least to do.
        update_surge_percent: Replicas that may run beyond the others while an update replaces them, of their number,
            rounded up. With 0, an old one is stopped before the new one is started: a model of one replica is away for
            as long as that takes. More than 0 needs the room.
        waits_for_nodes: A replica that no node of the cluster has room for is waited for, as where nodes are added when
            they are needed. Else, it is refused at the start.
        silent_after_s: A replica that answers nothing for so long gets no requests; those that it has are sent to
            another, or fail if they were begun to be answered.
        patience_s: How long a request waits while its model has no replica that can take it.
        health_check_period_s: How often Ray asks a replica whether its engine lives. It replaces one that fails three
            times.
        health_check_timeout_s: A question that is not answered for so long has failed. A short one ends replicas of a
            machine that is merely busy.
    """

    ingress_replicas: int = Field(default=2, ge=1)
    ingress_num_cpus: float = Field(default=0.25, ge=0)
    generator: ScalingSettings = ScalingSettings()
    embedder: ScalingSettings = ScalingSettings()
    compose: Composition = "whole"
    encoder: ScalingSettings = ScalingSettings()
    models: dict[str, ScalingSettings] = {}
    canaries: tuple[Canary, ...] = ()
    routing: Routing = "content"
    update_surge_percent: int = Field(default=25, ge=0, le=100)
    waits_for_nodes: bool = False
    silent_after_s: float = Field(default=5.0, ge=2)
    patience_s: float = Field(default=15.0, gt=0)
    health_check_period_s: float = Field(default=1.0, gt=0)
    health_check_timeout_s: float = Field(default=10.0, gt=0)
