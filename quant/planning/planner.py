"""Which layer gets which operator, block and width, and why.

The operator follows the rows M that meet a weight. Many rows (images, texts, prompts) want W8A8: integer products cost
a third of float32 ones. One row per step (decoding) wants the fewest bytes, which is MatMulNBits; its cost per weight
falls with the block, because each block of activations is rounded and summed by itself.

A recipe names the candidates of a layer, its default first. `quant.planning.selection` decides by `LayerTimes` at the
layers' rows, for all layers of a kind in a graph at once: the defaults are kept unless another form saves much. So a
plan is never slower than its default, and noise does not change it. Where nothing was measured (`--no-tune`), the times
are those of `quant.planning.layer_times.BUILTIN`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bundle.errors import QuantizationError
from bundle.form import Form
from bundle.manifest import ENCODER_ROLES, ComponentName, Manifest, Scheme, Target
from quant.planning.cliffs import refuse_cliffs
from quant.planning.layer_runs import Timed
from quant.planning.layer_times import LayerTimes
from quant.planning.plan import KEPT, Choice, ComponentPlan, LayerPlan
from quant.planning.recipes import RECIPES, Asked, Recipe
from quant.planning.selection import Candidates, Decision, decide
from quant.planning.survey import Kind, Site

Sites = Mapping[ComponentName, Sequence[Site]]

_W8A8 = Choice("w8a8", Form(8))
_TABLE_BLOCKS = (128, 64, 32, 16)
_SMALL_TABLE = 0.1
"""Of the language model's weights. Rounding the reference model's table (4 %) to 4 bits saved half a percent of its
bytes and cost more KL divergence than all layers under GPTQ (0.017 against 0.010 nats)."""
_SMALL_TABLE_BITS = 8
_WEIGHT_ONLY_BLOCKS = (128, 64, 32)
_EXPERT_BLOCKS = (128, 64, 32)
_MOST_EXPERT_BITS = 8
_NOT_TIMED = ("router", "gate", "adapter", "experts", "ternary experts")
_MOST_TIMED_ROWS = 256  # beyond it, time grows with the rows

_MANY_ROWS = "many rows meet each weight, where integer products run 2 to 3 times as fast as float32"
_NO_FEWER_BITS = "8 bits, not {bits}: many rows meet each weight, where fewer bits are slower than W8A8 and coarser"
_PROMPTS = "prompts bring many rows, and the first token waits for them"
_ONE_ROW = "decoding reads every weight for one row, so fewer bytes are less time"
_HEAD = "the vocabulary's scores are computed for one row at a time"
_HALF = "half the bytes, in the type that GPUs multiply fastest"
_LOOKED_UP = "rows are decoded as they are looked up"
_CONSTANT = "looked up once with constant ids"
_LIKE_HEAD = "the codes of the tied head, stored once"
_KEPT = "as exported"
_ROUTER = "a thousandth of the experts' bytes, and an error in it sends tokens to other experts"
_GATE = "a hundredth of the layer's bytes, and an error in what a state forgets grows from token to token"
_ADAPTER = "a few hundredths of the layer's bytes, and all that tells one adapter from another"
_EXPERTS = "a token meets the weights of few experts, so fewer bytes are less time"
_TERNARY_EXPERTS = "ternary as trained: two bits hold these weights exactly"
_EXPERTS_ON_CUDA = "in float16: experts in codes have no kernel on CUDA in the form that is written"
_NO_EXPERT_BLOCK = "no block divides both widths of the experts"
_NO_WHOLE_BLOCK = "8 bits: no block divides its inputs"


@dataclass(frozen=True)
class Planner:
    """Plans the graphs of one bundle.

    Attributes:
        manifest: The parent's.
        asked: The `--weights` option.
        target: The execution provider that the variant is for.
        times: Of this machine, or built in; None where the variant will run elsewhere: defaults are then taken.
        prompt_rows: Tokens of the prompt that a first token waits for.
        block_size: For every layer that has blocks; None: chosen.
    """

    manifest: Manifest
    asked: Asked
    target: Target
    times: LayerTimes | None
    prompt_rows: int
    block_size: int | None = None

    def with_times(self, times: LayerTimes) -> Planner:
        """Return the planner with times to choose by."""
        return replace(self, times=times)

    def recipe_of(self, component: ComponentName) -> str:
        """Return the recipe that a component gets.

        Unless asked otherwise, on a GPU encoders are float16, and a small token table keeps 8 bits.
        """
        name = self.asked.recipe_of(component)
        if component in self.asked.by_component:
            return name
        if component == "embed_tokens" and RECIPES[name].bits < _SMALL_TABLE_BITS and self._has_small_table():
            return "int8"
        is_encoder = component in ENCODER_ROLES
        return "fp16" if self.target == "cuda" and is_encoder and name == "int8" else name

    def _has_small_table(self) -> bool:
        table, decoder = (self.manifest.components[name].weight_bytes for name in ("embed_tokens", "decoder"))
        return table <= _SMALL_TABLE * (table + decoder)

    def plan_component(
        self, component: ComponentName, sites: Sequence[Site], *, recipe: str, for_steps: bool = False
    ) -> ComponentPlan:
        """Return the plan of one graph.

        Args:
            component: Its name.
            sites: Its layers.
            recipe: A name in `RECIPES`.
            for_steps: A decoder's speed counts at one row, not at a prompt's.

        Raises:
            QuantizationError: A form that the dialect, the target or the layer cannot hold, or that is a known cliff.
        """
        decoder_rows = 1 if for_steps else self.prompt_rows
        decisions = self._decisions(sites, recipe, decoder_rows)
        layers = tuple(self._plan_site(site, recipe, decoder_rows, decisions.get(site.kind)) for site in sites)
        plan = ComponentPlan(component, recipe, _scheme(layers, RECIPES[recipe]), layers, RECIPES[recipe].scaling)
        refuse_cliffs(plan, self.manifest.dialect, self.target)
        return replace(plan, decisions=tuple(decision.told(kind) for kind, decision in decisions.items()))

    def candidates(self, site: Site, recipe: Recipe, rows: float) -> list[Choice]:
        """Return what a linear layer may become, the default first.

        Raises:
            QuantizationError: The dialect has no operator for the recipe.
        """
        if recipe.method == "fp32":
            return [KEPT]
        method = recipe.method if self.manifest.dialect == "contrib" else recipe.portable_method
        if method is None:
            raise QuantizationError(
                f"{site.name}: {recipe.summary}: the {self.manifest.dialect} dialect has no operator for it; "
                "export the checkpoint with --dialect contrib"
            )
        if method == "w8a8":
            return self._eight_bits(site, rows)
        if not recipe.blocks:
            return [Choice(method, Form(recipe.bits, rounding=recipe.rounding))]
        if self.block_size is not None and self.block_size not in recipe.blocks:
            sizes = ", ".join(map(str, recipe.blocks))
            raise QuantizationError(f"--block-size {self.block_size}: {recipe.summary}, have blocks of {sizes} only")
        blocks = self._blocks(recipe.blocks[:1] if recipe.refines and not self.block_size else recipe.blocks, site)
        if method == "qdq_int4" and self.block_size is None:
            blocks = [size for size in blocks if site.num_inputs % size == 0]
        return [Choice(method, Form(recipe.bits, size, recipe.rounding)) for size in blocks] or [_W8A8]

    def wanted(self, component: ComponentName, sites: Sequence[Site], recipes: Sequence[str]) -> Iterator[Timed]:
        """Yield the measurements that planning a graph by these recipes will ask for."""
        for site in sites:
            if site.is_table or site.kind in _NOT_TIMED:
                continue
            for rows in self._timed_rows(site):
                names = {RECIPES[name].head if site.kind == "head" else name for name in recipes}
                for name in sorted(names):
                    for choice in self.candidates(site, RECIPES[name], rows):
                        yield Timed(site.num_inputs, site.num_outputs, choice, rows)

    def _timed_rows(self, site: Site) -> tuple[int, ...]:
        if site.kind == "head":
            return (1,)
        if site.rows is None:
            return (1, min(max(self.prompt_rows, 2), _MOST_TIMED_ROWS))
        return (min(site.rows, _MOST_TIMED_ROWS),)

    def _decisions(self, sites: Sequence[Site], recipe: str, decoder_rows: float) -> dict[Kind, Decision]:
        """Return what layers become by the times, by kind; nothing where there are no times or no alternatives."""
        if self.times is None:
            return {}
        by_kind: dict[Kind, list[Candidates]] = {}
        for site in sites:
            if not site.is_table and site.kind not in _NOT_TIMED:
                by_kind.setdefault(site.kind, []).append(self._choices(site, recipe, decoder_rows))
        with_others = {kind for kind, layers in by_kind.items() if any(len(layer.choices) > 1 for layer in layers)}
        return {kind: decide(layers, self.times) for kind, layers in by_kind.items() if kind in with_others}

    def _choices(self, site: Site, recipe: str, decoder_rows: float) -> Candidates:
        """Return what a linear layer may become at the rows that it will meet."""
        name = RECIPES[recipe].head if site.kind == "head" else recipe
        rows = 1.0 if site.kind == "head" else decoder_rows if site.rows is None else site.rows
        return Candidates(site.num_inputs, site.num_outputs, rows, tuple(self.candidates(site, RECIPES[name], rows)))

    def _plan_site(self, site: Site, recipe: str, decoder_rows: float, decision: Decision | None) -> LayerPlan:
        if site.kind == "constant table":
            return _layer(site, KEPT, _CONSTANT)
        if site.kind == "router":
            return _layer(site, KEPT, _ROUTER)
        if site.kind == "gate":
            return _layer(site, KEPT, _GATE)
        if site.kind == "adapter":
            return _layer(site, KEPT, _ADAPTER)
        if site.kind in ("experts", "ternary experts"):
            return self._plan_experts(site, RECIPES[recipe])
        if site.is_table:
            return self._plan_table(site, RECIPES[recipe].table)
        name = RECIPES[recipe].head if site.kind == "head" else recipe
        layer = self._choices(site, recipe, decoder_rows)
        choice = layer.taking(decision.chosen.choice if decision else None)
        reason = self._reason(site, RECIPES[name], choice, layer.rows)
        if decision is None or choice == layer.taking(None):
            return _layer(site, choice, reason)
        return _layer(site, choice, f"{reason}; {decision.gain}")

    def _plan_table(self, site: Site, recipe: str) -> LayerPlan:
        if recipe == "fp32":
            return _layer(site, KEPT, _KEPT)
        if recipe == "fp16":
            return _layer(site, Choice("float16", Form(16)), _LOOKED_UP)
        if self.manifest.dialect != "contrib":
            return _layer(site, Choice("gather_rows", Form(8)), _LOOKED_UP)
        form = Form(RECIPES[recipe].bits, self._blocks(_TABLE_BLOCKS, site)[0])
        return _layer(site, Choice("gather_blocks", form), _LOOKED_UP)

    def with_head(self, table: LayerPlan, head: LayerPlan) -> LayerPlan:
        """Return a tied table's plan in the form of the head, where both then hold the same bytes."""
        form, other = table.choice.form, head.choice.form
        if table.choice.method != "gather_blocks" or head.choice.method != "matmul_nbits" or not form or not other:
            return table
        if form.bits != other.bits or other.block_size is None or table.num_inputs % other.block_size:
            return table
        return replace(
            table, choice=replace(table.choice, form=other), reason=_LIKE_HEAD, is_shared=True, head=head.name
        )

    def _plan_experts(self, site: Site, recipe: Recipe) -> LayerPlan:
        """Return the plan of routed experts: exact where they were trained ternary, else in the recipe's bits."""
        blocks = [size for size in _EXPERT_BLOCKS if site.num_inputs % size == 0 and site.num_hidden % size == 0]
        if self.block_size is not None:
            blocks = [self.block_size]
        if self.target == "cuda" and self.manifest.dialect == "contrib":
            return _layer(site, Choice("float16", Form(16)), _EXPERTS_ON_CUDA)
        if recipe.bits > _MOST_EXPERT_BITS or not blocks:
            return _layer(site, KEPT, _KEPT if blocks else _NO_EXPERT_BLOCK)
        if site.kind == "ternary experts":
            return _layer(site, Choice("qmoe", Form(2, blocks[0], "ternary")), _TERNARY_EXPERTS)
        rounding = {2: "ternary", 4: "hqq" if recipe.rounding == "hqq" else "rtn", 8: "rtn"}[recipe.bits]
        return _layer(site, Choice("qmoe", Form(recipe.bits, blocks[0], rounding)), _EXPERTS)

    def _eight_bits(self, site: Site, rows: float) -> list[Choice]:
        """Return W8A8 and, in a decoder, weight-only forms; those first where one row at a time is computed.

        An encoder's rows come from several requests, and W8A8 gives a row the same bits alone or beside others;
        MatMulNBits has a kernel of its own for one row and rounds it differently.
        """
        if self.manifest.dialect != "contrib" or (site.rows is not None and self.target != "cuda"):
            return [_W8A8]
        blocks = self._blocks(_WEIGHT_ONLY_BLOCKS, site)
        weight_only = [Choice("matmul_nbits", Form(8, size)) for size in blocks]
        if self.target == "cuda":
            return weight_only
        return [*weight_only, _W8A8] if rows == 1 else [_W8A8, *weight_only]

    def _blocks(self, preferred: Sequence[int], site: Site) -> list[int]:
        """Return block sizes, those that divide K first."""
        if self.block_size is not None:
            return [self.block_size]
        blocks = sorted(preferred, key=lambda size: site.num_inputs % size != 0)
        whole = [size for size in blocks if site.num_inputs % size == 0]
        return whole if whole and site.kind == "head" else blocks  # only whole blocks can be shared with a tied table

    def _reason(self, site: Site, recipe: Recipe, choice: Choice, rows: float) -> str:
        if choice.form is None:
            return _KEPT
        if choice.method == "float16":
            return _HALF
        if site.kind == "head":
            return _HEAD
        if choice == _W8A8 and recipe.bits < choice.form.bits:
            return _NO_WHOLE_BLOCK
        if site.rows is None:
            return _ONE_ROW if rows == 1 else _PROMPTS
        bits = RECIPES[self.asked.default].bits
        return _NO_FEWER_BITS.format(bits=bits) if bits < choice.form.bits else _MANY_ROWS


