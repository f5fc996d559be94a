"""Memory that is not there is told in words; other errors stay what they are."""

import numpy as np
import pytest
import torch

from pretrain.profiling import OutOfMemory, memory_in_words


@pytest.mark.parametrize("allocate", [lambda: torch.empty(10**15), lambda: np.empty(10**15, np.float32)])
def test_memory_that_cannot_be_had_is_told_with_what_to_lower(allocate):
    """The allocators themselves refuse: 3.6 PiB are nowhere."""
    words = r"rank 3: out of memory \(3\S* [GP]iB at once\); raise train.acc"
    with pytest.raises(OutOfMemory, match=words) as caught, memory_in_words(3):
        allocate()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="size of tensor a"), memory_in_words(0):
        torch.ones(2) + torch.ones(3)
