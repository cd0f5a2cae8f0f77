import json

import pytest
import torch

import shallowvit
from shallowvit import PlanConfig, ScoreConfig, ShallowvitError, plan, prune, score
from shallowvit.cli.main import main
from shallowvit.pruning import check_plan, choose
from shallowvit.scoring.records import BlockScore, BlockScores, Interval

SWIN = "timm:swin_tiny_patch4_window7_224?img_size=64&window_size=4&depths=2,6,1,1&embed_dim=16&num_heads=1,2,4,8&num_classes=4"


@pytest.fixture(scope="module")
def swin():
    """Six blocks in three pairs; two of the shorter stage before them aren't chosen."""
    return shallowvit.load(SWIN)


@pytest.fixture(scope="module")
def odd():
    """Two stages: one pair, then two pairs and a block alone."""
    source = SWIN.replace("depths=2,6,1,1", "depths=2,5,1,1")
    return shallowvit.load(source, blocks=["layers.0.blocks", "layers.1.blocks"])


def _scored(model, values, intervals=()):
    rows = tuple(BlockScore(b.index, b.path, float(v), 1, b.stack) for b, v in zip(model.blocks, values, strict=True))
    return BlockScores("l1", "nothing", "sum of |w|", {}, model.sha256, rows, intervals=tuple(intervals))


def test_plan_windows_go_with_their_shifted_ones(swin):
    assert swin.pairs == ((0, 1), (2, 3), (4, 5))
    chosen = plan(swin, _scored(swin, [1, 9, 4, 4, 7, 5]), PlanConfig(prune_ratio=0.34))
    assert chosen.removed == (2, 3)  # 8, the least sum; block 0 alone is lower
    assert chosen.warnings == ()
    assert "remove the 1 of 3 groups of blocks with the lowest l1 score (prune ratio 0.34)" in chosen.reason
    assert chosen.reason.endswith("; blocks that go together: 0-1 and 2-3 and 4-5")
    assert chosen.why == ("l1 8, lowest of 3 (together with block 3)", "l1 8, lowest of 3 (together with block 2)")


def test_plan_split_pairs_go_singly_with_a_warning(swin):
    chosen = plan(swin, _scored(swin, [1, 9, 4, 4, 7, 5]), PlanConfig(prune_ratio=0.34, split_pairs=True))
    assert chosen.removed == (0, 3)
    warning = "block 3 is half of a pair of windows and shifted windows, of which block 2 stays"
    assert any(warning in one for one in chosen.warnings)


@pytest.mark.parametrize(("ratio", "removed"), [(0.17, (2, 3)), (0.5, (2, 3)), (0.51, (0, 1, 2, 3)), (0.6, (0, 1, 2, 3))])
def test_plan_ratio_is_rounded_to_groups_half_down(swin, ratio, removed):
    assert plan(swin, _scored(swin, [1, 9, 4, 4, 7, 5]), PlanConfig(prune_ratio=ratio)).removed == removed


def test_plan_ratio_below_half_a_group_refused(swin):
    with pytest.raises(ShallowvitError, match=r"0.16 of 3 groups of blocks removes none; .* above 0.167"):
        plan(swin, _scored(swin, [1] * 6), PlanConfig(prune_ratio=0.16))
    with pytest.raises(ShallowvitError, match="would remove all 3 groups of blocks"):
        check_plan(swin, PlanConfig(prune_ratio=0.9))


def test_plan_protect_holds_the_whole_group(swin):
    chosen = plan(swin, _scored(swin, [1, 9, 4, 4, 7, 5]), PlanConfig(prune_ratio=0.34, protect="3"))
    assert chosen.removed == (0, 1)
    assert "blocks 2-3 protected (3)" in chosen.reason
    with pytest.raises(ShallowvitError, match=r"2 of 3 groups of blocks are to go, but only 1 may with blocks 0-3 protected"):
        check_plan(swin, PlanConfig(prune_ratio=0.6, protect="0,2"))


def test_plan_interval_is_of_groups(swin):
    chosen = plan(swin, _scored(swin, [5, 5, 1, 9, 1, 1]), PlanConfig(prune_ratio=0.6, select="interval"))
    assert chosen.removed == (2, 3, 4, 5)
    assert "as one interval, 2-5, the least sum of l1 scores 12 of 2 possible (next 0-3, 20)" in chosen.reason


def test_plan_interval_asks_a_criterion_of_runs_for_groups(swin):
    runs = [Interval(first, last, 1.0 + (last - first)) for first in range(6) for last in range(first, 6)]
    runs = [run._replace(score=0.1) if (run.first, run.last) in ((0, 3), (1, 4)) else run for run in runs]
    scores = _scored(swin, [1] * 6, runs)
    assert plan(swin, scores, PlanConfig(prune_ratio=0.6, select="interval")).removed == (0, 1, 2, 3)  # not 1-4
    split = PlanConfig(prune_ratio=0.6, select="interval", split_pairs=True)
    assert plan(swin, scores, split).removed == (1, 2, 3, 4)


