"""Any decoder of ``transformers``: its sites, its passes over text, what its last state says of the next token.

The parts are found by watching a pass (``language/layout.py``), so an architecture needs no line here.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, final

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from torch import Tensor, nn

from innerspace.language.divergence import Unembedding, kl_divergence
from innerspace.language.layout import layout
from innerspace.language.text import Text
from innerspace.network.model import Family, Model
from innerspace.network.site import Site
from innerspace.network.trace import Trace


@final
@dataclass(frozen=True)
class CausalLM(Family):
    """Where a decoder's hidden states are; they have the axes batch, token, d.

    ``embed``: the stream before the first block. ``resid.i``: behind block i. ``resid_mid.i``: between its attention
    and its MLP, where one follows the other. ``attn.i``, ``mlp.i``: what they add to the stream, so that
    resid.i = resid.{i-1} + attn.i + mlp.i. ``heads.i``: the heads' outputs side by side, before they are projected;
    of H heads, head h is the slice [h·w, (h+1)·w) with w = width / H. ``final``: what is unembedded. A block has what
    its architecture has: nothing in between where attention and MLP are parallel, no ``attn`` and ``mlp`` where they
    are scaled before they are added.

    ``ignore`` are token ids, such as those of BOS and EOS, that are read but do not count: ``mask`` leaves them out.
    """

    ignore: tuple[int, ...] = ()

    def sites(self, module: nn.Module) -> list[Site]:
        """The sites, in the order of the pass."""
        return list(layout(module).sites)

    def aliases(self, module: nn.Module) -> Mapping[str, str]:
        """The names by which TransformerLens calls the same places; it may keep folded or centered weights there."""
        found, aliases = layout(module), dict[str, str]()
        names = {"resid": "hook_resid_post", "resid_mid": "hook_resid_mid", "attn": "hook_attn_out"}
        names |= {"mlp": "hook_mlp_out", "heads": "attn.hook_z"}
        for site in found.sites:
            kind, _, i = site.name.partition(".")
            if i:
                aliases[f"blocks.{i}.{names[kind]}"] = site.name
        for i in range(len(found.blocks)):
            aliases[f"blocks.{i}.hook_resid_pre"] = _before(i)
        return aliases | ({"hook_embed": "embed"} if found.embedded else {})

    def forward(self, module: nn.Module, batch: Text) -> dict[str, Tensor]:
        """The ``logits`` [batch, token, vocabulary].

        Raises:
            ValueError: for text that is longer than the positions that the network has learned.
        """
        found, given = layout(module), {"input_ids": batch.ids, "use_cache": False}
        if found.longest is not None and batch.ids.shape[1] > found.longest:
            raise ValueError(f"the text has {batch.ids.shape[1]} tokens, the network {found.longest} positions")
        if batch.valid is not None:
            given["attention_mask"] = batch.valid.long()
            if found.placed:
                given["position_ids"] = (batch.valid.cumsum(-1) - 1).clamp(min=0)
        return {"logits": module(**given).logits}

    def mask(self, batch: Text, site: Site) -> Bool[Tensor, "batch token"] | None:  # noqa: ARG002
        """The tokens that are neither padding nor ignored."""
        if self.ignore:
            counting = ~torch.isin(batch.ids, torch.tensor(self.ignore, device=batch.ids.device))
            return counting if batch.valid is None else counting & batch.valid
        # a prompt of one token is as long as every later step of a generation, so its length must be told
        alone = batch.valid is None and batch.ids.shape[1] == 1
        return torch.ones_like(batch.ids, dtype=torch.bool) if alone else batch.valid

    def cut(self, module: nn.Module, site: Site) -> Site:
        """The stream: at the site, or before the block in which the site is."""
        kind, _, i = site.name.partition(".")
        name = site.name if kind in ("embed", "resid", "final") else _before(int(i))
        return next(other for other in layout(module).sites if other.name == name)

    def spared(self, module: nn.Module, cut: Site) -> Sequence[str]:
        """The blocks before the cut."""
        kind, _, i = cut.name.partition(".")
        blocks = layout(module).blocks
        match kind:
            case "resid":
                return blocks[: int(i) + 1]
            case "final":
                return blocks
            case _:
                return ()

    def head(self, module: nn.Module) -> Site:
        """The site ``final``."""
        return layout(module).sites[-1]

    def unembedding(self, module: nn.Module) -> Unembedding:
        """What turns the state at ``final`` into logits."""
        found = layout(module)
        linear = cast(nn.Linear, module.get_submodule(found.unembedding))
        bias = cast(Tensor | None, linear.bias)
        return Unembedding(linear.weight.detach(), None if bias is None else bias.detach(), found.softcap, found.scale)

    def divergence(
        self, module: nn.Module, clean: Trace, other: Trace, chosen: Bool[Tensor, "..."] | None
    ) -> Float[Tensor, ""]:
        """E[KL(clean ‖ other)] of the next token in nats, the mean over chosen positions."""
        one, two = (trace.hidden["final"] for trace in (clean, other))
        rows = (one.flatten(0, -2), two.flatten(0, -2)) if chosen is None else (one[chosen], two[chosen])
        return kl_divergence(*rows, self.unembedding(module), memo=clean.memo)


def _before(i: int) -> str:
    """The name of the stream before block i."""
    return f"resid.{i - 1}" if i else "embed"


@dataclass(frozen=True, eq=False)
class LoadedLM:
    """A language model with its tokenizer, one of ``transformers``; None where only a module was given."""

    model: Model
    tokenizer: Any


def load(
    source: str | Path | nn.Module,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    ignore_special: bool = False,
) -> LoadedLM:
    """A language model from a folder, from the hub (what is cached is not asked for again), or a module in hand.

    ``tokenizer`` takes the place of the source's own. Weights come as ``dtype``, float32 by default; a module stays as
    it is. With ``ignore_special`` the tokenizer's special tokens (BOS, EOS, …) do not count. Code that comes with a
    model is never run.

    Raises:
        ValueError: for a source that is missing, damaged or incomplete, or no decoder, a tokenizer with more tokens
            than the network has embeddings, or arguments that do not fit the source.
    """
    if isinstance(source, nn.Module):
        if revision is not None or dtype not in (None, next(source.parameters()).dtype):
            raise ValueError("revision and dtype are for models that are loaded; a module in hand stays as it is")
        module = source
    else:
        module = _read(source, revision, dtype or torch.float32)
        tokenizer = _read_tokenizer(source, revision) if tokenizer is None else tokenizer
    model = Model(module, CausalLM())
    if tokenizer is not None:
        _check_fit(tokenizer, module)
    if ignore_special:
        if tokenizer is None:
            raise ValueError("ignore_special=True needs a tokenizer that tells which tokens are special")
        model = Model(module, CausalLM(tuple(sorted(tokenizer.all_special_ids))))
    return LoadedLM(model, tokenizer)


def tokenize(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    side: Literal["left", "right"] = "right",
    bos: Literal["tokenizer", "always", "never"] = "tokenizer",
) -> Text:
    """Texts as a batch, padded at one side; generation needs it left.

    ``bos`` tells whether each begins with BOS: as the tokenizer has it (which may add other special tokens as well),
    always, or never.

    Raises:
        ValueError: for no text, an empty one, or a BOS that the tokenizer does not have.
    """
    if not texts:
        raise ValueError("there is no text to tokenize")
    if bos == "always" and tokenizer.bos_token_id is None:
        raise ValueError("the tokenizer has no BOS; bos='tokenizer' and bos='never' are possible")
    first = [tokenizer.bos_token_id] if bos == "always" else []
    rows = [first + tokenizer.encode(text, add_special_tokens=bos == "tokenizer") for text in texts]
    if short := [i for i, row in enumerate(rows) if not row]:
        raise ValueError(f"text {short[0]} ({texts[short[0]]!r}) has no token")
    length = max(map(len, rows))
    padding = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    ids, valid = torch.full((len(rows), length), padding), torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(length - len(row), None) if side == "left" else slice(len(row))
        ids[i, place], valid[i, place] = torch.tensor(row), True
    return Text(ids, None if valid.all() else valid)


def _read(source: str | Path, revision: str | None, dtype: torch.dtype) -> nn.Module:
    decoder = _transformers().AutoModelForCausalLM
    options = {"revision": revision, "dtype": dtype, "output_loading_info": True}
    module, report = _fetched("model", source, decoder.from_pretrained, options)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"the weights of {str(source)!r} lack {len(missing)} tensors, such as {missing[0]!r}")
    return module.eval()


def _read_tokenizer(source: str | Path, revision: str | None) -> Any:
    return _fetched("tokenizer", source, _transformers().AutoTokenizer.from_pretrained, {"revision": revision})


def _fetched(what: str, source: str | Path, read: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """What a loader of transformers makes of a folder, else of the cache, else of the hub."""
    transformers, local = _transformers(), Path(source).expanduser()
    if isinstance(source, Path) or source.startswith((".", "/", "~")) or local.is_dir():
        if not (local / "config.json").is_file():
            raise ValueError(f"no language model at {local}: there is no config.json")
        places = [(str(local), True)]
    else:
        # asking an unreachable hub takes half a minute, so what is cached is taken without asking
        places = [(source, True), (source, False)]
    error = None
    for place, offline in places:
        try:
            with _quiet(transformers):
                return read(place, local_files_only=offline, **options)
        except (OSError, ValueError, RuntimeError, SafetensorError) as failure:
            error = failure
    raise ValueError(f"no {what} can be loaded from {str(source)!r}: {error}") from error


def _check_fit(tokenizer: Any, module: nn.Module) -> None:
    rows = len(cast(nn.Embedding, cast(Any, module).get_input_embeddings()).weight)
    vocabulary = cast(Mapping[str, int], tokenizer.get_vocab())
    if set(vocabulary.values()) <= set(tokenizer.all_special_ids):
        # transformers makes such a tokenizer where the files of a known one are missing
        raise ValueError("the tokenizer knows special tokens only; its files are missing, or it is another model's")
    token, last = max(vocabulary.items(), key=lambda item: item[1])
    if last >= rows:
        raise ValueError(
            f"the tokenizer does not fit the network: {token!r} is token {last}, and there are {rows} embeddings"
        )


@contextmanager
def _quiet(transformers: Any) -> Generator[None]:
    """No progress bars and no notes while files are read; the settings of before come back."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError("language models need transformers: pip install 'innerspace[language]'") from None
    return transformers
