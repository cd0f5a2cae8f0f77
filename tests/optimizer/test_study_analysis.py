import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shallowvit.study import Column
from shallowvit.study.analysis import analyse, estimate, interval_of_correlations, partial_spearman, permutation_p, spearman
from shallowvit.study.histograms import Histograms
from shallowvit.study.outcomes import Collected, Findings, collect, oracle_sets
from shallowvit.study.plots import write_plots
from shallowvit.study.power import power, rank_reliability, reliability_over_items
from shallowvit.study.records import BlockValues, Estimated, StudiedModel, StudyResult
from shallowvit.study.tables import markdown, matrix
from shallowvit.study.worker import packed_bits, unpacked_bits

# Table 2 of arXiv 2602.03918: accuracy without each block, and the blocks' ranks by entropy (1: most important)
PAPER_ACCURACY = [46.73, 90.58, 86.14, 74.65, 88.32, 87.43, 88.51, 88.02, 90.79, 90.30, 91.09, 91.29]
PAPER_ENTROPY_RANKS = [1, 2, 5, 3, 6, 4, 8, 7, 9, 11, 10, 12]

VALUES = st.lists(st.integers(-5, 5), min_size=4, max_size=4)
ROWS = st.tuples(VALUES, VALUES, VALUES)


# rank statistics


def test_spearman_of_the_papers_table_is_0755():
    scores = [-rank for rank in PAPER_ENTROPY_RANKS]
    lost = [91.78 - accuracy for accuracy in PAPER_ACCURACY]
    assert spearman(scores, lost) == pytest.approx(0.755, abs=5e-4)


@given(ROWS)
def test_spearman_equals_scipys(rows):
    one, other, _ = rows
    found = spearman(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)


@given(ROWS)
def test_partial_spearman_equals_the_correlation_of_rank_residuals(rows):
    one, other, given_values = (stats.rankdata(row) for row in rows)
    found = partial_spearman(*rows)
    design = np.column_stack([np.ones(len(one)), given_values])
    left = [row - design @ np.linalg.lstsq(design, row, rcond=None)[0] for row in (one, other)]
    if len(set(given_values)) == 1 or min(np.linalg.norm(row) for row in left) < 1e-5:
        assert found is None
    else:
        assert found == pytest.approx(stats.pearsonr(*left).statistic, abs=1e-6)


def test_permutation_p_of_few_blocks_equals_scipys_exact_test():
    one, other = [1.0, 2.0, 3.0, 5.0, 4.0], [2.0, 1.0, 3.0, 4.0, 5.0]
    exact = stats.permutation_test(
        (one,), lambda x: stats.spearmanr(x, other).statistic, permutation_type="pairings", n_resamples=np.inf
    )
    assert permutation_p(one, other) == pytest.approx(exact.pvalue)


def test_permutation_p_of_many_blocks_is_near_the_t_approximation():
    assert permutation_p([-rank for rank in PAPER_ENTROPY_RANKS], [-a for a in PAPER_ACCURACY]) == pytest.approx(
        stats.spearmanr(PAPER_ENTROPY_RANKS, PAPER_ACCURACY).pvalue, abs=0.003
    )


def test_permutation_p_of_a_constant_is_none():
    assert permutation_p([1, 1, 1, 1], [1, 2, 3, 4]) is None


# intervals


def test_estimate_is_scipys_t_interval():
    values = [0.2, 0.5, 0.9]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    found = estimate(values)
    assert (found.mean, found.low, found.high, found.replicates) == pytest.approx((np.mean(values), low, high, 3))


def test_estimate_of_one_replicate_has_no_interval():
    assert estimate([0.4]) == Estimated(0.4, None, None, 1)


def test_estimate_of_nothing_is_none():
    assert estimate([]) is None
    assert interval_of_correlations([], 0.01) is None


def test_interval_of_correlations_is_the_t_interval_of_fishers_z():
    values = [0.2, 0.5, 0.9]
    z = np.arctanh(values)
    low, high = np.tanh(stats.t.interval(0.95, 2, z.mean(), stats.sem(z)))
    found = interval_of_correlations(values, 0.001)
    assert (found.mean, found.low, found.high) == pytest.approx((np.tanh(z.mean()), low, high))


