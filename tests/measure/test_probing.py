import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, r2_score, roc_auc_score

from innerspace.measure.probing import (
    accuracy,
    auroc,
    balanced_accuracy,
    classify,
    confusion,
    majority,
    over_splits,
    r_squared,
)


def test_scores_agree_with_scikit_learn_with_ties_and_unequal_classes():
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 400, replacement=True, generator=generator)
    # coarse logits make many ties
    logits = (torch.nn.functional.one_hot(labels, 3) + torch.randn(400, 3, generator=generator)).round()
    probability = logits.double().softmax(1)
    predicted = logits.argmax(1)
    result = classify(torch.cat((logits, logits[:5])), torch.cat((labels, torch.full((5,), -1))))
    assert result.accuracy == pytest.approx(float((predicted == labels).double().mean()))
    assert result.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    theirs = roc_auc_score(labels, probability, multi_class="ovr")
    assert auroc(probability, labels) == pytest.approx(theirs, abs=1e-12)
    # ties of probabilities may be broken by the rounding of their logarithms
    assert result.auroc == pytest.approx(theirs, abs=1e-3)
    assert torch.equal(confusion(predicted, labels, 3), torch.from_numpy(confusion_matrix(labels, predicted)))


def test_constant_guesses_score_at_chance():
    labels = torch.tensor([0, 0, 0, 1, 2])
    constant = torch.zeros(5, dtype=torch.long)
    assert accuracy(constant, labels) == majority(labels) == pytest.approx(0.6)
    assert balanced_accuracy(constant, labels) == pytest.approx(1 / 3)
    assert auroc(torch.zeros(5, 3), labels) == 0.5


def test_auroc_counts_ordered_pairs():
    scores = torch.tensor([0.1, 0.4, 0.4, 0.8])
    # of the pairs (0.4, 0.1), (0.4, 0.4), (0.8, 0.1), (0.8, 0.4) one is a tie
    assert auroc(scores[:, None].repeat(1, 2) * torch.tensor([-1.0, 1.0]), torch.tensor([0, 0, 1, 1])) == 3.5 / 4
    with pytest.raises(ValueError, match="class 2 is undefined: 0 of 4"):
        auroc(torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]))


def test_splits_of_the_same_rows_have_a_wider_interval():
    samples = [0.7, 0.8, 0.9, 0.8, 0.8]
    deviation = torch.tensor(samples, dtype=torch.float64).std().item()
    plain, wide = over_splits(samples, 0.0), over_splits(samples, 0.25)
    assert plain.mean == wide.mean == pytest.approx(0.8)
    assert plain.high == pytest.approx(0.8 + 2.776 * deviation / 5**0.5)
    assert wide.low == pytest.approx(0.8 - 2.776 * deviation * (1 / 5 + 0.25) ** 0.5)
    assert over_splits([0.5], 0.25).low is None


def test_r_squared():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(50, 2, generator=generator)
    predicted = target + 0.3 * torch.randn(50, 2, generator=generator)
    assert r_squared(predicted, target) == pytest.approx(r2_score(target, predicted, multioutput="raw_values"))
    with pytest.raises(ValueError, match="quantity 1 is constant"):
        r_squared(predicted, target * torch.tensor([1.0, 0.0]))
