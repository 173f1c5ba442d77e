"""Order, shards and places of the training and validation batches."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from chem.crystals import CrystalBatch
from generative.batches import Batches, InOrder, take

GIVEN = 23


def crystals(n: int = GIVEN) -> CrystalBatch:
    """n crystals of 1 to 5 atoms; the elements tell them apart."""
    counts = torch.arange(n) % 5 + 1
    numbers = torch.repeat_interleave(torch.arange(n) + 1, counts)
    lattice = torch.tensor([[4.0, 0.3, 0.1], [0.2, 5, 0.4], [0, 0.1, 6]]).expand(n, 3, 3)
    return CrystalBatch(counts, atomic_numbers=numbers, frac_coords=torch.rand(len(numbers), 3), lattice=lattice)


def epochs(batches: Batches, n: int) -> list[list[list[int]]]:
    """Structures of each batch of the next n epochs."""
    return [[b["index"].tolist() for b in batches] for _ in range(n)]


def flat(batches: list[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


def test_an_epoch_holds_every_structure_once_but_the_tail():
    batches = Batches(crystals(), 5, seed=3)
    first, second = epochs(batches, 2)
    assert len(batches) == len(first) == len(second) == GIVEN // 5
    for epoch in (first, second):
        assert len(flat(epoch)) == len(set(flat(epoch))) == 20
    assert first != second


def test_the_order_is_a_function_of_seed_and_epoch():
    data = crystals()
    again = Batches(data, 5, seed=3)
    again.goto(3 * len(again))
    assert epochs(again, 1)[0] == epochs(Batches(data, 5, seed=3), 4)[3]
    assert epochs(Batches(data, 5, seed=4), 1) != epochs(Batches(data, 5, seed=3), 1)


def test_a_batch_holds_the_structures_its_index_names():
    data = crystals()
    for batch in Batches(data, 5, seed=0):
        assert torch.equal(batch["num_atoms"], data["num_atoms"][batch["index"]])
        assert torch.equal(batch["atomic_numbers"], (batch["index"] + 1)[batch["batch"]])
        assert batch.levels["index"] == "structure"


@pytest.mark.parametrize("world", [2, 3])
def test_shards_are_disjoint_and_make_up_the_batch_of_one_process(world: int):
    data = crystals()
    whole = epochs(Batches(data, 6, seed=1), 2)
    shards = [epochs(Batches(data, 6, seed=1, rank=r, world=world), 2) for r in range(world)]
    for e, epoch in enumerate(whole):
        for i, batch in enumerate(epoch):
            assert [shards[j % world][e][i][j // world] for j in range(6)] == batch


def test_everyone_is_the_batch_of_all_ranks():
    data = crystals()
    whole = [batch for epoch in epochs(Batches(data, 6, seed=1), 3) for batch in epoch]
    shard = Batches(data, 6, seed=1, rank=1, world=2)
    assert [shard.everyone(step).tolist() for step in range(len(whole))] == whole


@pytest.mark.parametrize("done", [1, 3, 4, 5, 8])
def test_a_saved_place_continues_where_it_stopped(done: int):
    data = crystals()
    whole = [batch for epoch in epochs(Batches(data, 5, seed=2), 3) for batch in epoch]
    stopped, seen = Batches(data, 5, seed=2), 0
    while seen < done:
        seen += sum(1 for _ in islice(stopped, done - seen))
    state = stopped.state_dict()
    assert state == {"epoch": done // 4, "next": done % 4}
    resumed = Batches(data, 5, seed=2)
    resumed.load_state_dict(state)
    stepped = Batches(data, 5, seed=2)
    stepped.goto(done)
    for batches in (resumed, stepped):
        rest: list[list[int]] = []
        while len(rest) < len(whole) - done:
            rest += epochs(batches, 1)[0]
        assert rest == whole[done:]


def test_an_iterator_that_is_never_used_moves_nothing():
    batches = Batches(crystals(), 5, seed=0)
    iter(batches)
    assert batches.state_dict() == {"epoch": 0, "next": 0}


def test_batches_without_use_of_the_global_random_state():
    before = torch.random.get_rng_state()
    data = crystals()
    torch.random.set_rng_state(before)
    epochs(Batches(data, 5, seed=0), 2)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("size", "rank", "world", "words"),
    [
        (24, 0, 1, "batch_size = 24 is larger than the training set of 23 structures"),
        (5, 0, 2, "batch_size = 5 must be a positive multiple of the 2 processes"),
        (1, 0, 2, "batch_size = 1 must be"),
        (0, 0, 1, "batch_size = 0 must be"),
        (4, 2, 2, r"rank = 2, allowed: 0\.\.1"),
    ],
)
def test_bad_sizes_are_refused(size: int, rank: int, world: int, words: str):
    with pytest.raises(ValueError, match=words):
        Batches(crystals(), size, 0, rank, world)


def test_a_set_of_one_batch():
    assert [sorted(flat(epoch)) for epoch in epochs(Batches(crystals(3), 3, seed=0), 2)] == [[0, 1, 2]] * 2
    assert epochs(Batches(crystals(1), 1, seed=0), 2) == [[[0]], [[0]]]


@pytest.mark.parametrize("n", [1, 5, 6, 13])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_sees_every_structure_once_in_equally_many_batches(n: int, world: int):
    data = crystals(n)
    ranks = [[b["index"].tolist() for b in InOrder(data, 6, r, world)] for r in range(world)]
    assert {len(batches) for batches in ranks} == {-(-n // 6)} == {len(InOrder(data, 6, 0, world))}
    assert sorted(i for batches in ranks for i in flat(batches)) == list(range(n))
    for i, batch in enumerate(InOrder(data, 6)):
        together = sorted(j for batches in ranks for j in batches[i])
        assert together == batch["index"].tolist() == InOrder(data, 6, world - 1, world).everyone(i).tolist()


def test_validation_is_in_the_order_of_the_data():
    assert flat([b["index"].tolist() for b in InOrder(crystals(), 5)]) == list(range(GIVEN))


@pytest.mark.parametrize(("n", "size", "words"), [(0, 4, "validation set has 0"), (4, 3, "batch_size = 3 must be")])
def test_bad_validation_is_refused(n: int, size: int, words: str):
    with pytest.raises(ValueError, match=words):
        InOrder(crystals(n), size, 0, 2)


def test_take_keeps_order_and_repeats():
    batch = take(crystals(), torch.tensor([7, 2, 7]))
    assert batch["index"].tolist() == [7, 2, 7] and batch["num_atoms"].tolist() == [3, 3, 3]
    assert len(take(crystals(), torch.tensor([], dtype=torch.long))) == 0
