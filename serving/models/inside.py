"""Image tokens that leave inside the decoder: what of it a bundle can do, and a request's prompt made ready for it."""

from __future__ import annotations

from bundle.directory import Bundle
from bundle.errors import ParameterError, SettingsError
from quant.visual_tokens.inside.table import MERGING, METHODS, InsideMethods
from quant.visual_tokens.skipping import missing, num_skipped
from quant.visual_tokens.table import SKIPPING
from runtime.decoder import TokenGraphs
from runtime.filled_prompt import FilledPrompt
from runtime.segmented_prompt import Choose, Layers, SegmentedPrompt
from serving.protocol import KVCompression, VisionReduction
from serving.settings import EngineSettings


class Inside:
    """The methods of `quant.visual_tokens.inside` for one model.

    Args:
        bundle: Opened.
        graphs: Its graphs; those on a device have no segments.

    Raises:
        BundleFileError: The bundle's routers are unusable.
    """

    def __init__(self, bundle: Bundle, graphs: TokenGraphs) -> None:
        self._manifest = bundle.manifest
        self._methods = InsideMethods(bundle)
        self._layers = Layers.of(bundle.manifest) if graphs.segments else None
        self._has_segments = bool(bundle.manifest.segments)

    def choice(self, vision: VisionReduction) -> Choose | None:
        """Return what chooses image tokens between segments; None where a reduction does nothing there.

        Raises:
            ParameterError: The bundle lacks what the method needs, or runs on a device.
        """
        if vision.method not in METHODS or vision.keep >= 1:
            return None
        if self._layers is None and self._has_segments:
            raise ParameterError(
                f"vision.method {vision.method!r} drops image tokens inside the decoder, which runs on the CPU alone; "
                "serve with --provider cpu, or choose a method that reduces images before the decoder",
                "vision.method",
            )
        return self._methods.choice(vision.method, vision.keep)

    def num_skipped(self, vision: VisionReduction) -> int:
        """Return how many layers' feed-forwards a request's image tokens skip.

        Raises:
            ParameterError: The bundle has no layers to be skipped, or there is no such share.
        """
        if vision.method != SKIPPING or vision.keep == 1:
            return 0
        if reason := missing(self._manifest):
            raise ParameterError(f"vision.method {SKIPPING!r} {reason}", "vision.method")
        return num_skipped(self._manifest, vision.keep)

    def check_default(self, settings: EngineSettings) -> None:
        """Check at the start that what requests get who do not say can be had.

        Raises:
            SettingsError: The bundle lacks what the method needs, or a KV policy is the default as well.
        """
        try:
            choose = self.choice(settings.vision)
            self.num_skipped(settings.vision)
        except ParameterError as error:
            raise SettingsError(f"--vision-method: {error}") from error
        if choose is not None and settings.kv_policy is not None and settings.kv_budget not in (None, 1):
            raise SettingsError(
                f"--vision-method {settings.vision_method} and --kv-policy {settings.kv_policy} both drop rows of a "
                "prompt; set one of them"
            )

    def segmented(self, prompt: FilledPrompt, choose: Choose | None) -> SegmentedPrompt | None:
        """Return a prompt that is to run in segments; None where it runs whole, as one without images does."""
        if choose is None or self._layers is None or not prompt.placed:
            return None
        return SegmentedPrompt(prompt, self._layers, choose)


def before_decoder(vision: VisionReduction) -> VisionReduction:
    """Return what of a reduction is done before the decoder: all of it, nothing, or the first half of AIM."""
    if vision.method == SKIPPING:
        return VisionReduction(MERGING, 1.0)
    if vision.method not in METHODS:
        return vision
    share = METHODS[vision.method].merged_before(vision.keep)
    return VisionReduction(MERGING, share)


def check_alone(vision: VisionReduction, choose: Choose | None, compression: KVCompression | None) -> None:
    """Check that a request drops a prompt's rows in one way: layers behind a cut hold other rows than those before.

    Raises:
        ParameterError: It asks for a KV policy as well.
    """
    if choose is not None and compression is not None:
        raise ParameterError(
            f"vision.method {vision.method!r} and kv.policy {compression.policy!r} both drop rows of a prompt; use one "
            "of them, or a method that reduces images before the decoder",
            "kv.policy",
        )
