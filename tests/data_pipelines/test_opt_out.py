"""Samples that are opted out: passed over by the same rule at any world size, and on record."""

from itertools import islice

import numpy as np
import pytest

from data_pipelines.base import DataError, UserError
from data_pipelines.ledger import BITS, expected
from data_pipelines.loader import Loader, finite_batches
from data_pipelines.manifest import Facts
from data_pipelines.opt_out import read_opt_out
from data_pipelines.order import Order, Stream
from data_pipelines.pack.writer import PackConfig, Split, write_sets
from data_pipelines.quarantine import is_too_much, num_bad, read_lines, replaced
from data_pipelines.shards import Dataset

STEPS, BATCH = 12, 8
MODULUS = 2**BITS


class Keys:
    """A view of nothing but a number."""

    def sample(self, sample, draw):
        return {"number": np.array(int(sample.key[3:]))}


@pytest.fixture
def folder(tmp_path):
    """60 samples in 4 shards."""
    samples = [(f"key{n:02d}", {"txt": f"sample {n:02d}".encode()}) for n in range(60)]
    split = Split("train", samples, 60, 600, lambda: (Facts(), ()))
    [dataset] = write_sets(tmp_path / "set", [split], PackConfig(samples_per_shard=15), name="set", source="a test")
    return dataset.path


def listed(tmp_path, *lines):
    (tmp_path / "out.txt").write_text("".join(f"{line}\n" for line in lines))
    return read_opt_out(str(tmp_path / "out.txt"))


def order_of(dataset):
    return Order(0, [Stream(dataset.name, dataset.shard_sizes, 4)], 4, window=4)


def read(dataset, world_size, quarantine, *, start=0, steps=STEPS, attempt=1):
    """Keys by slot, the ledger, and how many samples counted as unreadable, of all ranks."""
    keys, ledger, bad = {}, 0, 0
    for rank in range(world_size):
        loader = Loader(
            [dataset], order_of(dataset), Keys(), seed=0, global_batch=BATCH, accumulation=1, rank=rank,
            world_size=world_size, start=start, workers=0, prefetch=2, quarantine=quarantine, attempt=attempt,
        )  # fmt: skip
        for batch in islice(loader, steps):
            keys.update(zip(batch.positions.tolist(), batch.keys, strict=True))
            ledger, bad = ledger + batch.ledger, bad + batch.replaced
        loader.close()
    return keys, ledger % MODULUS, bad


def test_what_stands_in_is_the_same_at_any_world_size_and_proven(folder, tmp_path):
    whole, _, _ = read(Dataset.open(folder), 1, None)
    opt_out = listed(tmp_path, *(f"key{n:02d}" for n in range(0, 60, 4)))
    dataset = Dataset.open(folder, opt_out=opt_out)
    alone, ledger, bad = read(dataset, 1, tmp_path / "one")
    assert not set(alone.values()) & opt_out.everywhere and bad == 0
    changed = {g for g in whole if whole[g] != alone[g]}
    assert changed == {g for g in whole if whole[g] in opt_out.everywhere}
    assert set(replaced(tmp_path / "one")) == changed
    lines = read_lines(tmp_path / "one")
    assert len(lines) == len(changed) and {line.reason for line in lines} == {"opted out"}
    assert not is_too_much(num_bad(lines), BATCH, 0.0)
    for world_size in (2, 4):
        assert read(dataset, world_size, tmp_path / str(world_size))[:2] == (alone, ledger)
        assert replaced(tmp_path / str(world_size)) == replaced(tmp_path / "one")
    plain = Dataset.open(folder)
    assert ledger == expected(order_of(plain), [plain], 0, STEPS * BATCH, replaced(tmp_path / "one"))


def test_a_list_that_grew_holds_from_the_next_start_on(folder, tmp_path):
    first = Dataset.open(folder, opt_out=listed(tmp_path, *(f"key{n:02d}" for n in range(0, 60, 4))))
    before, _, _ = read(first, 2, tmp_path / "q", steps=8)
    grown = listed(tmp_path, *(f"key{n:02d}" for n in range(0, 60, 2)))
    second = Dataset.open(folder, opt_out=grown)
    after, late, _ = read(second, 1, tmp_path / "q", start=5 * BATCH, steps=4, attempt=2)  # steps 5 to 7 are made anew
    assert set(before.values()) & grown.everywhere and not set(after.values()) & grown.everywhere
    _, kept, _ = read(first, 1, None, steps=5)
    plain = Dataset.open(folder)
    assert (kept + late) % MODULUS == expected(order_of(plain), [plain], 0, 9 * BATCH, replaced(tmp_path / "q"))
    shrunk = Dataset.open(folder)
    assert read(shrunk, 2, tmp_path / "q", start=5 * BATCH, steps=4, attempt=3)[:2] == (after, late)


def test_an_unreadable_stand_in_counts_and_the_opted_out_sample_does_not(folder, tmp_path):
    plain = Dataset.open(folder)
    slots = order_of(plain).slots(np.arange(1))
    opted = plain.key(int(slots.shard[0]), int(slots.member[0]))
    _, shard, member = next(order_of(plain).substitutes(0))
    tar = tmp_path / "set" / "train" / plain.manifest.shards[shard].file
    text = f"sample {plain.key(shard, member)[3:]}".encode()
    tar.write_bytes(tar.read_bytes().replace(text, text.upper()))
    dataset = Dataset.open(folder, opt_out=listed(tmp_path, opted))
    keys, _, bad = read(dataset, 1, tmp_path / "q", steps=1)
    [line] = [line for line in read_lines(tmp_path / "q") if line.g == 0]
    assert (line.key, line.is_bad) == (plain.key(shard, member), True)
    assert keys[0] not in {opted, line.key} and bad >= 1


def test_lists_may_be_of_single_sets(folder, tmp_path):
    opt_out = listed(tmp_path, "set-train\tkey01", "other\tkey02", "key with\rand space", "", "key03\r")
    assert opt_out.of("set-train") == {"key01", "key with\rand space", "key03"}
    assert opt_out.of("other") == {"key02", "key with\rand space", "key03"} and len(opt_out) == 4
    assert opt_out.digest == listed(tmp_path, "key03", "other\tkey02", "key with\rand space", "set-train\tkey01").digest
    assert opt_out.digest != listed(tmp_path, "key01").digest
    with pytest.raises(UserError, match=r"data\.opt_out=.*nowhere: .*want a file of keys, one a line"):
        read_opt_out(str(tmp_path / "nowhere"))


def test_a_finite_stream_gives_no_weight_to_what_is_opted_out(folder, tmp_path):
    dataset = Dataset.open(folder, opt_out=listed(tmp_path, *(f"key{n:02d}" for n in range(20))))
    batches = list(finite_batches(dataset, Keys(), seed=0, batch_size=16, rank=0, world_size=1, workers=0))
    counted = [key for batch in batches for key, weight in zip(batch.keys, batch.weight, strict=True) if weight]
    assert sorted(counted) == [f"key{n:02d}" for n in range(20, 60)]
    everything = Dataset.open(folder, opt_out=listed(tmp_path, *(f"key{n:02d}" for n in range(60))))
    with pytest.raises(DataError, match="opted out"):
        read(everything, 1, None, steps=1)