def test_interval_of_correlations_of_perfect_orders_is_finite():
    found = interval_of_correlations([1.0, 1.0, 0.9], 0.02)
    assert 0.4 < found.low < found.mean < found.high < 1
    assert found.mean == pytest.approx(math.tanh((2 * math.atanh(0.99) + math.atanh(0.9)) / 3))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=5))
def test_interval_of_correlations_stays_within_one(values):
    found = interval_of_correlations(values, 0.01)
    assert -1 <= found.low <= found.mean <= found.high <= 1


# power


def test_rank_reliability_is_the_intraclass_correlation_of_the_ranks():
    rows = np.random.default_rng(0).normal(size=(4, 9)) + np.arange(9)
    ranks = np.array([stats.rankdata(row) for row in rows])
    times, blocks = ranks.shape
    between = times * ranks.mean(axis=0).var(ddof=1)
    apart = ranks - ranks.mean(axis=0)  # rows of ranks have one mean, so only blocks are taken out
    error = (apart**2).sum() / ((times - 1) * (blocks - 1))
    expected = (between - error) / (between + (times - 1) * error)
    assert rank_reliability(rows) == pytest.approx(expected)


def test_rank_reliability_of_one_measurement_is_none():
    assert rank_reliability([[1, 2, 3]]) is None


def test_reliability_over_items_is_one_where_every_item_says_the_same():
    assert reliability_over_items(np.tile(np.arange(5.0)[:, None], (1, 40))) == pytest.approx(1)


def test_reliability_over_items_of_pure_noise_is_near_none():
    found = reliability_over_items(np.random.default_rng(1).normal(size=(12, 400)))
    assert abs(found) < 0.6


def test_reliability_over_items_is_that_of_a_repeated_measurement():
    rng = np.random.default_rng(2)
    truth = np.linspace(0, 0.3, 12)[:, None]
    tests = [truth + rng.normal(size=(12, 400)) for _ in range(40)]
    again = rank_reliability([test.mean(axis=1) for test in tests])
    assert np.mean([reliability_over_items(test) for test in tests[:10]]) == pytest.approx(again, abs=0.05)
    assert 0.6 < again < 0.9


def _findings(oracles, scores=(), items=None, criteria=("depth",)):
    return Findings(tuple(criteria), tuple(scores), tuple(oracles), (), (), 0, items or {})


def test_power_from_seeds_has_their_deviation_as_noise():
    rows = [
        BlockValues("finetuned accuracy", 0, 0, (1.0, 2.0, 4.0, 8.0)),
        BlockValues("finetuned accuracy", 0, 1, (3.0, 2.0, 4.0, 10.0)),
    ]
    found = power(_findings(rows), "finetuned accuracy")
    assert found.noise == pytest.approx(math.sqrt((2 + 0 + 0 + 2) / 4))
    assert found.reliability == pytest.approx(stats.spearmanr(rows[0].values, rows[1].values).statistic)
    assert found.ceiling == pytest.approx(math.sqrt(found.reliability))
    assert found.noise_from == "2 finetuning seeds"
    assert found.models_agree is None


def test_power_from_items_leaves_out_what_all_blocks_share():
    hard = np.random.default_rng(0).normal(0, 100, 50)
    items = np.arange(4.0)[:, None] + hard
    row = BlockValues("zero-shot loss", 0, None, tuple(items.mean(axis=1)))
    found = power(_findings([row], items={("zero-shot loss", 0, None): items}), "zero-shot loss")
    assert found.noise == pytest.approx(0, abs=1e-9)
    assert found.noise_from == "the choice of 50 test items"


def test_power_of_one_seed_says_what_is_not_in_the_noise():
    items = np.arange(4.0)[:, None] + np.zeros(10)
    row = BlockValues("finetuned accuracy", 0, 0, (0.0, 1.0, 2.0, 3.0))
    found = power(_findings([row], items={("finetuned accuracy", 0, 0): items}), "finetuned accuracy")
    assert "a finetuning's own noise is not in it" in found.sentence


