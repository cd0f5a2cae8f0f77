import itertools
from dataclasses import replace

import pytest

from shallowvit_kernels.ahead import Request, compile_variants
from shallowvit_kernels.errors import KernelError
from shallowvit_kernels.records import Dtype, FeatureMap, Kernel, Modifier, Operand, Variant
from shallowvit_kernels.tiles import (
    SHARED_BYTES,
    TARGETS,
    check_target,
    largest_head,
    padded,
    precision_for,
    tile_for,
    tiles_for,
)

HEADS = (16, 32, 64, 128, 256, 512)
COLUMNS = [(), (Modifier.BIAS,), (Modifier.POSITIONS,)]


def attention(dtype, size, *modifiers, broadcast="b"):
    operands = tuple(Operand(one, broadcast) for one in modifiers)
    return Variant(Kernel.ATTENTION, dtype, size, scale=size**-0.5, operands=operands)


def linear(dtype, size):
    return Variant(Kernel.LINEAR, dtype, size, feature_map=FeatureMap.ELU_PLUS_ONE, epsilon=1e-6)


def power_of_two(number):
    return number & (number - 1) == 0


@pytest.mark.parametrize(("size", "expected"), [(1, 16), (8, 16), (16, 16), (17, 32), (64, 64), (65, 128), (300, 512)])
def test_padded_is_the_power_of_two_that_holds_a_head(size, expected):
    assert padded(size) == expected


def test_every_target_type_head_and_modifier_has_tiles_that_a_kernel_can_take():
    for sm, dtype, size, column in itertools.product(TARGETS, Dtype, HEADS, COLUMNS):
        variant = attention(dtype, size, *column)
        if size > largest_head(variant, sm):
            continue
        tiles = tiles_for(variant, sm)
        assert tiles[0] == tile_for(variant, sm)
        assert len(set(tiles)) == len(tiles)
        assert tiles[-1].queries * tiles[-1].keys <= 256 or tiles[0].queries == 16
        for one in tiles:
            assert one.queries * one.keys <= tiles[0].queries * tiles[0].keys
            assert min(one.queries, one.keys) >= 16
            assert all(map(power_of_two, (one.queries, one.keys, one.warps)))
            assert one.warps in (4, 8)


def test_tiles_of_the_linear_kernel_keep_its_share_and_shrink_its_step():
    for sm, dtype in itertools.product(TARGETS, Dtype):
        tiles = tiles_for(linear(dtype, 64), sm)
        assert len({one.queries for one in tiles}) == 1
        assert [one.keys for one in tiles] == sorted((one.keys for one in tiles), reverse=True)
        assert tiles[-1].keys == 16


@pytest.mark.parametrize(
    ("variant", "sm", "complaint"),
    [
        (
            attention(Dtype.FP16, 513),
            80,
            "head size of 513 is padded to 1024, .* 48 KiB .* in fp16 .* attention; 512 is the largest",
        ),
        (attention(Dtype.FP16, 300), 75, "300 is padded to 512, .* in fp16 .* attention; 256 is the largest"),
        (attention(Dtype.FP32, 300), 80, "300 is padded to 512, .* in fp32 .* attention; 256 is the largest"),
        (attention(Dtype.FP32, 256, Modifier.POSITIONS), 80, "in fp32 .* attention; 128 is the largest"),
        (replace(attention(Dtype.BF16, 64), value_size=600), 80, "head size of 600 is padded to 1024"),
        (linear(Dtype.FP16, 129), 80, "in fp16 for the kernel linear; 128 is the largest"),
        (linear(Dtype.FP32, 100), 80, "in fp32 for the kernel linear; 64 is the largest"),
        (linear(Dtype.FP16, 100), 75, "in fp16 for the kernel linear; 64 is the largest"),
    ],
)
def test_tile_for_a_head_that_does_not_fit_says_the_largest(variant, sm, complaint):
    with pytest.raises(KernelError, match=complaint):
        tile_for(variant, sm)


def test_check_target_takes_all_that_the_tables_have():
    for sm in TARGETS:
        check_target(sm, Dtype.FP16)
        assert precision_for(sm) == ("ieee" if sm == 75 else "tf32x3")


ORDINARY = [
    (80, attention(Dtype.BF16, 64, Modifier.BIAS)),
    (110, attention(Dtype.FP16, 64)),
    (120, attention(Dtype.FP32, 32)),
]
REPRESENTATIVE = [
    (75, attention(Dtype.FP16, 64, Modifier.PROBABILITY_MASK)),
    (75, attention(Dtype.FP32, 32)),
    (80, attention(Dtype.FP32, 64, Modifier.SCORE_MASK)),
    (80, Variant(Kernel.GAUSSIAN, Dtype.FP16, 64, scale=0.125)),
    (80, linear(Dtype.BF16, 64)),
    (87, attention(Dtype.FP16, 128)),
    (87, attention(Dtype.FP16, 72, Modifier.BIAS)),
    (90, attention(Dtype.BF16, 64, Modifier.POSITIONS)),
    (90, attention(Dtype.FP16, 128, Modifier.BIAS)),
    (110, attention(Dtype.FP16, 64, Modifier.PROBABILITY_MASK)),
    (110, Variant(Kernel.GAUSSIAN, Dtype.FP32, 64, scale=0.125)),
    (120, attention(Dtype.FP32, 64, Modifier.POSITIONS)),
    (120, linear(Dtype.FP16, 32)),
]


def _check_code(pairs, folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    for one in compile_variants([Request(variant, sm) for sm, variant in pairs]):
        assert one.facts.spilled_bytes == 0, one.launch.kernel
        assert one.facts.shared_bytes <= SHARED_BYTES, one.launch.kernel


def test_compiled_kernels_spill_nothing_and_fit_into_shared_memory(tmp_path, monkeypatch):
    _check_code(ORDINARY, tmp_path, monkeypatch)


@pytest.mark.slow
def test_compiled_kernels_of_every_kind_and_family_spill_nothing_and_fit(tmp_path, monkeypatch):
    _check_code(REPRESENTATIVE, tmp_path, monkeypatch)
