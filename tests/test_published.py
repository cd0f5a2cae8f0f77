"""The paper's own numbers, as the re-analysis in docs/entropy.md uses them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("published", ROOT / "benchmarks" / "published.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def facts(module):
    return module.published()


@pytest.mark.parametrize("count", [1, 3, 5, 7, 9, 11])
def test_published_removal_sets_follow_from_the_finetuned_checkpoints_entropies(module, facts, count):
    entropies = facts["checkpoints"]["K400_FT"]["entropy"]
    assert module.first_removed(entropies, count) == facts["removed"][str(count)]["entropy_set"]


def test_published_removal_sets_do_not_follow_from_the_self_supervised_checkpoint(module, facts):
    entropies = facts["checkpoints"]["K400_PT"]["entropy"]
    assert module.first_removed(entropies, 1) != facts["removed"]["1"]["entropy_set"]


def test_published_spearman_of_entropy_and_oracle_ranks_is_0755(facts):
    found = spearmanr(facts["published_entropy_rank"], facts["published_oracle_rank"]).statistic
    assert found == pytest.approx(0.755, abs=5e-4)


def test_published_ranks_follow_from_entropies_and_accuracies(module, facts):
    order = np.argsort(-np.array(facts["checkpoints"]["K400_FT"]["entropy"]))
    assert [int(rank) for rank in np.argsort(order) + 1] == facts["published_entropy_rank"]
    drops = module.accuracy_drops(facts)
    assert [int(rank) for rank in np.argsort(np.argsort(-drops)) + 1] == facts["published_oracle_rank"]


def test_published_depth_correlates_as_well_as_entropy(module, facts):
    entropy = module.spearman_with_drop(facts["checkpoints"]["K400_FT"]["entropy"], facts)
    depth = module.spearman_with_drop(-np.arange(12), facts)
    assert entropy == pytest.approx(0.755, abs=5e-4)
    assert depth == pytest.approx(0.748, abs=5e-4)


def test_published_efficiency_is_entropy_over_ln_n(facts):
    for checkpoint in facts["checkpoints"].values():
        expected = np.array(checkpoint["entropy"]) / np.log(facts["weights_per_block"])
        assert checkpoint["efficiency"] == pytest.approx(expected, rel=1e-8)


def test_published_removed_accuracy_of_one_block_agrees_with_the_single_block_table(facts):
    single = dict(enumerate(facts["accuracy_without_block"], start=1))
    assert facts["removed"]["1"]["entropy"] == single[facts["removed"]["1"]["entropy_set"][0]]
    assert facts["removed"]["1"]["l1"] == single[1]


def test_partial_given_depth_equals_regression_residuals(module, facts):
    from scipy.stats import rankdata

    entropy = facts["checkpoints"]["UCF101_FT"]["entropy"]
    one, other, depth = rankdata(entropy), rankdata(module.accuracy_drops(facts)), np.arange(12.0)
    left = [each - np.polyval(np.polyfit(depth, each, 1), depth) for each in (one, other)]
    assert module.partial_given_depth(np.array(entropy), facts) == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-9)