def test_power_of_a_weak_oracle_says_so():
    rows = [
        BlockValues("finetuned accuracy", 0, 0, (1.0, 2.0, 3.0, 4.0)),
        BlockValues("finetuned accuracy", 0, 1, (4.0, 3.0, 1.0, 2.0)),
    ]
    found = power(_findings(rows), "finetuned accuracy")
    assert found.ceiling == 0
    assert "criteria can hardly be told apart by it" in found.sentence


def test_power_from_the_oracles_own_noise_falls_with_it():
    def reliability(noise):
        row = BlockValues("reconstruction loss", 0, None, (1.0, 2.0, 3.0, 4.0, 5.0), (noise,) * 5)
        return power(_findings([row]), "reconstruction loss").reliability

    assert reliability(0.01) == pytest.approx(1)
    assert reliability(0.01) > reliability(1.0) > reliability(5.0)


def test_power_of_several_models_is_how_they_agree():
    rows = [
        BlockValues("zero-shot loss", 0, None, (1.0, 2.0, 3.0, 4.0)),
        BlockValues("zero-shot loss", 1, None, (1.0, 3.0, 2.0, 4.0)),
    ]
    found = power(_findings(rows), "zero-shot loss")
    assert found.models_agree == pytest.approx(0.8)
    assert found.reliability is None
    assert "its noise isn't known" in found.sentence


# agreement


def _scored(name, model, values, seed=None):
    return BlockValues(name, model, seed, tuple(map(float, values)))


def test_analyse_averages_models_and_compares_with_depth():
    oracles = [_scored("zero-shot loss", 0, [4, 3, 1, 2]), _scored("zero-shot loss", 1, [4, 3, 2, 1])]
    scores = [_scored("depth", m, [3, 2, 1, 0]) for m in range(2)]
    scores += [_scored("l1", 0, [4, 3, 1, 2]), _scored("l1", 1, [1, 2, 3, 4])]
    (depth, l1), _ = analyse(_findings(oracles, scores, criteria=("depth", "l1", "oracle")))
    assert (depth.criterion, l1.criterion, l1.oracle) == ("depth", "l1", "zero-shot loss")
    assert depth.over_depth is None
    # depth 0.8 and 1, l1 1 and -1
    assert l1.over_depth.mean == pytest.approx(((1 - 0.8) + (-1 - 1)) / 2)
    assert l1.over_depth.replicates == 2
    assert (l1.over_depth.low, l1.over_depth.high) == (-2, 2)
    assert l1.spearman.mean == pytest.approx(0)
    assert depth.pooled_spearman == pytest.approx(stats.spearmanr([3, 2, 1, 0], [4, 3, 1.5, 1.5]).statistic)


def test_analyse_does_not_compare_the_reconstruction_loss_with_itself():
    oracles = [_scored(name, 0, [4, 3, 1, 2]) for name in ("zero-shot loss", "reconstruction loss")]
    scores = [_scored("reconstruction", 0, [4, 3, 1, 2])]
    agreements, _ = analyse(_findings(oracles, scores, criteria=("reconstruction",)))
    assert [row.oracle for row in agreements] == ["zero-shot loss"]


def test_analyse_takes_seeds_of_one_model_as_replicates_and_of_several_as_none():
    def spread(models):
        oracles = [
            _scored("finetuned accuracy", m, np.random.default_rng([m, s]).random(5), seed=s)
            for m in range(models)
            for s in range(3)
        ]
        scores = [_scored("depth", m, [4, 3, 2, 1, 0]) for m in range(models)]
        return analyse(_findings(oracles, scores))[0][0].spearman.replicates

    assert (spread(1), spread(2)) == (3, 2)


