"""Trained dictionaries judged on held-out data, and what the page says of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from innerspace.jobs.dictionaries.lessons import Lesson, Trained
from innerspace.jobs.inputs.subject import Subject
from innerspace.jobs.job import Run
from innerspace.measure.splicing import OutputLoss, SpliceFidelity, TokenLoss, mean_state, splice_fidelity
from innerspace.parallel import Share, meet


@final
@dataclass(frozen=True, eq=False)
class Judged:
    """A trained dictionary and what the network loses through it."""

    trained: Trained
    fidelity: SpliceFidelity

    @property
    def loss(self) -> TokenLoss:
        """What a language model loses."""
        assert isinstance(self.fidelity.loss, TokenLoss)
        return self.fidelity.loss


def judge_all(run: Run, subject: Subject, trained: Sequence[Trained], sequences: int) -> list[Judged]:
    """Judge dictionaries on held-out rows, of several processes each a share; what was judged stays so."""
    share, folder = Share.mine(), run.folder / "judged"
    folder.mkdir(exist_ok=True)
    means = {
        site: mean_state(subject.model, subject.sample(8), site, subject.where)
        for site in sorted({item.lesson.site for item in trained})
    }
    mine = [item for i, item in enumerate(trained) if i % share.world == share.rank]
    for item in run.track(mine, "judging dictionaries on held-out data"):
        path = folder / f"{item.lesson.name}.json"
        if path.is_file():
            continue
        site = item.lesson.site
        found = splice_fidelity(
            subject.model,
            subject.held_out(sequences),
            site,
            item.dictionary,
            where=subject.where,
            mean=means[site],
        )
        found.save(path)
    meet()
    return [Judged(item, SpliceFidelity.load(folder / f"{item.lesson.name}.json")) for item in trained]


def headline(item: Judged) -> dict[str, str]:
    """The figure of a dictionary with which a page begins."""
    found = item.fidelity
    match found.loss:
        case TokenLoss(ce_increase=increase):
            value, what = f"{increase.mean:+.3f} nats", "cross-entropy"
        case OutputLoss(divergence=divergence):
            value, what = f"{divergence.mean:.3g} nats", "divergence of the output"
    return {
        "label": item.trained.lesson.name,
        "value": value,
        "note": f"{what}, at L0 {found.l0.mean:.1f}; {found.alive} latents alive",
    }


def run_fields(lesson: Lesson, sites: int) -> dict[str, Any]:
    """What says on the page which dictionary an entry is about."""
    fields: dict[str, Any] = {"kind": lesson.kind, "coefficient": lesson.coefficient, "seed": lesson.seed}
    return fields | ({"site": lesson.site} if sites > 1 else {})


def fidelity_rows(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """The section on fidelity."""
    return [_fidelity(item, _sites(judged)) for item in judged]


def training_rows(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """The section on training curves."""
    return [_curves(item, _sites(judged)) for item in judged]


def cost_rows(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """The section on what training cost."""
    return [run_fields(item.trained.lesson, _sites(judged)) | dict(item.trained.cost) for item in judged]


def front_rows(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """The points of Pareto fronts."""
    return [
        run_fields(item.trained.lesson, _sites(judged))
        | {
            "l0": item.fidelity.l0.mean,
            "ce_increase": item.loss.ce_increase.mean,
            "kl": item.loss.kl.mean,
            "explained_variance": item.fidelity.explained_variance.mean,
            "alive": item.fidelity.alive,
            "latents": item.fidelity.latents,
            "tokens": item.trained.cost["tokens"],
        }
        for item in judged
    ]


def _sites(judged: Sequence[Judged]) -> int:
    return len({item.trained.lesson.site for item in judged})


def _fidelity(item: Judged, sites: int) -> dict[str, Any]:
    found, loss = item.fidelity, item.fidelity.loss
    of_tokens = isinstance(loss, TokenLoss)
    own = ("ce_clean", "ce_spliced", "ce_increase", "kl", "top1") if of_tokens else ("divergence",)
    output = (*own, "recovered_zero", "recovered_mean")
    hidden = (
        *("explained_variance", "explained_variance_per_token", "norm_ratio", "cosine", "l0", "alive", "tokens"),
        *("l0_histogram", "frequency_histogram"),
    )
    return {
        **run_fields(item.trained.lesson, sites),
        **{name: getattr(loss, name) for name in output},
        **{name: getattr(found, name) for name in hidden},
        "downstream": [{"site": error.site, "error": error.error} for error in found.downstream],
    }


def _curves(item: Judged, sites: int) -> dict[str, Any]:
    """The log as columns; the names of terms as the page knows them."""
    trained, names = item.trained, {"outputkl": "output_kl"}
    if not isinstance(item.fidelity.loss, TokenLoss):
        names["held_out_kl"] = "held_out_divergence"
    step = trained.cost["tokens"] / max(int(record["step"]) for record in trained.history)
    columns = sorted({key for record in trained.history for key in record} - {"step", "student"})
    return {
        **run_fields(trained.lesson, sites),
        "tokens": [int(record["step"]) * step for record in trained.history],
        "curves": {names.get(key, key): [record.get(key) for record in trained.history] for key in columns},
    }
