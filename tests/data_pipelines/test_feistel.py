from collections import Counter

import numpy as np
import pytest

from data_pipelines.feistel import SMALLEST_FEISTEL, Permutation


@pytest.mark.parametrize("size", [1, 2, 3, 100, SMALLEST_FEISTEL - 1, SMALLEST_FEISTEL, SMALLEST_FEISTEL + 1, 99_991])
def test_every_value_comes_once(size):
    images = Permutation(size, "key", size)(np.arange(size))
    assert np.array_equal(np.sort(images), np.arange(size))


def test_any_part_can_be_asked_alone_in_any_shape():
    permutation = Permutation(70_000, "key")
    index = np.array([[5, 69_999], [0, 5]])
    assert np.array_equal(permutation(index), permutation(np.arange(70_000))[index])
    assert index.tolist() == [[5, 69_999], [0, 5]]


@pytest.mark.parametrize("size", [2**33 + 7, 10**12])
def test_huge_sizes_need_no_table_and_stay_inside(size):
    images = Permutation(size, "key")(np.arange(size - 10_000, size))
    assert len(set(images.tolist())) == 10_000
    assert images.min() >= 0 and images.max() < size
    assert abs(images.mean() / size - 0.5) < 5 * (1 / 12 / 10_000) ** 0.5


def test_keys_draw_all_small_permutations_alike():
    drawn = Counter(tuple(Permutation(3, "key", number)(np.arange(3)).tolist()) for number in range(3000))
    assert len(drawn) == 6
    assert max(abs(count - 500) for count in drawn.values()) < 5 * 500**0.5


def test_a_feistel_network_hides_neighbours_and_keys():
    size = 70_001
    images = Permutation(size, "key", 0)(np.arange(size))
    other = Permutation(size, "key", 1)(np.arange(size))
    for first, second in [(images[:-1], images[1:]), (images, np.arange(size)), (images, other)]:
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / size**0.5
    # 64 x 64 cells of (index, image) hold 17 each; their chi-square has 63 * 63 degrees of freedom.
    cells = np.bincount(np.arange(size) * 64 // size * 64 + images * 64 // size, minlength=64**2)
    assert abs(((cells - size / 64**2) ** 2).sum() / (size / 64**2) - 63**2) < 5 * (2 * 63**2) ** 0.5
