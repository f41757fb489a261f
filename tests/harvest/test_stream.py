import pytest
import torch

from families import CASES
from innerspace.harvest.stream import TokenRule, gather
from innerspace.interventions import Read
from innerspace.network.site import Where


def test_rows_are_the_valid_tokens_in_order() -> None:
    case = CASES["blocks"]()
    hidden = case.model.run(case.batch, {site: Read() for site in case.sites}).hidden
    valid = case.batch["valid"]
    each = gather(case.model, [case.batch, case.batch], ["first", "second"], TokenRule(Where("valid")))
    for site in ("first", "second"):
        torch.testing.assert_close(each.states[site], hidden[site][valid].detach().repeat(2, 1))
    assert each.sample["first"].tolist() == [i for i in range(4) for _ in range(int(valid[i].sum()))] + [
        4 + i for i in range(4) for _ in range(int(valid[i].sum()))
    ]
    last = gather(case.model, [case.batch], ["first"], TokenRule(Where("last")))
    torch.testing.assert_close(last.states["first"][3], hidden["first"][3, 3].detach())
    assert last.sample["first"].tolist() == [0, 1, 2, 3]
    mean = gather(case.model, [case.batch], ["first"], TokenRule(Where("valid"), "mean"))
    torch.testing.assert_close(mean.states["first"][1], hidden["first"][1, 2:].mean(0).detach())


def test_padding_never_reaches_a_row() -> None:
    case = CASES["blocks"]()
    changed = {**case.batch, "x": torch.where(case.batch["valid"][..., None], case.batch["x"], 1e6)}
    for rule in (TokenRule(Where("valid")), TokenRule(Where("valid"), "mean"), TokenRule(Where("last"))):
        one = gather(case.model, [case.batch], ["second"], rule).states["second"]
        other = gather(case.model, [changed], ["second"], rule).states["second"]
        assert torch.equal(one, other)


def test_nothing_to_gather_is_an_error() -> None:
    case = CASES["blocks"]()
    with pytest.raises(ValueError, match="no site was asked for; this model has first"):
        gather(case.model, [case.batch], [], TokenRule())
    with pytest.raises(ValueError, match="empty"):
        gather(case.model, [], ["first"], TokenRule())
    assert str(TokenRule(Where("valid"), "mean")) == "valid tokens, averaged"
