"""The one mechanism by which anything is read or written: forward hooks that live exactly as long as a ``with``.

Reading is a write of the identity, so one hook serves both. A hook never writes in place and gives the module's output
back in the form it came in, a tensor or a tuple that begins with one.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from innerspace.network.site import Site
from innerspace.network.trace import Intervention, Visit

_Arguments = tuple[Any, ...]


class Unvisited(RuntimeError):  # noqa: N818
    """A requested site never came up in the pass."""


class Revisited(RuntimeError):  # noqa: N818
    """A site came up more than once in a pass that records it once."""


class Stopped(Exception):  # noqa: N818
    """Ends a pass early, when every requested site was seen."""


@final
class Attached:
    """Applies ``plan`` to every pass inside the ``with``, of the network whose modules ``find`` knows by their paths.

    With ``stop`` the pass ends (by ``Stopped``) once all sites were seen. With ``repeat`` a site may come up any number
    of times, as in generation; without, it must come up exactly once.

    Raises:
        Unvisited: at the end, if a site never came up; an exception of the pass itself takes precedence.
        Revisited: during the pass, if a site without ``call`` comes up again.
    """

    # a class costs a third of what a generator does, and a pass through a small network takes no longer than a few
    __slots__ = ("find", "handles", "last", "places")

    def __init__(
        self,
        find: Callable[[str], nn.Module],
        plan: Mapping[Site, Sequence[Intervention]],
        visit: Callable[[Site, tuple[int, ...]], Visit],
        *,
        stop: bool = False,
        repeat: bool = False,
    ) -> None:
        last = _Last(len(plan)) if stop else None
        self.find = find
        self.places = [_Place(site, interventions, visit, last, repeat) for site, interventions in plan.items()]
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> None:
        try:
            around = False
            for place in self.places:
                site = place.site
                around = around or site.around is not None
                module = self.find(site.module)
                self.handles.append(
                    module.register_forward_pre_hook(place.before)
                    if site.io == "input"
                    else module.register_forward_hook(place.after)
                )
            if around:
                # behind the hooks of all sites: what the way around carries is not what the module gave
                for place in self.places:
                    if place.site.around is not None:
                        self.handles.append(self.find(place.site.around).register_forward_hook(place.beside))
        except BaseException:
            self._detach()
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._detach()
        if kind is not None:
            return
        for place in self.places:
            if not place.seen:
                site = place.site
                raise Unvisited(
                    f"site {site.name!r} ({site.module}) never came up in the pass: its module was not called "
                    f"(an unused branch, a fused kernel, a compiled graph, or call={site.call} beyond the last)"
                )

    def _detach(self) -> None:
        for handle in self.handles:
            handle.remove()


class _Last:
    """How many sites are still to be seen, where a pass ends behind the last of them."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


@final
class _Place:
    """A site in one pass: what is done there, whether it came up, and what was written to it."""

    # a pass through a small network takes no longer than a few calls: nothing is looked up here that can be kept
    __slots__ = ("change", "count", "interventions", "last", "repeat", "seen", "site", "visit")

    def __init__(
        self,
        site: Site,
        interventions: Sequence[Intervention],
        visit: Callable[[Site, tuple[int, ...]], Visit],
        last: _Last | None,
        repeat: bool,
    ) -> None:
        self.site, self.interventions, self.visit = site, interventions, visit
        self.last, self.repeat = last, repeat
        self.count, self.seen = 0, False
        self.change: Tensor | None = None

    def before(self, _: nn.Module, arguments: _Arguments) -> _Arguments:
        return (self.edited(arguments[0]), *arguments[1:])

    def after(self, _: nn.Module, __: _Arguments, output: Any) -> Any:
        return (self.edited(output[0]), *output[1:]) if isinstance(output, tuple) else self.edited(output)

    def beside(self, _: nn.Module, __: _Arguments, output: Any) -> Any:
        change, self.change = self.change, None
        if change is None:
            return output
        return (output[0] + change, *output[1:]) if isinstance(output, tuple) else output + change

    def edited(self, hidden: Tensor) -> Tensor:
        site, call = self.site, self.count
        self.count = call + 1
        if site.call is not None:
            if call != site.call:
                return hidden
        elif call and not self.repeat:
            raise Revisited(
                f"site {site.name!r} ({site.module}) came up more than once in one pass; say which call is meant "
                f"with Site(call=…), or use Model.under, which edits every call"
            )
        occasion, before = self.visit(site, hidden.shape[:-1]), hidden
        for intervention in self.interventions:
            hidden = intervention(hidden, occasion)
        if site.around is not None and hidden is not before:
            self.change = hidden - before
        if not self.seen:
            self.seen = True
            if self.last is not None:
                self.last.left -= 1
        if self.last is not None and not self.last.left:
            raise Stopped
        return hidden


@contextmanager
def bypassed(module: nn.Module, paths: Sequence[str], result: object) -> Generator[None]:
    """Inside the ``with`` the submodules at ``paths`` compute nothing and give ``result``; their hooks still run."""
    parts = [module.get_submodule(path) for path in paths]
    former = [vars(part).get("forward") for part in parts]
    try:
        for part in parts:
            part.forward = lambda *_, **__: result
        yield
    finally:
        for part, own in zip(parts, former, strict=True):
            if own is None:
                del part.forward
            else:
                part.forward = own
