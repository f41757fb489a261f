import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from innerspace.learn.newton import SAMPLE
from innerspace.learn.online_probes import OnlineProbes, OnlineSettings
from innerspace.learn.probes import LogisticSettings, fit_logistic, fit_ridge
from innerspace.learn.probing import (
    ProbeScore,
    ProbingSettings,
    control_labels,
    deal_scenes,
    online_code,
    probe,
)

EXACT = LogisticSettings(tolerance=1e-15)


def sample(rows: int, width: int, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """States with offset and unequal scales, and three features of unequal classes that they tell with noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    noise = 0.5 * torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    cuts = {"speed": (-1.0, 0.0, 1.2), "agent": (0.3, 1.4), "turn": (0.5,)}
    labels = {
        name: torch.bucketize(x[:, i] + noise[:, i], torch.tensor(cut, dtype=torch.float64))
        for i, (name, cut) in enumerate(cuts.items())
    }
    return 10 + x * torch.logspace(-1, 1, width, dtype=torch.float64), labels


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("penalty", [1.0, 0.01, 100.0])
def test_every_probe_is_the_optimum_of_its_own_regression(balanced: bool, penalty: float):
    x, labels = sample(600, 8)
    labels["agent"][::7] = -1
    train = torch.arange(600) % 3 != torch.arange(3)[:, None]
    settings = LogisticSettings(penalty=penalty, balanced=balanced, tolerance=1e-15)
    probes = fit_logistic(x, labels, train, settings)
    assert list(probes) == list(labels)
    for feature, label in labels.items():
        for split, fitted in enumerate(probes[feature]):
            rows = train[split] & (label >= 0)
            scaler = StandardScaler().fit(x[rows])
            weight = "balanced" if balanced else None
            # of two classes, scikit-learn penalizes only the difference
            strength = penalty / 2 if feature == "turn" else penalty
            model = LogisticRegression(
                C=1 / strength, class_weight=weight, solver="newton-cg", tol=1e-10, max_iter=1000
            )
            model.fit(scaler.transform(x[rows]), label[rows])
            theirs = torch.from_numpy(model.predict_log_proba(scaler.transform(x)))
            torch.testing.assert_close(fitted.scores(x).log_softmax(1), theirs, rtol=1e-5, atol=1e-5)


def test_single_precision_and_many_rows_reach_the_same_optimum():
    # enough rows for the metric to come from a sample of them
    x, labels = sample(3 * SAMPLE, 6)
    train = torch.arange(len(x)) % 5 != torch.arange(5)[:, None]
    exact = fit_logistic(x, labels, train, EXACT)
    quick = fit_logistic(x.float(), labels, train)
    for feature in labels:
        for one, other in zip(exact[feature], quick[feature], strict=True):
            torch.testing.assert_close(
                one.scores(x).softmax(1), other.scores(x.float()).double().softmax(1), rtol=0, atol=5e-3
            )


def test_splits_do_not_see_each_other():
    x, labels = sample(500, 5)
    train = torch.arange(500) % 2 == torch.arange(2)[:, None]
    (first, _) = fit_logistic(x, labels, train, EXACT)["speed"]
    shuffled = labels["speed"].clone()
    shuffled[1::2] = shuffled[1::2].flip(0)
    (again, _) = fit_logistic(x, {"speed": shuffled}, train, EXACT)["speed"]
    torch.testing.assert_close(first.weight, again.weight, rtol=1e-5, atol=1e-7)


def test_hard_cases_still_converge():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 40, generator=generator)
    x[:, 1], x[:, 2] = x[:, 0], 3.0  # a copy and a constant
    separable = (x[:, 0] > 0).long()
    rare = torch.zeros(300, dtype=torch.long)
    rare[:2] = 1
    many = torch.arange(300) % 60
    probes = fit_logistic(x, {"separable": separable, "rare": rare, "many": many})
    assert torch.equal(probes["separable"][0].predict(x), separable)
    assert probes["many"][0].weight.shape == (60, 40)
    assert all(p[0].weight.isfinite().all() for p in probes.values())
    # half precision is computed in single
    assert torch.equal(fit_logistic(x.half(), {"separable": separable})["separable"][0].predict(x), separable)


def test_too_few_steps_are_told():
    x, labels = sample(300, 5)
    with pytest.warns(RuntimeWarning, match="from its optimum after 1 steps"):
        fit_logistic(x, labels, settings=LogisticSettings(tolerance=1e-12, steps=1))


def test_ridge_is_the_closed_form_of_every_split():
    x, _ = sample(200, 6)
    y = x[:, :2] * 3 + torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 5
    # overlapping splits of unequal size
    train = torch.rand(4, 200, generator=torch.Generator().manual_seed(2)) < torch.tensor([[0.9], [0.5], [0.8], [1.0]])
    for rows, fitted in zip(train, fit_ridge(x, y, train, penalty=3.0), strict=True):
        scaler = StandardScaler().fit(x[rows])
        model = Ridge(alpha=3.0).fit(scaler.transform(x[rows]), y[rows])
        torch.testing.assert_close(fitted.scores(x), torch.from_numpy(model.predict(scaler.transform(x))))


def test_what_cannot_be_fitted_is_named():
    x, labels = sample(30, 3)
    speed = labels["speed"]
    broken = x.clone()
    broken[4, 1] = math.nan
    absent = torch.where(speed == 1, 0, speed)
    train = torch.stack((torch.ones(30, dtype=torch.bool), speed != 2))
    for arguments, message in (
        ((broken, labels), "not finite in 1 of 30 rows, first in row 4"),
        ((x, {"speed": speed[:7]}), "'speed' has 7 labels, there are 30 states"),
        ((x, {"speed": speed - 2}), "'speed' has labels -2 … 1"),
        ((x, {"speed": torch.full((30,), 3)}), "'speed' shows only class 3"),
        ((x, {"speed": torch.full((30,), -1)}), "'speed' is defined nowhere"),
        ((x, {"speed": absent}), "'speed': class 1 has no training rows in split 0"),
        ((x, {"speed": speed}, train), "'speed': class 2 has no training rows in split 1"),
        ((x, {"speed": speed}, train & False), "'speed' is defined on no training row of split 0"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_logistic(*arguments)
    with pytest.raises(ValueError, match="penalty should be positive, it is 0"):
        LogisticSettings(penalty=0)


# --- the protocol ------------------------------------------------------------------------------------------------


def test_scenes_stay_whole_and_rare_classes_are_spread():
    generator = torch.Generator().manual_seed(0)
    scenes = torch.randint(100, (700,), generator=generator)
    label = torch.zeros(700, dtype=torch.long)
    label[torch.isin(scenes, torch.tensor([3, 17, 40, 41, 99]))] = 1
    part = deal_scenes(scenes, {"feature": label}, 5, seed=3)
    assert all(part[scenes == scene].unique().numel() == 1 for scene in scenes.unique())
    sizes = [int(scenes[part == p].unique().numel()) for p in range(5)]
    assert max(sizes) - min(sizes) <= 1
    assert [int(scenes[(part == p) & (label == 1)].unique().numel()) for p in range(5)] == [1] * 5
    assert torch.equal(part, deal_scenes(scenes, {"feature": label}, 5, seed=3))
    assert not torch.equal(part, deal_scenes(scenes, {"feature": label}, 5, seed=4))


def test_a_good_probe_is_selective_and_one_that_can_memorize_is_not():
    generator = torch.Generator().manual_seed(0)
    scenes = torch.arange(3000) // 3
    good = torch.randn(3000, 16, generator=generator)
    # every state is one of 60 types: a probe of one-hot states can learn any label of them
    kind = torch.randint(60, (3000,), generator=generator)
    memory = torch.nn.functional.one_hot(kind, 60).float()
    settings = ProbingSettings(seeds=3)
    (linear,) = probe({"good": good}, {"side": (good[:, 0] > 0).long() + (good[:, 0] > 1)}, scenes, settings)
    (lookup,) = probe({"memory": memory}, {"side": kind % 3}, scenes, settings)
    assert linear.balanced_accuracy.mean > 0.95
    assert linear.selectivity.mean > 0.45
    assert linear.compression.mean > 3
    assert lookup.balanced_accuracy.mean > 0.99
    assert lookup.selectivity.mean < 0.1


def test_labels_without_meaning_score_at_chance_and_do_not_compress():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 8, generator=generator)
    label = torch.multinomial(torch.tensor([0.6, 0.4]), 2000, replacement=True, generator=generator)
    label[:100] = -1
    (score,) = probe({"site": x}, {"noise": label}, torch.arange(2000) // 2, classes={"noise": ("a", "b")})
    assert score.rows == 1900
    assert score.balanced_accuracy.low < 0.5 < score.balanced_accuracy.high
    assert score.auroc.mean == pytest.approx(0.5, abs=0.03)
    assert score.majority.mean == pytest.approx(0.6, abs=0.03)
    assert 0.85 < score.compression.mean < 1.05
    assert ProbeScore.from_json(score.to_json()) == score


def test_control_labels_are_functions_of_the_state_with_equal_classes():
    x = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    label = control_labels(x, 4, 512, seed=0)
    again = control_labels(x[torch.arange(5000)], 4, 512, seed=0)
    assert torch.equal(label, again)
    # cells of one class hold a quarter of the rows, up to the spread of 125 random cells
    assert (torch.bincount(label) / 5000 - 0.25).abs().max() < 0.05
    assert not torch.equal(label, control_labels(x, 4, 512, seed=1))


def test_online_code_of_known_length():
    # labels from states that say nothing and never vary: the code is that of the label frequencies alone
    label = (torch.arange(4096) % 8 == 0).long()
    code = online_code(torch.ones(4096, 2), {"f": label}, torch.arange(4096), {"f": 2}, LogisticSettings(), seed=0)
    entropy = -(math.log2(1 / 8) / 8 + math.log2(7 / 8) * 7 / 8)
    assert code["f"] == pytest.approx(1 / entropy, rel=0.03)


def test_the_protocol_refuses_before_it_works():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    scenes = torch.arange(40) // 2
    label = torch.arange(40) % 3
    rare = torch.where(torch.arange(40) < 6, 1, 0)
    for arguments, message in (
        (({"layer": x / 0}, {"f": label}, scenes), "the states of 'layer' hold values that are not finite"),
        (({"layer": x}, {"f": label}, scenes // 5), "4 scenes cannot be split into 5 parts"),
        (({"layer": x}, {"f": rare}, scenes), "'f': class 1 occurs in 3 of 20 scenes, 5 at least"),
        (({"layer": x}, {"f": label[:9]}, scenes), "'f' has 9 labels, there are 40 states"),
    ):
        with pytest.raises(ValueError, match=message):
            probe(*arguments)
    with pytest.raises(ValueError, match=r"class 3 \('backwards'\) occurs in none of 20 scenes"):
        probe({"layer": x}, {"f": label}, scenes, classes={"f": ("low", "moderate", "high", "backwards")})


def test_online_probes_learn_without_touching_the_network():
    x, labels = sample(2000, 6)
    x = ((x - x.mean(0)) / x.std(0)).float()
    backbone = torch.nn.Linear(6, 6)
    online = OnlineProbes({"hidden": 6}, {"turn": 2, "agent": 3}, OnlineSettings(rate=3e-2))
    undefined = torch.full((2000,), -1)

    def batches():
        for _ in range(15):
            for rows in torch.arange(2000).split(200):
                yield {"hidden": backbone(x[rows])}, {"turn": labels["turn"][rows], "agent": undefined[rows]}

    before = online.probe("hidden", "turn")
    online.fit(batches())
    assert backbone.weight.grad is None
    turn = online.probe("hidden", "turn")
    best = fit_logistic(backbone(x).detach(), labels, settings=LogisticSettings(balanced=False))["turn"][0]
    hidden = backbone(x).detach()
    accuracy = [float((p.predict(hidden) == labels["turn"]).float().mean()) for p in (before, turn, best)]
    assert accuracy[1] > accuracy[2] - 0.02 > accuracy[0] + 0.05
    with pytest.raises(ValueError, match="lacks feature 'turn'; it has agent"):
        online.step({"hidden": hidden}, {"agent": undefined})
    with pytest.raises(ValueError, match="'speed' is not probed at 'hidden'"):
        online.probe("hidden", "speed")
