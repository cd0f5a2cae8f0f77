import numpy as np
import pytest
import torch

from shallowvit import ScoreConfig
from shallowvit.scoring import BlockScore
from shallowvit.scoring.caveats import caveats
from shallowvit.scoring.pretraining import pretraining_from_names
from shallowvit.scoring.records import BlockWeights, Matrix
from shallowvit.scoring.sketch import Sketch, sketch

CLEAR = Sketch(stored="fp32", kurtosis=1.0, mean_abs_over_rms=0.75, fp16_subnormals=0.0)
SCRAMBLED = [3.0, 1.0, 6.0, 2.0, 5.0, 4.0]


def _blocks(count, width=3000, stack="blocks"):
    shape = (width, 1000)
    return [BlockWeights(i, stack, f"{stack}.{i}", (Matrix("w", shape, lambda: torch.zeros(shape)),)) for i in range(count)]


def _rows(values, weights=3_000_000, noise=None):
    return [BlockScore(i, f"blocks.{i}", value, weights, "blocks", noise) for i, value in enumerate(values)]


def _found(values=SCRAMBLED, criterion="entropy", bits=7, noise=None, weights=3_000_000, **given):
    config = ScoreConfig(criterion, bits)
    return caveats(config, _blocks(len(values)), _rows(values, weights, noise), **given)


def test_caveats_clear_scores_say_nothing():
    assert _found(noise=0.1, sketches=[CLEAR] * 6, pretraining="masked") == ()


def test_caveats_exact_entropy_near_ln_n_is_saturated():
    (said,) = _found([14.91 + value / 1000 for value in SCRAMBLED], bits=23)
    assert "saturated (at least 99.9" in said
    assert "--mantissa-bits 7" in said


def test_caveats_exact_entropy_of_small_blocks_is_noise():
    (said,) = _found(bits=23, weights=1_999_999)
    assert "the smallest block has 1,999,999" in said
    assert _found(bits=23, weights=2_000_000) == ()


@pytest.mark.parametrize(("stored", "bits"), [("bf16", 7), ("fp16", 10)])
def test_caveats_stored_precision_below_the_counted_bits_is_named(stored, bits):
    sketches = [Sketch(stored, 1.0, 0.75, 0.0)] * 6
    (said,) = _found(bits=bits + 1, sketches=sketches)
    assert f"hold {stored} values ({bits} mantissa bits)" in said
    assert _found(bits=bits, sketches=sketches) == ()


def test_caveats_mixed_precisions_can_not_be_compared():
    (said,) = _found(bits=23, sketches=[CLEAR] * 5 + [Sketch("fp16", 1.0, 0.75, 0.0)])
    assert "fp16 in 1, fp32 in 5 blocks" in said


def test_caveats_fp16_subnormals_give_their_share():
    (said,) = _found(sketches=[CLEAR] * 5 + [Sketch("fp16", 1.0, 0.75, 0.021)])
    assert "up to 2.1% of a block's weights are fp16 subnormals" in said


@pytest.mark.parametrize(("noise", "said"), [(0.6, True), (0.5, False)])
def test_caveats_scores_closer_than_their_noise_are_named(noise, said):
    found = _found(noise=noise)  # they span 5
    assert any("8.3 times their own sampling deviation" in sentence for sentence in found) is said


def test_caveats_weights_like_their_initialisation_are_named():
    start = Sketch("fp32", -0.3, 0.82, 0.0)
    (said,) = _found(sketches=[start] * 4 + [CLEAR] * 2)
    assert "4 of 6 blocks look like their initialisation (mean |w| / rms 0.820" in said
    assert _found(sketches=[start] * 3 + [CLEAR] * 3) == ()


def test_caveats_entropy_of_a_model_not_pretrained_by_masking_is_doubted():
    (said,) = _found(pretraining="other")
    assert "doesn't come from masked pretraining" in said
    assert _found(pretraining=None) == ()
    assert _found(criterion="l1", pretraining="other") == ()


def test_caveats_ranking_that_repeats_depth_gives_the_correlation():
    (said,) = _found([6.0, 5.0, 4.0, 2.0, 3.0, 1.0])
    assert "Spearman +0.94 with removing the last blocks" in said
    assert _found([6.0, 5.0, 4.0, 2.0, 3.0, 1.0], criterion="depth") == ()


def test_caveats_stacks_of_different_width_are_not_comparable():
    blocks = [*_blocks(3, stack="a"), *_blocks(3, width=6000, stack="b")]
    (said,) = caveats(ScoreConfig("l1"), blocks, _rows(SCRAMBLED))
    assert "a 3,000,000, b 6,000,000" in said
    assert "--quota even" in said


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["VideoMAEForVideoClassification", "videomae"], "masked"),
        (["VisionTransformer", "", "vit_base_patch16_224.mae"], "masked"),
        (["VisionTransformer", "", "vit_base_patch14_dinov2.lvd142m"], "masked"),
        (["Dinov2Model", "dinov2"], "masked"),
        (["VisionTransformer", "", "vit_small_patch16_224.dino"], "other"),
        (["VisionTransformer", "", "vit_base_patch16_224.augreg_in21k"], "other"),
        (["ViTForImageClassification", "vit"], None),
        (["DeiTForImageClassification", "deit"], "other"),
    ],
)
def test_pretraining_from_names_knows_the_common_ones(names, expected):
    assert pretraining_from_names(*names) == expected


def _normal(seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((300, 700)).astype(np.float32)) * 0.02


@pytest.mark.parametrize(("dtype", "stored"), [(torch.float32, "fp32"), (torch.float16, "fp16"), (torch.bfloat16, "bf16")])
def test_sketch_reads_the_precision_off_the_values(dtype, stored):
    assert sketch([_normal().to(dtype).float()]).stored == stored  # though kept as fp32


def test_sketch_of_a_gaussian_and_of_a_uniform_block():
    found = sketch([_normal(), _normal(1)])
    assert found.kurtosis == pytest.approx(0, abs=0.05)
    assert found.mean_abs_over_rms == pytest.approx(np.sqrt(2 / np.pi), abs=0.003)
    uniform = sketch([torch.rand(300, 700, generator=torch.Generator().manual_seed(0)) - 0.5])
    assert uniform.kurtosis == pytest.approx(-1.2, abs=0.05)
    assert uniform.mean_abs_over_rms == pytest.approx(np.sqrt(3) / 2, abs=0.003)


def test_sketch_counts_fp16_subnormals_in_fp16_values_only():
    values = torch.tensor([[1.0, 2.0**-15, 0.0, 2.0**-20]])
    assert sketch([values + 2.0**-12 * torch.tensor([[1 / 4096, 0, 0, 0]])]).fp16_subnormals == 0  # holds fp32 values
    assert sketch([torch.cat([values, torch.tensor([[1.0009765625]])], dim=1)]).fp16_subnormals == pytest.approx(2 / 5)


@pytest.mark.parametrize("matrices", [[], [torch.zeros(3, 3)]])
def test_sketch_of_nothing_or_zeros_is_defined(matrices):
    found = sketch(matrices)
    assert (found.kurtosis, found.mean_abs_over_rms, found.fp16_subnormals) == (0, 0, 0)
