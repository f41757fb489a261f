"""Where a file's numbers belong: other tools' names of places in a network, and ours."""

import re
from dataclasses import dataclass, replace

from innerspace.decompose.base import Home
from innerspace.value import Value

_HOOKS = {
    "resid": "hook_resid_post",
    "resid_mid": "hook_resid_mid",
    "attn": "hook_attn_out",
    "mlp": "hook_mlp_out",
    "heads": "attn.hook_z",
}
_PARTS = {
    "": "resid",
    "mlp": "mlp",
    "attn": "attn",
    "attention": "attn",
    "self_attn": "attn",
    "self_attention": "attn",
}


@dataclass(frozen=True)
class Source(Value):
    """What a file says of where its numbers belong: a network, by the name that the file gives it, and a site.

    The site has this library's name (``resid.5``) where that is known, else the file's own. Empty is unknown.
    """

    model: str = ""
    site: str = ""


def from_hook(hook: str) -> str:
    """The site that TransformerLens calls so; before block i is behind block i − 1."""
    if hook == "hook_embed":
        return "embed"
    found = re.fullmatch(r"blocks\.(\d{1,4})\.(\w+(?:\.\w+)?)", hook)
    if found is None:
        return hook
    i, name = int(found[1]), found[2]
    if name == "hook_resid_pre":
        return f"resid.{i - 1}" if i else "embed"
    return next((f"{kind}.{i}" for kind, own in _HOOKS.items() if own == name), hook)


def to_hook(site: str) -> str:
    """What TransformerLens calls a site; other names stay as they are."""
    kind, _, i = site.partition(".")
    if site == "embed":
        return "blocks.0.hook_resid_pre"
    return f"blocks.{i}.{_HOOKS[kind]}" if kind in _HOOKS and i.isdecimal() else site


def from_path(path: str) -> str:
    """The site that is the output of a module of a Hugging Face decoder: ``layers.8``, ``h.8.mlp``."""
    found = re.fullmatch(r"(?:[\w]+\.)*(?:layers|layer|h|blocks)\.(\d{1,4})(?:\.(\w+))?", path)
    if found is None or (found[2] or "") not in _PARTS:
        return path
    return f"{_PARTS[found[2] or '']}.{int(found[1])}"


def layer(site: str) -> int:
    """The number in a site's name.

    Raises:
        ValueError: for a site that has none.
    """
    number = site.rpartition(".")[2]
    if not number.isdecimal():
        raise ValueError(f"{site!r} is the site of no layer; a name such as resid.5 is needed")
    return int(number)


def home(source: Source, network: str) -> Home | None:
    """Where a dictionary belongs, if the caller says in which network, by the hash ``Model.fingerprint``."""
    return Home(network, source.site) if network and source.site else None


def placed(source: Source, own: Home | None) -> Source:
    """A source whose site is that of the dictionary, where only one of them is known.

    Raises:
        ValueError: if they differ.
    """
    if own is None:
        return source
    if source.site and from_hook(source.site) != own.site:
        raise ValueError(f"the dictionary belongs to {own.site!r}, the source says {source.site!r}")
    return replace(source, site=own.site)
