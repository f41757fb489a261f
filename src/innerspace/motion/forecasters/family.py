"""Forecasters whose hidden states come in stages: which sites are cuts, what they spare, what runs beside them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

from jaxtyping import Bool, Float
from torch import Tensor, nn

from innerspace.motion.divergence import forecast_divergence
from innerspace.motion.forecasters.forecaster import Forecaster
from innerspace.motion.framing import Batch
from innerspace.network.model import Family
from innerspace.network.site import Site
from innerspace.network.trace import Trace


class StagedFamily(Family, ABC):
    """A forecaster whose blocks stand in lists, its stages: block i of a stage is the site ``stage.i``.

    What follows a site reads nothing else of its stage, so every site is a cut.
    """

    @property
    @abstractmethod
    def network(self) -> type[Forecaster[Any]]:
        """The class that the family describes."""

    @property
    @abstractmethod
    def stages(self) -> Mapping[str, str]:
        """The modules that hold the blocks, by the names of their sites, in the order of the pass."""

    @abstractmethod
    def apart(self, stage: str) -> Sequence[str]:
        """The stages whose states do not depend on those of a stage."""

    def sites(self, module: nn.Module) -> list[Site]:
        """The sites, in the order of the pass."""
        network = self._checked(module)
        return [
            Site(f"{name}.{i}", f"{stage}.{i}", network.settings.width)
            for name, stage in self.stages.items()
            for i in range(len(cast(nn.ModuleList, network.get_submodule(stage))))
        ]

    def forward(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The forecasts: ``trajectory``, ``scale`` and ``logits``."""
        return self._checked(module)(batch)

    def cut(self, module: nn.Module, site: Site) -> Site:  # noqa: ARG002
        """The site: what follows reads nothing else of its stage, and the other stages run as ever."""
        return site

    def spared(self, module: nn.Module, cut: Site) -> list[str]:  # noqa: ARG002
        """The blocks of the site's stage up to the site."""
        name, _, last = cut.name.partition(".")
        return [f"{self.stages[name]}.{i}" for i in range(int(last) + 1)]

    def beside(self, module: nn.Module, cut: Site) -> list[Site]:
        """The ends of the stages that do not read the site's."""
        last = {site.name.split(".")[0]: site for site in self.sites(module)}
        return [last[stage] for stage in self.apart(cut.name.split(".")[0]) if stage in last]

    def divergence(
        self,
        module: nn.Module,  # noqa: ARG002
        clean: Trace,
        other: Trace,
        chosen: Bool[Tensor, "..."] | None,
    ) -> Float[Tensor, ""]:
        """E[KL(clean ‖ other)] of mode and path in nats, the mean over rows."""
        return forecast_divergence(clean.output, other.output, chosen)

    def _checked(self, module: nn.Module) -> Forecaster[Any]:
        if not isinstance(module, self.network):
            raise ValueError(f"{type(self).__name__} describes {self.network.__name__}, not {type(module).__name__}")
        return module
