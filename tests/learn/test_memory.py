"""Freed memory stays for the time of a fit and no longer."""

import resource

import pytest
import torch

from innerspace.learn.memory import retained


def faults() -> int:
    """The page faults of a new tensor of 64 MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    assert torch.ones(2**24)[-1] == 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_large_tensors_need_no_new_pages_once_it_is_said_and_do_before_and_after() -> None:
    usual = faults()
    if usual < 2**13:
        pytest.skip("this system hands memory out in larger pages, or keeps it anyway")
    with retained() as retain:
        assert min(faults() for _ in range(3)) > usual / 2
        retain()
        # what else is allocated may take a piece of what was free the first time
        assert min(faults() for _ in range(5)) < usual / 10
    assert faults() > usual / 2