def test_analyse_pairs_random_with_the_oracle_of_its_own_seed():
    oracles = [_scored("finetuned accuracy", 0, [1, 2, 3, 4], 0), _scored("finetuned accuracy", 0, [4, 3, 2, 1], 1)]
    scores = [_scored("random", 0, [1, 2, 3, 4], 0), _scored("random", 0, [4, 3, 2, 1], 1)]
    (random,), _ = analyse(_findings(oracles, scores, criteria=("random",)))
    assert random.kendall.mean == pytest.approx(1 - 0.5 * 4 / 12)  # half a step below a perfect order
    assert random.spearman.replicates == 2


def test_analyse_of_a_constant_score_finds_nothing():
    oracles = [_scored("zero-shot loss", 0, [4, 3, 1, 2])]
    (flat,), _ = analyse(_findings(oracles, [_scored("l1", 0, [1, 1, 1, 1])], criteria=("l1",)))
    assert (flat.spearman, flat.pooled_spearman, flat.pooled_p, flat.given_depth) == (None, None, None, None)


# sets and cells


def _cell(top1):
    right = np.arange(100) < 100 * top1
    return {"top1": top1, "loss": 1.0, "items": 100, "right": packed_bits(right)}


def test_oracle_sets_average_seeds_and_remove_the_deeper_of_equals():
    top1 = {0: (0.5, 0.7), 1: (0.9, 0.9), 2: (0.6, 0.6), 3: (0.9, 0.9)}
    measured = {("finetuned", 0, seed, (block,)): _cell(pair[seed]) for block, pair in top1.items() for seed in range(2)}
    sets = oracle_sets(measured, [(0, 0), (0, 1)], 4, (1, 3))
    assert sets == {("oracle", n, 0, s): {1: (3,), 3: (1, 2, 3)}[n] for n in (1, 3) for s in range(2)}


def test_oracle_sets_of_a_model_with_a_failed_cell_are_left_out():
    measured = {("finetuned", model, 0, (block,)): _cell(0.5) for model in range(2) for block in range(3)}
    measured["finetuned", 0, 0, (1,)] = None
    assert {key[2] for key in oracle_sets(measured, [(0, 0), (1, 0)], 3, (1,))} == {1}


def test_collect_leaves_a_failed_measurement_open():
    named = {("depth", 1, 0, 0): (2,)}
    measured = {("finetuned", 0, 0, (2,)): None, ("finetuned", 0, 0, ()): _cell(0.9)}
    found = collect(Collected((Column("depth"),), (1,), 3, [(0, 0)], {}, named, measured))
    assert found.measured[0].finetuned_top1 is None
    assert found.whole[0].finetuned_top1 == 0.9
    assert found.oracles == ()


def test_collect_gives_the_finetuned_oracle_in_points():
    measured = {("finetuned", 0, 0, (block,)): _cell(0.1 * block) for block in range(3)}
    measured["finetuned", 0, 0, ()] = _cell(0.8)
    found = collect(Collected((), (), 3, [(0, 0)], {}, {}, measured))
    assert [row.name for row in found.oracles] == ["finetuned accuracy"]
    assert found.oracles[0].values == pytest.approx((80, 70, 60))


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_packed_bits_come_back(bits):
    assert unpacked_bits(packed_bits(np.array(bits)), len(bits)).tolist() == bits


# tables and plots


