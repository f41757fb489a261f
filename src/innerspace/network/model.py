"""A frozen network with named sites."""

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from innerspace.network.hooks import Stopped, attached
from innerspace.network.site import Site
from innerspace.network.trace import Intervention, Trace, Visit

Interventions = Mapping[str, Intervention | Sequence[Intervention]]
"""Site names, each with one intervention or several that compose in order."""


class Family(ABC):
    """What there is to know of an architecture: where its sites are, how to call it, what is padding."""

    @abstractmethod
    def sites(self, module: nn.Module) -> list[Site]:
        """The places where hidden states pass, in the order of the pass."""

    @abstractmethod
    def forward(self, module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        """Call the network on a batch."""

    def mask(self, batch: Any, site: Site) -> Bool[Tensor, "..."] | None:  # noqa: ARG002
        """Which positions at a site are valid (shape of the hidden state without its last axis); None for all."""
        return None


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
        self._parts = tuple(module.modules())
        self._by_module = {site.module: site for site in self.sites.values() if site.io == "output"}

    def __repr__(self) -> str:
        sites = ", ".join(f"{site.name} ({site.width})" for site in self.sites.values())
        return f"Model({type(self.module).__name__}, sites: {sites})"

    def site(self, name: str) -> Site:
        """The site of that name or module path.

        Raises:
            ValueError: if there is none, naming those there are.
        """
        found = self.sites.get(name) or self._by_module.get(name)
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
        trace = Trace()
        try:
            with self._edited(batch, interventions or {}, trace, stop=stop, repeat=False):
                trace.output = self.family.forward(self.module, batch)
        except Stopped:
            pass
        return trace

    @contextmanager
    def under(self, interventions: Interventions, batch: Any = None) -> Generator[Trace]:
        """Interventions hold for every call of ``module`` inside the ``with``: generation, simulators, demos.

        Every call of a site is edited; reads keep the last one. ``batch`` tells interventions what is padding.
        """
        trace = Trace()
        with self._edited(batch, interventions, trace, stop=False, repeat=True):
            yield trace

    @contextmanager
    def _edited(
        self, batch: Any, interventions: Interventions, trace: Trace, *, stop: bool, repeat: bool
    ) -> Generator[None]:
        plan = {
            self.site(name): tuple(given) if isinstance(given, Sequence) else (given,)
            for name, given in interventions.items()
        }
        masks = dict[str, Tensor | None]()

        def visit(site: Site) -> Visit:
            # a shape annotation here would be built anew at every visit
            def valid() -> Tensor | None:
                if batch is None:
                    raise ValueError(
                        f"what is padding at {site.name!r} depends on the batch: give it, under(…, batch=…)"
                    )
                if site.name not in masks:
                    masks[site.name] = self.family.mask(batch, site)
                return masks[site.name]

            return Visit(site, batch, trace, valid)

        with _frozen(self.module, self._parts), attached(self.module, plan, visit, stop=stop, repeat=repeat):
            yield

    def fingerprint(self) -> str:
        """A hash of the weights: the same for equal networks, another after any change."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


@contextmanager
def _frozen(module: nn.Module, parts: Sequence[nn.Module]) -> Generator[None]:
    """Evaluation mode and no gradient for the parameters; what was there before comes back at the end."""
    training = [part for part in parts if part.training]
    wanted = [p for p in module.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
    for part in training:
        part.training = False
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for part in training:
            part.training = True
        for parameter in wanted:
            parameter.requires_grad_(True)
