"""Corrections by hand, scores against scikit-learn, intervals that know what was drawn, and learned rules."""

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from innerspace.explain.contexts import Fact, SceneContext, TextContext
from innerspace.explain.examples import RANDOM, TASKS, Item, Question, Shown
from innerspace.explain.learner import Search, learn, most_frequent
from innerspace.explain.rules import Clause, OneOf, Rule
from innerspace.explain.scores import Answers, Resampling, Scores, against_controls, between, corrected
from innerspace.measure.multiplicity import benjamini_hochberg, holm, two_sided


def test_holm_and_benjamini_hochberg_by_hand() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    # sorted 0.005, 0.01, 0.03, 0.04: × 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04, made to rise
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # × 4/1, 4/2, 4/3, 4/4 = 0.02, 0.02, 0.04, 0.04
    assert benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert holm([]) == benjamini_hochberg([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"between 0 and 1, one of these is 1\.2"):
        holm([0.1, 1.2])


def test_p_values_are_two_sided() -> None:
    copies = torch.cat((torch.full((97,), 1.0), torch.full((2,), -1.0)))
    assert two_sided(copies) == two_sided(-copies) == pytest.approx(2 * 3 / 100)
    assert two_sided(torch.ones(99)) == pytest.approx(0.02)
    assert two_sided(torch.zeros(9)) == 1.0
    assert two_sided(torch.tensor([torch.nan])) is None


def context(group: int) -> TextContext:
    return TextContext(group, 0, (1.0,), ("a",))


def item(group: int, truth: bool, task: str = "detection", band: int = 0) -> Item:
    where = Question(context(group).blind(), None if task == "detection" else 0)
    return Item(where, truth, band if truth or task == "fuzzing" else RANDOM, task, context(group))  # pyright: ignore


def answers(coordinate: int, seed: int, quality: float, ways: int = 2, groups: int = 40) -> Answers:
    """The first way knows the truth as well as ``quality`` says, the others guess."""
    generator = torch.Generator().manual_seed(seed)
    items = [
        item(int(g), i % 2 == 0, task)
        for task in TASKS
        for i, g in enumerate(torch.randint(groups, (24,), generator=generator))
    ]
    noise = torch.rand(ways, len(items), generator=generator)
    truth = torch.tensor([float(one.truth) for one in items])
    noise[0] = quality * truth + (1 - quality) * noise[0]
    return Answers(coordinate, items, noise)


def scores(
    quality: float, count: int = 12, seed: int = 0, resampling: Resampling | None = None, **more: object
) -> Scores:
    every = [answers(i, 100 * seed + 10 * i + s, quality) for i in range(count) for s in range(2)]
    return Scores(
        every, ("explanation", "shuffled"), count, resampling or Resampling(torch.arange(40), 300), seed=seed, **more
    )  # pyright: ignore


def test_scores_are_those_of_scikit_learn() -> None:
    one = answers(0, 5, 0.4)
    found = Scores([one], ("explanation", "shuffled"), 1, Resampling(torch.arange(40), 10))
    for way in range(2):
        for task in TASKS:
            rows = [i for i, entry in enumerate(one.items) if entry.task == task]
            truth = [one.items[i].truth for i in rows]
            said = one.probability[way, rows].double().numpy()
            assert float(found.copies(task)[0, way, 0]) == pytest.approx(roc_auc_score(truth, said))
            accuracy = float(found.copies(task, "balanced_accuracy")[0, way, 0])
            assert accuracy == pytest.approx(balanced_accuracy_score(truth, said > 0.5))


def test_what_was_not_answered_is_left_out_and_counted() -> None:
    one = answers(0, 5, 1.0)
    one.probability[0, :6] = torch.nan
    found = Scores([one], ("explanation", "shuffled"), 1, Resampling(torch.arange(40), 10))
    assert found.unanswered() == 6
    assert found.unanswered("shuffled") == 0
    assert found.asked == 48
    assert found.mean("detection").mean == 1.0


def test_intervals_cover_what_they_should() -> None:
    """The mean over many draws of guessing lies in about 95 % of the intervals."""
    inside = 0
    for seed in range(30):
        found = scores(0.0, 8, seed=seed, resampling=Resampling(torch.arange(40), 100, seed)).mean("detection")
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0.5 <= found.high
    assert inside >= 25


def test_more_is_unsure_with_few_coordinates_than_with_many() -> None:
    widths = list[float]()
    for count in (4, 40):
        found = scores(0.3, count).mean("detection")
        assert found.low is not None
        assert found.high is not None
        widths.append(found.high - found.low)
    assert widths[1] < 0.7 * widths[0]


def test_kinds_that_differ_are_told_apart_and_others_are_not() -> None:
    resampling = Resampling(torch.arange(40), 500)
    kinds = {
        name: scores(q, seed=i, resampling=resampling)
        for i, (name, q) in enumerate({"a": 0.2, "b": 0.2, "c": 0.6}.items())
    }
    tests = {(one.one, one.other, one.task): one for one in between(kinds)}
    assert len(tests) == 6
    for task in TASKS:
        assert tests["b", "a", task].holm > 0.05  # pyright: ignore
        for other in ("a", "b"):
            one = tests["c", other, task]
            assert one.difference.mean > 0.1
            assert one.p == pytest.approx(2 / 501)
            assert one.holm <= 6 * 2 / 501  # pyright: ignore
            assert one.benjamini_hochberg <= one.holm  # pyright: ignore
    controls = against_controls({"c": kinds["c"]})
    assert [(one.one, one.other) for one in controls] == [("c", "c: shuffled")] * 2
    assert all(one.holm < 0.05 for one in controls)  # pyright: ignore


def test_corrections_are_within_a_family() -> None:
    tests = between({"a": scores(0.2), "b": scores(0.3, seed=1)})
    p = [one.p for one in tests]
    assert [one.holm for one in corrected(tests)] == holm(p)  # pyright: ignore
    assert [one.benjamini_hochberg for one in tests] == benjamini_hochberg(p)  # pyright: ignore


def test_dictionaries_of_a_kind_are_drawn_as_well() -> None:
    """Two dictionaries, one explained and one not: it matters much which of them is drawn."""
    every = [answers(i, 10 * i, 1.0 if i < 6 else 0.0) for i in range(12)]
    resampling, dictionary = Resampling(torch.arange(40), 300), torch.arange(12) // 6
    plain = Scores(every, ("explanation", "shuffled"), 12, resampling).mean("detection")
    nested = Scores(every, ("explanation", "shuffled"), 12, resampling, dictionary=dictionary).mean("detection")
    assert nested.mean == plain.mean
    assert nested.high - nested.low > 1.2 * (plain.high - plain.low)  # pyright: ignore


def text(pieces: str, on: tuple[int, ...] = (), group: int = 0) -> TextContext:
    parts = tuple(pieces.split("|"))
    return TextContext(group, on[0] if on else 0, tuple(float(i in on) for i in range(len(parts))), parts)


def test_short_rules_are_preferred() -> None:
    """Both the token and what stands before it would do; the one that needs a single word is said."""
    on = tuple(text(f" x{i}|.| She| ran", (2,)) for i in range(6)) + tuple(
        text(f" x{i}|!| She| sat", (2,)) for i in range(6)
    )
    off = tuple(text(f" x{i}|,| he| ran") for i in range(8))
    rule = learn(Shown(on, off))
    assert rule.clauses[0].tests == (OneOf("token", (" She",)),)
    assert len(rule.clauses) == 1
    assert str(rule) == "token “ She”"
    assert learn(Shown(on, off), Search(price=0.6)).clauses == ()


def test_a_rule_that_tells_positions_only_is_not_turned_around() -> None:
    """The word stands in all contexts, on or off; a mark at it is right nevertheless."""
    on = tuple(text(f" x{i}| a| y{i}", (1,)) for i in range(9))
    rule = learn(Shown(on, tuple(text(f" v{i}| a| w{i}") for i in range(20))))
    assert rule.clauses[0].tests == (OneOf("token", (" a",)),)
    assert rule([[Fact("token", " a")]]) > 0.5 > rule([[Fact("token", " x1")]])


def test_nothing_is_learned_from_nothing() -> None:
    on = tuple(text(f" a{i}| b{i}", (1,)) for i in range(5))
    rule = learn(Shown(on, tuple(text(f" c{i}| d{i}") for i in range(5))))
    # no word holds in two contexts
    assert rule == Rule(())
    assert rule([[Fact("token", " a0")]]) == 0.5
    assert str(rule) == "nothing that these facts tell"


def test_facts_say_nothing_of_what_comes_later() -> None:
    one = text("“|Once| upon| a| time|,|\n| The| end", (4,))
    facts = {(fact.about, fact.value) for fact in one.facts(4)}
    assert facts == {
        ("token", " time"),
        ("previous", " a"),
        ("earlier", " upon"),
        ("earlier", "Once"),
        ("earlier", "“"),
    }
    assert ("form", "capitalized") in one.facts(1)
    assert ("form", "punctuation") in one.facts(5)
    assert ("form", "blank") in one.facts(6)
    assert one.shown((4,)) == "“Once upon a« time»,\n The end"


def test_rules_in_words() -> None:
    rule = Rule(
        (
            Clause((OneOf("token", (" she", " her")), OneOf("previous", (".",))), 0.9),
            Clause((OneOf("form", ("capitalized",)),), 0.7),
            Clause((OneOf("speed", ("low", "moderate")), OneOf("step", ("11", "9", "10", "3"))), 0.6),
        ),
        0.2,
    )
    words = "token “ she” or “ her”, right after “.”; or capitalized; or speed low or moderate, step 3 or 9 to 11"
    assert str(rule) == words
    assert rule([[Fact("token", " she"), Fact("previous", "."), Fact("form", "capitalized")]]) == 0.9
    assert str(OneOf("earlier", ("\n", ""))) == "soon after “↵” or “∅”"
    assert rule([[Fact("token", " she"), Fact("previous", ",")]]) == 0.2
    assert rule([[Fact("token", " she")], [Fact("form", "capitalized")], [Fact("previous", ".")]]) == 0.7
    assert Rule.from_json(rule.to_json()) == rule


def test_the_most_frequent_word() -> None:
    contexts = [
        SceneContext(i, 0, (1.0,), "a", (("speed", "low"), ("agent", kind)), (1,), 11) for i, kind in enumerate("vvp")
    ]
    rule = most_frequent(Shown(tuple(contexts), ()))
    assert str(rule) == "speed low"