@pytest.fixture
def result():
    """Two models of three blocks, one seed."""
    named = {("depth", 1, m, 0): (2,) for m in range(2)} | {("l1", 1, m, 0): (m,) for m in range(2)}
    measured = {}
    for model in range(2):
        for removed, top1 in {(): 0.9, (0,): 0.3, (1,): 0.5, (2,): 0.7}.items():
            measured["finetuned", model, 0, removed] = _cell(top1)
    scores = {("depth", m, None): {"scores": [2.0, 1.0, 0.0], "noise": [None] * 3} for m in range(2)}
    scores |= {("l1", m, None): {"scores": [5.0, 7.0, 6.5], "noise": [None] * 3} for m in range(2)}
    replicates = [(0, 0), (1, 0)]
    named |= oracle_sets(measured, replicates, 3, (1,))
    found = collect(Collected((Column("depth"), Column("l1")), (1,), 3, replicates, scores, named, measured))
    agreements, powers = analyse(found)
    model = StudiedModel("hf:one", "a" * 64, "Tiny", ("b.0", "b.1", "b.2"), 100, 3_000_000_000, (1_000_000_000,) * 3)
    data = {name: {"name": f"{name}.npz", "items": 100, "sha256": "c" * 64} for name in ("test", "train")}
    return StudyResult(
        config={"seeds": 1, "finetune_epochs": 1, "learning_rate": 0.1},
        models=(model, replace(model, source="hf:two")),
        data=data,
        criteria=found.criteria,
        counts=(1,),
        scores=found.scores,
        oracles=found.oracles,
        whole=found.whole,
        measured=found.measured,
        agreements=agreements,
        powers=powers,
        cells=found.unique,
        cells_named=len(found.measured),
        failures=(),
        warnings=(),
        conditions=(),
    )


def _row(text, section, name):
    part = text.partition(f"## {section}")[2].partition("\n## ")[0]
    return next(line for line in part.splitlines() if line.startswith(f"| {name} |"))


def test_markdown_has_the_best_criterion_in_bold_and_the_oracle_aside(result):
    text = markdown(result)
    assert _row(text, "Top-1 after finetuning", "depth") == "| depth | **70.0 ± 0.0** |"
    assert _row(text, "Top-1 after finetuning", "l1") == "| l1 | 40.0 ± 14.1 |"
    assert _row(text, "Top-1 after finetuning", "oracle") == "| oracle | 70.0 ± 0.0 |"
    assert "1 of 3 (33.3%), 2 GFLOPs" in text


def test_markdown_names_the_sets_that_replicates_differ_in(result):
    assert _row(markdown(result), "Which blocks go", "l1") == "| l1 | 0 (x1); 1 (x1) |"
    assert _row(markdown(result), "Which blocks go", "depth") == "| depth | 2 |"


def test_markdown_says_how_many_cells_are_shared(result):
    assert "8 finetunings stand behind 6 choices of blocks" in markdown(result)


def test_markdown_reports_failures_and_warnings(result):
    text = markdown(replace(result, failures=("a cell: died",), warnings=("7 of 9 items",)))
    assert "- **failed**: a cell: died" in text
    assert "- **7 of 9 items**" in text


def test_markdown_without_a_measurement_leaves_the_place_empty(result):
    gone = tuple(replace(row, finetuned_top1=None) for row in result.measured)
    assert _row(markdown(replace(result, measured=gone)), "Top-1 after finetuning", "l1") == "| l1 |  |"


def test_matrix_has_a_row_a_criterion_without_the_oracle(result):
    head, rows = matrix(result)
    assert head == ["Spearman with", "finetuned accuracy"]
    assert [row[0] for row in rows] == ["depth", "l1"]
    assert rows[1][1].startswith("-0.50 [")


def test_write_plots_gives_the_same_bytes_twice(result, tmp_path):
    histograms = Histograms("hf:one", (-1.0, 0.0, 1.0), ((3, 4), (0, 7), (5, 5)))
    written = []
    for name in ("one", "two"):
        folder = Path(tmp_path / name)
        folder.mkdir()
        write_plots(result, histograms, folder)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]
    assert sorted(written[0]) == ["accuracy.svg", "agreement.svg", "scores.svg", "weights.svg"]
    assert all(text.startswith(b"<?xml") for text in written[0].values())


def test_report_of_a_study_whose_cells_all_failed_is_still_written(result, tmp_path):
    empty = {"scores": (), "oracles": (), "whole": (), "measured": (), "agreements": (), "powers": ()}
    failed = replace(result, **empty, failures=("all: died",))
    write_plots(failed, Histograms("hf:one", (-1.0, 0.0, 1.0), ((3, 4), (0, 7), (5, 5))), tmp_path)
    assert "- **failed**: all: died" in markdown(failed)
    assert len(list(tmp_path.iterdir())) == 4
