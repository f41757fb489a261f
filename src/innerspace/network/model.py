"""A frozen network with named sites."""

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from innerspace.network.hooks import Attached, Stopped, bypassed
from innerspace.network.site import Site, Where
from innerspace.network.trace import Intervention, Trace, Visit

Interventions = Mapping[str, Intervention | Sequence[Intervention]]
"""Site names, each with one intervention or several that compose in order."""

_Plan = Mapping[Site, Sequence[Intervention]]
_Shape = tuple[int, ...]
_Mask = Tensor | None


class Family(ABC):
    """What there is to know of an architecture: where its sites are, how to call it, what is padding."""

    @abstractmethod
    def sites(self, module: nn.Module) -> list[Site]:
        """The places where hidden states pass, in the order of the pass."""

    @abstractmethod
    def forward(self, module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        """Call the network on a batch."""

    def mask(self, batch: Any, site: Site) -> Bool[Tensor, "..."] | None:
        """Which positions at a site are valid (shape of the hidden state without its last axis); None for all."""
        return None

    def aliases(self, module: nn.Module) -> Mapping[str, str]:
        """Other names of sites, such as those of another library; module paths need not be among them."""
        return {}

    def cut(self, module: nn.Module, site: Site) -> Site | None:
        """The last site, at this one or before, whose state alone tells all that follows; None if there is none."""
        return None

    def spared(self, module: nn.Module, cut: Site) -> Sequence[str]:
        """The modules that need not run, in their order, when the state at a cut is given.

        All of them give what the last of them gives: a tensor, or a tuple that begins with one.
        """
        return ()

    def beside(self, module: nn.Module, cut: Site) -> Sequence[Site]:
        """The last sites of whatever runs beside a cut: their states do not depend on the one there."""
        return ()

    def head(self, module: nn.Module) -> Site | None:
        """The site where ``divergence`` takes over, so that passes may stop there; None where they run to the end."""
        return None

    def divergence(
        self,
        module: nn.Module,
        clean: Trace,
        other: Trace,
        chosen: Bool[Tensor, "..."] | None,
    ) -> Float[Tensor, ""]:
        """E[KL(clean ‖ other)] in nats between the networks' output distributions, the mean over chosen positions.

        Differentiable in the other trace. Each trace holds the state at ``head``, or the output where there is none.
        ``chosen`` are positions of the head, or rows of the output; None for all.

        Raises:
            ValueError: if the family does not know what its outputs mean.
        """
        raise ValueError(
            f"{type(self).__name__} does not say how far two outputs are apart; training end to end needs a divergence"
        )


@final
class Model:
    """A network, never changed between calls: weights, flags, keys and hooks are after a pass as they were before.

    A pass runs in evaluation mode and gives no gradient to the network's parameters; gradients reach the
    interventions and the input. ``sites`` maps names to places; module paths are accepted as names too. Modules that
    are added to the network later belong to another model: make a new one.
    """

    def __init__(self, module: nn.Module, family: Family) -> None:
        self.module = module
        self.family = family
        self.sites: dict[str, Site] = {site.name: site for site in family.sites(module)}
        self._attributes = [vars(part) for part in module.modules()]
        outputs = {site.module: site for site in self.sites.values() if site.io == "output"}
        aliases = {alias: self.sites[name] for alias, name in family.aliases(module).items()}
        self._names = outputs | aliases | self.sites
        self._forms = dict[str, int]()
        self._found = dict[str, nn.Module]()

    def __repr__(self) -> str:
        sites = ", ".join(f"{site.name} ({site.width})" for site in self.sites.values())
        return f"Model({type(self.module).__name__}, sites: {sites})"

    def site(self, name: str) -> Site:
        """The site of that name, alias or module path.

        Raises:
            ValueError: if there is none, naming those there are.
        """
        found = self._names.get(name)
        if found is None:
            close = difflib.get_close_matches(name, self.sites, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"no site is called {name!r}; this model has {', '.join(self.sites)}{hint}")
        return found

    def run(self, batch: Any, interventions: Interventions | None = None, *, stop: bool = False) -> Trace:
        """One pass, with interventions at sites.

        With ``stop`` the pass ends behind the last of the given sites, and the trace has no output.

        Raises:
            ValueError: for an unknown site, or ``stop`` without any site.
            Unvisited: if a site never came up.
            Revisited: if a site came up more than once.
        """
        if stop and not interventions:
            raise ValueError("stop=True needs at least one site to stop behind")
        return self._pass(batch, self._plan(interventions or {}), stop=stop)

    def resume(
        self,
        batch: Any,
        site: str,
        hidden: Float[Tensor, "*positions d"],
        interventions: Interventions | None = None,
        *,
        beside: Mapping[str, Tensor] | None = None,
        stop: bool = False,
    ) -> Trace:
        """A pass that goes on from the state ``hidden`` at a site, given all of it: what lies before is not computed.

        That holds for sites that are a ``cut``; at others the pass runs from the start, and what differs is the state
        at the site. Interventions at the site itself see the given state. States at sites ``beside`` it, which run
        apart from what lies before it, are taken as given too.

        Raises:
            ValueError: for an unknown site, a state of another width, or an intervention at a place that is skipped.
            Unvisited: if a site never came up.
        """
        place = self.site(site)
        if hidden.shape[-1] != place.width:
            raise ValueError(f"the given state has width {hidden.shape[-1]}, the one at {site!r} has {place.width}")
        given = {place: hidden} if self.cut(site) == place else {}
        given |= {self.site(name): state for name, state in (beside or {}).items()}
        spared = {cut: self.family.spared(self.module, cut) for cut in given}
        skipped = [path for paths in spared.values() for path in paths]
        plan = self._plan(interventions or {})
        for other in plan:
            if other not in given and any(f"{other.module}.".startswith(f"{path}.") for path in skipped):
                raise ValueError(
                    f"nothing is computed at {other.name!r} when a pass goes on from {site!r}; "
                    f"it may be touched from {place.module} on"
                )

        def give(x: Tensor, visit: Visit) -> Tensor:  # noqa: ARG001
            return hidden

        plan = dict(plan) | {place: (give, *plan.get(place, ()))}
        with ExitStack() as stack:
            for cut, paths in spared.items():
                if paths:
                    stack.enter_context(bypassed(self.module, paths, self._formed(batch, paths[-1], given[cut])))
            return self._pass(batch, plan, stop=stop and len(plan) > 0)

    def fork(self, batch: Any, site: str) -> "Fork":
        """A clean pass to the end, from which others that differ at a site or behind it can branch off.

        Raises:
            ValueError: for an unknown site.
        """
        place, cut = self.site(site), self.cut(site)
        beside = [] if cut is None else list(self.family.beside(self.module, cut))
        kept = [place, *beside] if cut is None else [place, cut, *beside]
        return Fork(self, batch, cut, [one.name for one in beside], self.run(batch, {one.name: _keep for one in kept}))

    def cut(self, site: str) -> Site | None:
        """The last place, at the site or before, from which ``resume`` computes only what follows; None without one."""
        return self.family.cut(self.module, self.site(site))

    def positions(
        self, batch: Any, site: str, hidden: Float[Tensor, "*positions d"], where: Where
    ) -> Bool[Tensor, "*positions"]:
        """Which positions of a hidden state at a site are meant.

        Raises:
            ValueError: for an unknown site, or an index outside the token axis.
        """
        return where.select(tuple(hidden.shape[:-1]), self.family.mask(batch, self.site(site)), hidden.device)

    @contextmanager
    def under(self, interventions: Interventions, batch: Any = None) -> Generator[Trace]:
        """Interventions hold for every call of ``module`` inside the ``with``: generation, simulators, demos.

        Every call of a site is edited; reads keep the last one. ``batch`` tells interventions what is padding.
        """
        trace = Trace()
        attached = self._attached(batch, self._plan(interventions), trace, repeat=True)
        with _Frozen(self.module, self._attributes), attached:
            yield trace

    def _part(self, path: str) -> nn.Module:
        """The module at a path: to walk there takes longer than to attach a hook."""
        if path not in self._found:
            self._found[path] = self.module.get_submodule(path)
        return self._found[path]

    def _plan(self, interventions: Interventions) -> _Plan:
        plan: dict[Site, tuple[Intervention, ...]] = {}
        for name, given in interventions.items():
            site = self.site(name)
            plan[site] = (*plan.get(site, ()), *(given if isinstance(given, Sequence) else (given,)))
        return plan

    def _pass(self, batch: Any, plan: _Plan, *, stop: bool) -> Trace:
        trace = Trace()
        try:
            with _Frozen(self.module, self._attributes), self._attached(batch, plan, trace, stop=stop):
                trace.output = self.family.forward(self.module, batch)
        except Stopped:
            pass
        return trace

    def _formed(self, batch: Any, path: str, hidden: Tensor) -> object:
        """A state in the form in which the module at that path gives it, which depends on the library's version."""
        if path not in self._forms:

            def look(_: nn.Module, __: object, output: object) -> None:
                self._forms[path] = len(cast(tuple[object, ...], output)) if isinstance(output, tuple) else 0
                raise Stopped

            handle = self.module.get_submodule(path).register_forward_hook(look)
            try:
                with torch.no_grad(), _Frozen(self.module, self._attributes):
                    self.family.forward(self.module, batch)
            except Stopped:
                pass
            finally:
                handle.remove()
        size = self._forms[path]
        return (hidden, *[None] * (size - 1)) if size else hidden

    def _attached(self, batch: Any, plan: _Plan, trace: Trace, *, stop: bool = False, repeat: bool = False) -> Attached:
        masks: dict[str, Tensor | None] = {}
        seen: dict[str, tuple[int, int]] = {}

        def visit(site: Site, shape: _Shape) -> Visit:
            # an annotation that is written out here would be built anew at every visit
            def valid() -> _Mask:
                if batch is None:
                    raise ValueError(
                        f"what is padding at {site.name!r} depends on the batch: give it, under(…, batch=…)"
                    )
                if site.name not in masks:
                    masks[site.name] = self.family.mask(batch, site)
                return _fitted(masks[site.name], shape) if repeat else masks[site.name]

            return Visit(site, batch, trace, valid, self._start(seen, site, shape, batch) if repeat else 0)

        return Attached(self._part, plan, visit, stop=stop, repeat=repeat)

    def _start(self, seen: dict[str, tuple[int, int]], site: Site, shape: tuple[int, ...], batch: Any) -> int:
        """How many tokens of a generation came before these: a call of the prompt's length begins another one.

        Where no mask tells how long the prompt is, the first call does.
        """
        mask = None if batch is None else self.family.mask(batch, site)
        length, count = seen.get(site.name, (shape[-1], 0))
        begins = shape[-1] == length if mask is None else shape[-1] == mask.shape[-1] > 1
        start = 0 if begins else count
        seen[site.name] = (length, start + shape[-1])
        return start

    def fingerprint(self) -> str:
        """A hash of the weights: the same for equal networks, another after any change."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


@final
class Fork:
    """The ``clean`` pass of a batch, which holds the state at a site, and the others that branch off there.

    All of them share what does not depend on the site; it is computed once.
    """

    def __init__(self, model: Model, batch: Any, cut: Site | None, beside: Sequence[str], clean: Trace) -> None:
        self.clean = clean
        self._model, self._batch, self._cut, self._beside = model, batch, cut, beside

    def run(self, interventions: Interventions, *, stop: bool = False) -> Trace:
        """A pass with interventions at the site or behind it.

        Raises:
            ValueError: for an unknown site, or one before the site of the fork.
        """
        if self._cut is None:
            return self._model.run(self._batch, interventions, stop=stop)
        states = self.clean.hidden
        beside = {name: states[name] for name in self._beside}
        cut = self._cut.name
        return self._model.resume(self._batch, cut, states[cut], interventions, beside=beside, stop=stop)


def _keep(x: Tensor, visit: Visit) -> Tensor:
    visit.trace.hidden[visit.site.name] = x
    return x


def _fitted(mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """The prompt's mask for the hidden states of a generation: repeated samples follow each other, new tokens count."""
    if mask is None or tuple(mask.shape) == shape:
        return mask
    if mask.shape[-1] != shape[-1]:
        return mask.new_ones(shape)
    return mask.repeat_interleave(shape[0] // len(mask), 0)


@final
class _Frozen:
    """Evaluation mode and no gradient for the parameters; what was there before comes back at the end."""

    __slots__ = ("attributes", "module", "training", "wanted")

    def __init__(self, module: nn.Module, attributes: Sequence[dict[str, Any]]) -> None:
        self.module, self.attributes = module, attributes

    def __enter__(self) -> None:
        # a module's own ways to get and set an attribute take longer than a hook
        self.training = [own for own in self.attributes if own["training"]]
        self.wanted = [p for p in self.module.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
        for own in self.training:
            own["training"] = False
        for parameter in self.wanted:
            parameter.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for own in self.training:
            own["training"] = True
        for parameter in self.wanted:
            parameter.requires_grad_(True)