def require_float(manifest: Manifest) -> None:
    """Check that a bundle still holds the weights of its checkpoint.

    Raises:
        QuantizationError: A component is quantized already; its rounding errors would be rounded again.
    """
    done = [f"{name} is {part.scheme}" for name, part in manifest.components.items() if part.scheme != "fp32"]
    if manifest.cache_scheme != "float":
        done.append(f"its cache is {manifest.cache_scheme}")
    if done:
        raise QuantizationError(
            f"{manifest.name} is quantized already ({', '.join(done)}). Quantize the fp32 bundle that it was made from."
        )


def _layer(site: Site, choice: Choice, reason: str) -> LayerPlan:
    return LayerPlan(
        site.name, choice, site.num_inputs, site.num_outputs, reason, site.is_table, site.copies, kind=site.kind
    )


def _scheme(layers: Sequence[LayerPlan], recipe: Recipe) -> Scheme:
    """Return the manifest's word: W8A8 where any layer is, weight-only where int8 layers only store 8 bits."""
    methods = {layer.choice.method for layer in layers if layer.choice.form is not None}
    if not methods:
        return "fp32"
    bits = {layer.choice.form.bits for layer in layers if layer.choice.form is not None}
    if bits == {8} and not methods & {"w8a8", "w8a8_static"}:
        return "int8-weight-only"
    return recipe.scheme
