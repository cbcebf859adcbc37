"""The check where it may not matter: block sizes, few bits, memory, rows in a file, other float settings, a GPU."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.composites import decoys, find_composites, neighbours, top_neighbours
from autointerp.composites.neighbours import Rows, full_precision, unit
from autointerp.toys.planted import plant

CONE = {"power": 0.7, "mean": 0.5}
SMALL = 100_000  # bytes: the rows of these tests do not fit


def same(one, other):
    return all(list(one[c]) == list(other[c]) for c in ("label", "constituents", "union_constituents"))


class Counted(np.ndarray):
    """Rows that know how many of them were asked for at once."""

    most = 0

    def __getitem__(self, at):
        found = super().__getitem__(at)
        if found.ndim == 2:
            Counted.most = max(Counted.most, len(found))
        return found


@pytest.fixture(scope="module")
def rows():
    return plant(600, 48, seed=2, noise=0.3, **CONE).rows


@pytest.fixture(scope="module")
def table(rows):
    return find_composites(rows)


@pytest.fixture
def few_bits(monkeypatch):
    """The search in few bits, on a processor that has no fast ones too."""

    def use(dtype):
        monkeypatch.setattr(neighbours, "_few_bits", lambda device: dtype)

    return use


def exact(rows, m):
    full = (unit(torch.from_numpy(rows)) @ unit(torch.from_numpy(rows)).T).fill_diagonal_(-torch.inf)
    return full.topk(m, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [300, 65_536])
def test_a_search_in_few_bits_finds_the_very_rows_of_the_full_matrix(few_bits, monkeypatch, rows, dtype, chunk):
    few_bits(dtype)
    monkeypatch.setattr(neighbours, "_CHUNK", chunk)
    index, cosine = top_neighbours(rows, 8)
    values, places = exact(rows, 8)
    assert torch.allclose(cosine, values, atol=1e-6)
    assert torch.equal(index, places)


def test_rows_closer_than_few_bits_can_tell_are_searched_again(few_bits):
    few_bits(torch.bfloat16)
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal(64) + 0.02 * rng.standard_normal((700, 64))).astype(np.float32)  # cosines .999 and up
    index, _ = top_neighbours(rows, 5)
    found, right = ([set(row) for row in some.tolist()] for some in (index, exact(rows, 5).indices))
    assert np.mean([a == b for a, b in zip(found, right)]) > 0.98  # float32 itself cannot tell the rest


def test_the_few_bits_say_when_they_are_not_enough(rows):
    rows = rows.copy()
    rows[:100] = rows[0] + 0.001 * rows[:100]  # cosines above .999 in bfloat16
    Z = Rows([rows], "cpu")
    names = torch.arange(len(rows))
    with full_precision():
        index, _, sure = neighbours._nearest(Z, names, names, 8, 512, torch.bfloat16)
    right = (index == exact(rows, 8).indices).all(1)
    assert right[sure].all()
    assert 100 <= (~sure).sum() < 300


@settings(max_examples=5, deadline=None)
@given(block=st.integers(7, 900), memory=st.sampled_from([1, SMALL, 2**30]), bits=st.booleans())
def test_neither_block_size_nor_memory_nor_few_bits_change_labels(rows, table, block, memory, bits):
    some = rows[:300]
    before = neighbours._few_bits
    neighbours._few_bits = lambda device: torch.bfloat16 if bits else torch.float32
    try:
        assert same(find_composites(some, rows[300:], block=block, memory=memory), _with_union(rows))
    finally:
        neighbours._few_bits = before


_known = {}


def _with_union(rows):
    if "table" not in _known:
        _known["table"] = find_composites(rows[:300], rows[300:])
    return _known["table"]


def test_the_number_of_threads_does_not_change_labels(rows, table):
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        assert same(find_composites(rows), table)
    finally:
        torch.set_num_threads(before)


def test_a_caller_who_allows_coarse_products_gets_the_same_labels_and_keeps_the_setting(rows, table):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert same(find_composites(rows), table)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_rows_that_do_not_fit_in_memory_are_read_a_few_at_a_time_with_the_same_result(rows, table):
    rows = np.repeat(rows, 7, 0)
    rows += 0.3 / 8 * np.random.default_rng(0).standard_normal(rows.shape).astype(np.float32)
    Counted.most = 0
    streamed = find_composites(rows.view(Counted), memory=SMALL)
    assert 0 < Counted.most <= 4096 < len(rows)
    whole = find_composites(rows)
    assert same(streamed, whole)
    assert streamed["r2"].to_numpy() == pytest.approx(whole["r2"].to_numpy(), abs=1e-5, nan_ok=True)


def test_beside_rows_that_fill_the_memory_their_opposites_are_read_as_they_are_needed(monkeypatch):
    rows = plant(700, 96, seed=1, noise=0.2, stretched=(3, 30.0)).rows
    held = []

    class Seen(Rows):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            held.append(self.held is not None)

    monkeypatch.setattr(decoys, "Rows", Seen)
    plenty = find_composites(rows)
    tight = find_composites(rows, memory=neighbours._BYTES * rows.size)
    assert held == [True, False]
    assert same(plenty, tight)
    assert plenty["label"].isin(["composite", "possible"]).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_a_map_of_a_file_is_never_read_whole(tmp_path, rows, dtype):
    np.save(tmp_path / "rows.npy", rows.astype(dtype))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert same(find_composites(mapped, memory=SMALL), find_composites(rows.astype(dtype)))


def test_a_union_that_lies_in_another_file_is_read_from_there(tmp_path, rows):
    np.save(tmp_path / "union.npy", rows[300:])
    mapped = np.load(tmp_path / "union.npy", mmap_mode="r")
    assert same(find_composites(torch.from_numpy(rows[:300]), mapped, memory=1), _with_union(rows))


def test_equal_cosines_are_ordered_by_number():
    index, _ = top_neighbours(np.tile(np.eye(4, dtype=np.float32), (3, 1)), 4)
    assert index[0].tolist() == [4, 8, 1, 2]


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30])
def test_tiny_and_huge_rows_are_directions_like_others(rows, table, scale):
    assert same(find_composites((rows * scale).astype(np.float32 if scale > 1e-35 else np.float64)), table)


def test_float64_beyond_the_range_of_float32_is_no_infinity(rows, table):
    assert same(find_composites(rows.astype(np.float64) * 1e200), table)


@pytest.mark.cuda
@pytest.mark.parametrize("memory", [SMALL, 2**30])
def test_a_gpu_gives_the_labels_of_the_processor(rows, table, memory):
    assert same(find_composites(rows, device="cuda", memory=memory), table)
    index, cosine = top_neighbours(rows, 8, device="cuda")
    values, places = exact(rows, 8)
    assert torch.allclose(cosine.cpu(), values, atol=1e-5)
    assert (index.cpu() == places).float().mean() > 0.999