def test_plan_gaps_are_of_groups(swin):
    scores = _scored(swin, [3, 3, 1, 1, 2, 2])
    config = PlanConfig(prune_ratio=0.34, select="gaps", max_gaps=0)
    chosen = plan(swin, scores, config)
    assert chosen.removed == (4, 5)  # the middle pair would leave a gap
    assert "(the lowest scores, blocks 2-3, sum to 2)" in chosen.reason


def test_plan_iterative_scores_again_after_a_whole_group(swin):
    seen = []

    def rescore(left):
        seen.append([block.path for block in left.blocks])
        # what is left of the first pair costs most now
        return _scored(left, [9, 9, 1, 2] if len(left.blocks) == 4 else [1] * len(left.blocks))

    chosen = plan(swin, _scored(swin, [5, 5, 4, 4, 6, 6]), PlanConfig(prune_ratio=0.6, select="iterative"), rescore)
    assert [len(paths) for paths in seen] == [4]
    assert chosen.removed == (2, 3, 4, 5)
    assert "in the order 2-3, 4-5" in chosen.reason
    assert "2nd to go: l1 3, lowest of the 2 then left" in chosen.why[2]


def test_plan_quota_counts_blocks_and_takes_groups(odd):
    assert odd.pairs == ((0, 1), (2, 3), (4, 5))
    scores = _scored(odd, [1, 1, 3, 3, 2, 2, 9])
    chosen = plan(odd, scores, PlanConfig(quota="layers.1.blocks=2"))
    assert chosen.removed == (4, 5)
    even = plan(odd, scores, PlanConfig(prune_ratio=0.5, quota="even"))
    assert even.removed in ((0, 1, 4, 5), (2, 3, 4, 5))
    with pytest.raises(ShallowvitError, match=r"takes 1 of the 2 blocks of layers.0.blocks, which go in 1 groups \(0-1\)"):
        check_plan(odd, PlanConfig(quota="layers.0.blocks=1"))


def test_plan_sum_of_a_block_alone_stands_beside_sums_of_pairs(odd):
    chosen = plan(odd, _scored(odd, [9, 9, 3, 3, 2, 2, 3.5]), PlanConfig(prune_ratio=0.25))
    assert chosen.removed == (6,)
    assert chosen.why == ("l1 3.5, lowest of 4",)


@pytest.mark.parametrize("config", [PlanConfig(remove="3"), PlanConfig(keep="0-2,4-5")])
def test_plan_half_a_pair_named_is_obeyed_with_a_warning(swin, config):
    chosen = plan(swin, config=config)
    assert chosen.removed == (3,)
    assert chosen.warnings == (
        "block 3 is half of a pair of windows and shifted windows, of which block 2 stays, so that windows no longer take "
        "turns there: remove both, or measure it",
    )
    assert len(prune(swin, chosen).model.blocks) == 5


def test_plan_whole_pair_named_is_no_matter(swin):
    assert plan(swin, config=PlanConfig(remove="2,3")).warnings == ()


def test_plan_attention_goes_in_pairs_and_an_mlp_alone(swin):
    """An MLP knows no windows."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    values = {"attention": (2, 3), "mlp": (0, 3)}
    for part, removed in values.items():
        scores = _scored(swin, [1, 9, 4, 4, 7, 5])
        scores.settings["granularity"] = part
        chosen = plan(swin, scores, PlanConfig(prune_ratio=0.34, granularity=part))
        assert chosen.removed == removed
        assert chosen.warnings == ()
    torch.set_num_threads(before)


def test_choose_by_scores_alone_knows_pairs_it_is_told(swin):
    scores = _scored(swin, [1, 9, 4, 4, 7, 5])
    assert choose(scores, PlanConfig(prune_ratio=0.34), swin.pairs).removed == (2, 3)
    assert choose(scores, PlanConfig(prune_ratio=0.34)).removed == (0, 3)


def test_prune_pair_keeps_windows_taking_turns(swin):
    left = prune(swin, plan(swin, score(swin, ScoreConfig("depth")), PlanConfig(prune_ratio=0.34))).model
    assert left.pairs == ((0, 1), (2, 3))


def test_score_command_marks_pairs_or_single_blocks(monkeypatch, capsys):
    def would_remove(*words):
        monkeypatch.setattr(
            "sys.argv", ["shallowvit", "score", SWIN, "--criterion", "depth", "--prune-ratio", "0.2", *words, "--json"]
        )
        with pytest.raises(SystemExit):
            main()
        return json.loads(capsys.readouterr().out)["would_remove"]

    assert would_remove() == [4, 5]
    assert would_remove("--split-pairs") == [5]
