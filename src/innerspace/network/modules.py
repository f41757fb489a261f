"""Any network as a model: sites are modules at given paths, and nothing else is known of it."""

from collections.abc import Mapping
from typing import Any, cast, final

from jaxtyping import Bool
from torch import Tensor, nn

from innerspace.network.model import Family
from innerspace.network.site import Site


@final
class Modules(Family):
    """A network of no known architecture; ``widths`` gives the size of the hidden state behind every module path.

    A batch is what the network takes: a mapping of keyword arguments, a tuple of arguments, or a single one. ``valid``
    names the entry of such a mapping that is true where a token is no padding; it is passed on unless ``passed`` is
    False. What the network returns, a tensor, a tuple or a mapping, is the output: ``"output"``, ``"output.0"`` and so
    on, or by the mapping's names.
    """

    def __init__(self, widths: Mapping[str, int], *, valid: str = "", passed: bool = True) -> None:
        self.widths, self.valid, self.passed = dict(widths), valid, passed

    def sites(self, module: nn.Module) -> list[Site]:
        """The modules' outputs, named by their paths.

        Raises:
            ValueError: for a path at which the network has no module, naming some that it has.
        """
        there = dict(module.named_modules(remove_duplicate=False))
        for path in self.widths:
            if path not in there:
                known = ", ".join(name for name in list(there)[:12] if name)
                raise ValueError(f"the network has no module {path!r}; it has {known}{' …' if len(there) > 12 else ''}")
        return [Site(path, path, width, axes="… d") for path, width in self.widths.items()]

    def forward(self, module: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        """A pass."""
        if isinstance(batch, Mapping):
            given = cast(Mapping[str, Any], batch)
            found = module(**{name: item for name, item in given.items() if self.passed or name != self.valid})
        else:
            found = module(*cast(tuple[Any, ...], batch)) if isinstance(batch, tuple) else module(batch)
        return _named(found)

    def mask(self, batch: Any, site: Site) -> Bool[Tensor, "..."] | None:
        """Which positions count, where the batch tells."""
        return batch[self.valid].bool() if self.valid else None


def _named(found: Any) -> Mapping[str, Tensor]:
    if isinstance(found, Mapping):
        entries = cast(Mapping[str, Any], found)
        return {name: item for name, item in entries.items() if isinstance(item, Tensor)}
    if isinstance(found, tuple):
        items = cast(tuple[Any, ...], found)
        return {f"output.{i}": item for i, item in enumerate(items) if isinstance(item, Tensor)}
    return {"output": found}
