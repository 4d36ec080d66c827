"""The feature bank against scikit-learn's neighbours and autograd."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from good_rt.errors import GoodRtError
from good_rt.method.bank import LARGE, FeatureBank


def unit(n, d, seed=0, dtype=torch.float32):
    return F.normalize(
        torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1
    )


@pytest.mark.parametrize("k", [1, 5, 50])
def test_distances_are_scikit_learns(k):
    bank, queries = unit(500, 16), unit(40, 16, seed=1)
    distances, rows = FeatureBank(bank).search(queries, k)
    expected, indices = (
        NearestNeighbors(n_neighbors=k, algorithm="brute")
        .fit(bank.double())
        .kneighbors(queries.double())
    )
    torch.testing.assert_close(distances.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
    assert (
        rows == torch.from_numpy(indices)
    ).float().mean() > 0.99  # equal but for rounding of near ties
    torch.testing.assert_close(FeatureBank(bank).distance(queries, k), distances[:, -1])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8))
def test_duplicates_count_and_ties_go_to_the_lower_row(seed, k):
    base = unit(6, 4, seed)
    bank = FeatureBank(torch.cat([base, base, base]))
    distances, rows = bank.search(base[:1], k)
    assert (distances.diff(dim=1) >= 0).all()
    assert rows[0, : min(k, 3)].tolist() == [0, 6, 12][: min(k, 3)]
    assert distances[0, : min(k, 3)].abs().max() == 0


@pytest.fixture(scope="module")
def large() -> FeatureBank:
    """Features in 50 clusters, as those of so many classes are."""
    centres, spread = (
        unit(50, 32)[torch.arange(LARGE + 5_000) % 50],
        unit(LARGE + 5_000, 32, seed=1),
    )
    return FeatureBank(F.normalize(centres + 0.5 * spread, dim=1))


def test_an_approximate_search_finds_about_the_distance(large):
    queries = F.normalize(large.features[:40] + 0.5 * unit(40, 32, seed=2), dim=1)
    exact, _ = large.search(queries, 10)
    found, rows = large.search(queries, 10, approximate=True)
    assert (found >= exact - 1e-6).all()
    assert float((found / exact).mean()) < 1.02
    torch.testing.assert_close(
        found, torch.linalg.vector_norm(queries[:, None] - large.features[rows], dim=2)
    )
    again, same = FeatureBank(large.features).search(queries, 10, approximate=True)
    assert torch.equal(rows, same) and torch.equal(found, again)


def test_an_approximate_search_is_exact_where_clusters_hold_too_few_rows_or_the_bank_is_small(
    large,
):
    many = LARGE // 4
    torch.testing.assert_close(
        large.search(unit(2, 32), many, approximate=True), large.search(unit(2, 32), many)
    )
    small = FeatureBank(large.features[:LARGE])
    torch.testing.assert_close(
        small.search(unit(9, 32), 10, approximate=True), small.search(unit(9, 32), 10)
    )


def test_a_row_can_be_left_out_of_its_own_search():
    bank = FeatureBank(unit(30, 8))
    distances, rows = bank.search(bank.features, 3, exclude=torch.arange(30))
    assert (rows != torch.arange(30)[:, None]).all()
    assert (distances > 0).all()


def test_the_gradient_is_the_unit_vector_away_and_zero_on_a_member():
    bank = FeatureBank(unit(50, 8))
    queries = torch.cat([unit(3, 8, 1), bank.features[:1]]).requires_grad_(True)
    bank.distance(queries, 1).sum().backward()
    _, rows = bank.search(queries, 1)
    away = F.normalize(queries.detach() - bank.features[rows[:, 0]], dim=1)
    torch.testing.assert_close(queries.grad[:3], away[:3])
    assert (queries.grad[3] == 0).all()


def test_the_gradient_equals_finite_differences():
    bank = FeatureBank(unit(50, 8))
    queries = unit(4, 8, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda q: bank.distance(q, 3), queries.requires_grad_(True))


def test_saved_and_loaded(tmp_path):
    bank = FeatureBank(unit(20, 8))
    bank.save(tmp_path / "bank.safetensors")
    assert torch.equal(FeatureBank.load(tmp_path / "bank.safetensors").features, bank.features)
    (tmp_path / "bank.safetensors").write_bytes(b"not a bank")
    with pytest.raises(GoodRtError, match="is not a feature bank"):
        FeatureBank.load(tmp_path / "bank.safetensors")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.ones(3, 4), "norm 2"),
        (torch.full((2, 4), torch.nan), "norm nan"),
        (torch.ones(4), "matrix"),
    ],
)
def test_what_is_no_bank_is_refused(features, message):
    with pytest.raises(GoodRtError, match=message):
        FeatureBank(features)


def test_k_beyond_the_bank_is_refused():
    with pytest.raises(GoodRtError, match="between 1 and 10"):
        FeatureBank(unit(10, 4)).distance(unit(1, 4), 11)
