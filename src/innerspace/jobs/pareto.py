"""Three ways of training dictionaries, compared fairly: coefficients × kinds × seeds on one network and one text.

The claim of Braun et al. 2024, arXiv 2405.12241: at equal L0, dictionaries trained end to end (``e2e``), and end to end
with downstream reconstruction (``e2e+ds``), have less than half of the increase in cross-entropy of those trained on
reconstruction alone (``local``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from innerspace.decompose.dictionary import Form
from innerspace.decompose.nonlinearities import Nonlinearity, ReLU
from innerspace.jobs.dictionaries.judging import Judged, front_rows
from innerspace.jobs.dictionaries.lessons import Course, Lesson
from innerspace.jobs.dictionary import Showing, tell, train_and_judge
from innerspace.jobs.inputs.text import Reading, TextData
from innerspace.jobs.job import Job, Run
from innerspace.learn.objectives import Downstream, Objective, OutputKL, Reconstruction, Sparsity
from innerspace.measure.fronts import Comparison, compare_fronts

LOCAL, E2E, E2E_DS = "local", "e2e", "e2e+ds"


@dataclass(frozen=True)
class Pareto(Job):
    """Compare local, end-to-end and downstream training of dictionaries at equal sparsity and at equal damage.

    ``local``, ``e2e`` and ``e2e_ds`` are the coefficients of the sparsity of each kind; none leaves a kind out. The
    terms of ``e2e+ds`` are ``kl`` times the divergence and ``downstream`` times the unexplained variance at the
    residual stream behind the site. The claim is that an end-to-end kind has at most ``bound`` of local's increase.
    """

    data: TextData = field(default_factory=TextData)
    site: str = "resid.2"
    latents: int = 1024
    nonlinearity: Nonlinearity = field(default_factory=ReLU)
    form: Form = field(default_factory=Form)
    local: tuple[float, ...] = (0.06, 0.15, 0.4, 1.0)
    e2e: tuple[float, ...] = (0.1, 0.3, 0.8)
    e2e_ds: tuple[float, ...] = (0.1, 0.3, 0.8)
    kl: float = 0.5
    downstream: float = 0.5
    seeds: int = 3
    bound: float = 0.6
    course: Course = field(default_factory=Course)
    showing: Showing = field(default_factory=Showing)

    def check(self) -> None:
        """Refuse what leaves nothing to compare."""
        if not self.local or not (self.e2e or self.e2e_ds):
            raise ValueError("local and one end-to-end kind at least are compared; give coefficients for both")
        if self.seeds < 1:
            raise ValueError(f"seeds should be at least 1, it is {self.seeds}")
        self.data.check()

    def run(self, run: Run) -> Path:
        """Train all, judge all, compare, and write the page."""
        reading = self.data.open(run)
        lessons = self.lessons(reading)
        judged = train_and_judge(run, reading, lessons, self.course, self.showing)
        return tell(run, self, reading, judged, self.showing, self.story(judged))

    def lessons(self, reading: Reading) -> list[Lesson]:
        """Every coefficient of every kind with every seed."""
        behind = _behind(reading, self.site)
        objectives: dict[str, tuple[tuple[float, ...], Objective]] = {
            LOCAL: (self.local, (Reconstruction(),)),
            E2E: (self.e2e, (OutputKL(),)),
            E2E_DS: (self.e2e_ds, (OutputKL(self.kl), Downstream(behind, self.downstream, "variance"))),
        }
        return [
            Lesson(
                self.site, kind, weight, seed, self.latents, self.nonlinearity, self.form, (*terms, Sparsity(weight))
            )
            for seed in range(self.seeds)
            for kind, (weights, terms) in objectives.items()
            for weight in weights
        ]

    def story(self, judged: Sequence[Judged]) -> dict[str, Any]:
        """The fronts, their comparison, the claim and what came of it."""
        rows = front_rows(judged)
        ratios, claims, headlines, remarks = list[dict[str, Any]](), list[dict[str, Any]](), list[Any](), list[str]()
        for kind in (E2E, E2E_DS):
            if not any(row["kind"] == kind for row in rows):
                continue
            for of, at in (("ce_increase", "l0"), ("kl", "l0"), ("l0", "ce_increase")):
                if any(min(row[of], row[at]) <= 0 for row in rows if row["kind"] in (kind, LOCAL)):
                    remarks.append(f"{kind} and {LOCAL} are not compared by {of}, which is not positive everywhere.")
                    continue
                found = compare_fronts(_fronts(rows, kind, at, of), _fronts(rows, LOCAL, at, of))
                if found is None:
                    remarks.append(f"The fronts of {kind} and {LOCAL} have no {at} in common.")
                    continue
                ratios += [{"kind": kind, "of": of, "at": at, **_entry(item)} for item in found.ratios]
                if (of, at) == ("ce_increase", "l0"):
                    claims.append(self._claim(kind, found))
                    headlines.append(
                        {
                            "label": f"{kind}: CE increase, of local's",
                            "value": f"{found.overall.mean:.2f}",
                            "note": f"at equal L0, {self.seeds} seeds{_interval(found)}",
                        }
                    )
        return {
            "title": "Local and end-to-end dictionaries",
            "question": "Which way of training a sparse dictionary costs the network least at the same sparsity?",
            "headlines": headlines,
            "remarks": remarks,
            "pareto": {"runs": rows, "reference": LOCAL, "ratios": ratios, "claims": claims},
        }

    def _claim(self, kind: str, found: Comparison) -> dict[str, Any]:
        ratio, ends = found.overall, (found.ratios[0].level, found.ratios[-1].level)
        low, high = (ratio.mean, ratio.mean) if ratio.low is None or ratio.high is None else (ratio.low, ratio.high)
        holds = True if high <= self.bound else False if low > self.bound else None
        words = {
            True: f"It holds: the whole interval lies at or below {self.bound:g}.",
            False: f"It does not hold: the whole interval lies above {self.bound:g}.",
            None: f"It stays open: {self.bound:g} lies within the interval.",
        }
        where = f" The geometric mean over L0 {ends[0]:.0f} … {ends[1]:.0f}, which all fronts reach."
        return {
            "claim": f"At equal L0, {kind} has at most {self.bound:g} of local's increase in cross-entropy.",
            "kind": kind,
            "of": "ce_increase",
            "at": "l0",
            "bound": self.bound,
            "ratio": ratio,
            "verdict": words[holds] + where,
            "holds": holds,
        }


def _behind(reading: Reading, site: str) -> tuple[str, ...]:
    """The residual stream after every block behind a site."""
    names = list(reading.model.sites)
    place = names.index(reading.model.site(site).name)
    behind = tuple(name for name in names[place + 1 :] if name.startswith("resid."))
    if not behind:
        raise ValueError(f"no block follows {site!r}, so that nothing downstream can be compared")
    return behind


def _fronts(rows: Sequence[dict[str, Any]], kind: str, at: str, of: str) -> dict[int, list[tuple[float, float]]]:
    fronts = dict[int, list[tuple[float, float]]]()
    for row in rows:
        if row["kind"] == kind:
            fronts.setdefault(row["seed"], []).append((row[at], row[of]))
    return fronts


def _entry(item: Any) -> dict[str, Any]:
    # three digits say where the fronts were compared
    return {"level": float(f"{item.level:.3g}"), "own": item.own, "reference": item.reference, "ratio": item.ratio}


def _interval(found: Comparison) -> str:
    low, high = found.overall.low, found.overall.high
    return "" if low is None or high is None else f" (95 %: {low:.2f} to {high:.2f})"
