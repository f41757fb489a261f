"""Linear probes trained while hidden states stream by, as in Words in Motion, but apart from the network.

The paper adds the probes' losses to the forecaster's and clips one gradient norm over both, so that the probes disturb
what they measure. Here the states are detached, and the probes have their own optimizer and each its own clipping.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from innerspace.learn.probes import Probe
from innerspace.value import Value


@dataclass(frozen=True)
class OnlineSettings(Value):
    """AdamW with the paper's learning rate and weight decay; ``clip`` bounds the gradient norm of each probe."""

    rate: float = 2e-4
    decay: float = 1e-2
    clip: float = 0.5
    seed: int = 0


class OnlineProbes(nn.Module):
    """One linear layer per site and feature, fitted by cross-entropy on a stream of states (Tas and Wagner 2025).

    Args:
        widths: the width of each site.
        classes: the number of classes of each feature.
        settings: how the probes are trained.
    """

    def __init__(
        self, widths: Mapping[str, int], classes: Mapping[str, int], settings: OnlineSettings | None = None
    ) -> None:
        super().__init__()
        self.settings = settings or OnlineSettings()
        self.keys = [(site, feature) for site in widths for feature in classes]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            self.layers = nn.ModuleList(nn.Linear(widths[site], classes[feature]) for site, feature in self.keys)
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=self.settings.rate, weight_decay=self.settings.decay)

    def step(
        self, states: Mapping[str, Float[Tensor, "batch _"]], labels: Mapping[str, Int[Tensor, "batch"]]
    ) -> dict[tuple[str, str], Float[Tensor, ""]]:
        """One update from one batch; the cross-entropy of each probe before it. Undefined labels (−1) do not count.

        Raises:
            ValueError: for a site or a feature that the batch lacks.
        """
        for kind, wanted, given in (("site", 0, states), ("feature", 1, labels)):
            if missing := sorted({key[wanted] for key in self.keys} - set(given)):
                raise ValueError(f"the batch lacks {kind} {missing[0]!r}; it has {', '.join(given) or 'none'}")
        losses = dict[tuple[str, str], Tensor]()
        with torch.enable_grad():
            for (site, feature), layer in zip(self.keys, self.layers, strict=True):
                label = labels[feature]
                total = nn.functional.cross_entropy(
                    layer(states[site].detach()), label, ignore_index=-1, reduction="sum"
                )
                losses[site, feature] = total / (label >= 0).sum().clamp_min(1)
            self.optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
        for layer in self.layers:
            nn.utils.clip_grad_norm_(layer.parameters(), self.settings.clip)
        self.optimizer.step()
        return {key: loss.detach() for key, loss in losses.items()}

    def fit(self, batches: Iterable[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]) -> None:
        """Take one step for each batch of states by site and labels by feature."""
        for states, labels in batches:
            self.step(states, labels)

    def probe(self, site: str, feature: str) -> Probe:
        """A copy of one probe as it is now.

        Raises:
            ValueError: for a site and feature that are not probed.
        """
        if (site, feature) not in self.keys:
            raise ValueError(f"{feature!r} is not probed at {site!r}; possible are {self.keys}")
        weight, bias = self.layers[self.keys.index((site, feature))].parameters()
        return Probe(weight.detach().clone(), bias.detach().clone())
