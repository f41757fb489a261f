"""The one mechanism by which anything is read or written: forward hooks that live exactly as long as a ``with``.

Reading is a write of the identity, so one hook serves both. A hook never writes in place and gives the module's output
back in the form it came in, a tensor or a tuple that begins with one.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from innerspace.network.site import Site
from innerspace.network.trace import Intervention, Visit

_Interventions = Sequence[Intervention]
_Arguments = tuple[Any, ...]


class Unvisited(RuntimeError):  # noqa: N818
    """A requested site never came up in the pass."""


class Revisited(RuntimeError):  # noqa: N818
    """A site came up more than once in a pass that records it once."""


class Stopped(Exception):  # noqa: N818
    """Ends a pass early, when every requested site was seen."""


@contextmanager
def attached(
    find: Callable[[str], nn.Module],
    plan: Mapping[Site, Sequence[Intervention]],
    visit: Callable[[Site, tuple[int, ...]], Visit],
    *,
    stop: bool = False,
    repeat: bool = False,
) -> Generator[None]:
    """Apply ``plan`` to every pass inside the ``with``, of the network whose modules ``find`` knows by their paths.

    With ``stop`` the pass ends (by ``Stopped``) once all sites were seen. With ``repeat`` a site may come up any number
    of times, as in generation; without, it must come up exactly once.

    Raises:
        Unvisited: at the end, if a site never came up; an exception of the pass itself takes precedence.
        Revisited: during the pass, if a site without ``call`` comes up again.
    """
    counts = dict.fromkeys(plan, 0)
    # what a call for an annotation or a typed container takes is a good part of what a pass takes here
    seen: set[Site] = set()
    changes: dict[Site, Tensor] = {}

    def handle(site: Site, interventions: _Interventions, hidden: Tensor) -> Tensor:
        call = counts[site]
        counts[site] = call + 1
        if site.call is not None and call != site.call:
            return hidden
        if call and site.call is None and not repeat:
            raise Revisited(
                f"site {site.name!r} ({site.module}) came up more than once in one pass; say which call is meant "
                f"with Site(call=…), or use Model.under, which edits every call"
            )
        occasion, before = visit(site, hidden.shape[:-1]), hidden
        for intervention in interventions:
            hidden = intervention(hidden, occasion)
        if site.around is not None and hidden is not before:
            changes[site] = hidden - before
        seen.add(site)
        if stop and len(seen) == len(plan):
            raise Stopped
        return hidden

    def carry(site: Site, written: Tensor) -> Tensor:
        return written + changes.pop(site) if site in changes else written

    handles: list[RemovableHandle] = []
    try:
        for site, interventions in plan.items():
            handles.append(_register(find(site.module), site.io, partial(handle, site, interventions)))
        for site in plan:
            # behind the hooks of all sites: what the way around carries is not what the module gave
            if site.around is not None:
                handles.append(_register(find(site.around), "output", partial(carry, site)))
        yield
    finally:
        for entry in handles:
            entry.remove()
    if missing := [site for site in plan if site not in seen]:
        raise Unvisited(
            f"site {missing[0].name!r} ({missing[0].module}) never came up in the pass: its module was not called "
            f"(an unused branch, a fused kernel, a compiled graph, or call={missing[0].call} beyond the last)"
        )


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


def _register(module: nn.Module, io: str, edit: Callable[[Tensor], Tensor]) -> RemovableHandle:
    if io == "input":

        def before(_: nn.Module, arguments: _Arguments) -> _Arguments:
            return (edit(arguments[0]), *arguments[1:])

        return module.register_forward_pre_hook(before)

    def after(_: nn.Module, __: _Arguments, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    return module.register_forward_hook(after)
