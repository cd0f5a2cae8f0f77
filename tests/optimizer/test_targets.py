import json
import re
import sys

import pytest

from shallowvit import ShallowvitError
from shallowvit.cli.main import COMMANDS, main
from shallowvit.engines.target_traps import build_steps, dla_refusal, traps_of
from shallowvit.engines.targets import (
    JETPACKS,
    PRECISIONS,
    RTX_COMPUTE_CAPABILITIES,
    Kind,
    Provenance,
    all_targets,
    find_jetpack,
    find_target,
    flavours,
    jetpack_for,
    jetpack_from_l4t,
    opset_for,
    opset_of_tensorrt,
    precision_refusal,
    rtx_compute_capability,
    same_board,
    strongly_typed,
    targets_table,
    tensorrt_of,
)
from shallowvit_bench.jetpack import version_tuple

JETSONS = [target for target in all_targets() if target.kind is Kind.JETSON]
OTHERS = [target for target in all_targets() if target.kind is not Kind.JETSON]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``shallowvit targets`` in this process; returns the exit code, stdout and stderr."""
    monkeypatch.setitem(COMMANDS, "targets", ("shallowvit.cli.targets", "List the targets."))

    def run_main(*words):
        monkeypatch.setattr(sys, "argv", ["shallowvit", "targets", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        written = capsys.readouterr()
        return stopped.value.code or 0, written.out, written.err

    return run_main


def _figures(target):
    return [target.memory, target.bandwidth, *(figure for _, figure in target.peaks)]


def test_all_targets_have_keys_of_their_own():
    keys = [target.key for target in all_targets()]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[a-z0-9-]+", key) for key in keys)


@pytest.mark.parametrize("target", all_targets(), ids=lambda target: target.key)
def test_all_targets_figures_are_positive_or_unknown(target):
    assert all(figure.value is None or figure.value > 0 for figure in _figures(target))
    assert all(figure.value is not None or figure.provenance is Provenance.UNGRADED for figure in _figures(target))


@pytest.mark.parametrize("target", JETSONS, ids=lambda target: target.key)
def test_all_targets_jetsons_have_a_family_and_a_jetpack(target):
    assert target.family
    assert target.jetpacks
    assert target.shared_memory


@pytest.mark.parametrize("target", OTHERS, ids=lambda target: target.key)
def test_all_targets_others_have_no_jetpack(target):
    assert (target.jetpacks, target.family, tensorrt_of(target), jetpack_for(target)) == ((), "", None, None)


# Rows of the reference, copied by hand: SM, GB, GB/s, fp16 TFLOPS, int8 TOPS, dense and of the GPU alone.
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("jetson-nano-4gb", (53, 4, None, 0.472, None)),
        ("jetson-orin-nano-8gb", (87, 8, 68, None, 20)),
        ("jetson-orin-nano-8gb-super", (87, 8, 102, None, 33.5)),
        ("jetson-orin-nx-16gb", (87, 16, None, None, None)),
        ("jetson-agx-orin-64gb", (87, 64, 204.8, None, None)),
        ("jetson-thor-t4000", (110, 64, 273, 150, 300)),
        ("jetson-thor-t5000", (110, 128, 273, 258.5, 517)),
        ("t4", (75, 16, 320, 65, 130)),
        ("l4", (89, 24, None, 121, None)),
        ("a100-40gb", (80, 40, 1555, 312, 624)),
        ("a100-80gb", (80, 80, 2039, 312, 624)),
        ("h100-sxm", (90, 80, 3350, 989, 1979)),
        ("h100-pcie", (90, 80, None, 756, None)),
        ("rtx-4090", (89, 24, 1008, 165.2, None)),
        ("rtx-5090", (120, 32, 1792, 209.5, 838)),
        ("dgx-spark", (121, 128, None, None, None)),
    ],
)
def test_find_target_figures_are_those_of_the_reference(key, expected):
    target = find_target(key)
    figures = (target.memory_gb, target.bandwidth_gb_s, target.peak("fp16").value, target.peak("int8").value)
    assert (target.sm, *figures) == expected


@pytest.mark.parametrize(
    ("key", "precision", "letter"),
    [
        ("jetson-nano-4gb", "fp16", "B"),
        ("jetson-thor-t5000", "fp16", "C"),
        ("jetson-thor-t4000", "fp16", "D"),
        ("t4", "fp16", "-"),
    ],
)
def test_peak_keeps_its_grade(key, precision, letter):
    assert find_target(key).peak(precision).provenance.letter == letter


def test_peak_of_bf16_stays_unknown_where_it_was_not_read():
    assert find_target("h100-sxm").peak("bf16").value is None


def test_compute_capability_of_thor_has_two_digits_before_the_point():
    assert find_target("jetson-thor-t5000").compute_capability == "11.0"


def test_find_target_takes_any_case():
    assert find_target(" RTX-4090").key == "rtx-4090"


@pytest.mark.parametrize(
    ("key", "near"),
    [("orin-nx", "jetson-orin-nx-8gb, jetson-orin-nx-16gb"), ("h100", "h100-sxm, h100-pcie"), ("rtx4090", "rtx-4090")],
)
def test_find_target_unknown_names_near_ones(key, near):
    with pytest.raises(
        ShallowvitError, match=rf"no target '{key}' among the \d+ known\. Near ones: {near}.*shallowvit targets"
    ):
        find_target(key)


def test_find_target_unlike_any_names_none():
    with pytest.raises(ShallowvitError, match=r"known\. List all with"):
        find_target("zzz")


def test_same_board_joins_both_states_of_an_orin_nano():
    assert same_board(find_target("jetson-orin-nano-8gb"), find_target("jetson-orin-nano-8gb-super"))
    assert not same_board(find_target("jetson-orin-nano-8gb"), find_target("jetson-orin-nano-4gb"))
    assert not same_board(find_target("t4"), find_target("l4"))


def test_rtx_compute_capabilities_are_those_of_the_library():
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX isn't installed")
    names = [name for name in dir(tensorrt_rtx.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
    assert sorted(int(name[2:]) for name in names) == sorted(RTX_COMPUTE_CAPABILITIES)


@pytest.mark.parametrize(
    ("key", "expected", "capability"),
    [
        ("jetson-orin-nx-16gb", ("tensorrt",), None),
        ("jetson-thor-t5000", ("tensorrt",), None),
        ("t4", ("rtx", "tensorrt"), 75),
        ("a100-80gb", ("rtx", "tensorrt"), 80),
        ("rtx-5090", ("rtx", "tensorrt"), 120),
        ("dgx-spark", ("rtx", "tensorrt"), 121),
        ("h100-sxm", ("tensorrt", "rtx"), None),
        ("b200", ("tensorrt", "rtx"), None),
    ],
)
def test_flavours_follow_what_rtx_takes(key, expected, capability):
    assert flavours(find_target(key)) == expected
    assert rtx_compute_capability(find_target(key)) == capability


@pytest.mark.parametrize(
    ("key", "jetpack", "version", "opset", "typed"),
    [
        ("jetson-nano-4gb", None, "8.2.1", 18, False),
        ("jetson-xavier-nx-8gb", None, "8.5.2", 18, False),
        ("jetson-orin-nx-16gb", "6.0", "8.6.2.3", 18, False),
        ("jetson-orin-nx-16gb", "6.2", "10.3.0.30", 18, True),
        ("jetson-orin-nx-16gb", "6.2.2", None, 18, False),
        ("jetson-orin-nx-16gb", "7.2", "10.16.2", 23, True),
        ("jetson-orin-nx-16gb", None, "10.16.2", 23, True),
        ("jetson-agx-orin-64gb", None, "11.4.1", 23, True),
        ("jetson-thor-t5000", "7.0", "10.13.3.9", 18, True),
    ],
)
def test_opset_for_and_typing_follow_the_jetpack(key, jetpack, version, opset, typed):
    target = find_target(key)
    assert tensorrt_of(target, jetpack) == version
    assert opset_for(target, jetpack) == opset
    assert strongly_typed(target, jetpack) is typed


@pytest.mark.parametrize("target", OTHERS, ids=lambda target: target.key)
def test_opset_for_others_is_23_and_strongly_typed(target):
    assert (opset_for(target), strongly_typed(target)) == (23, True)


@pytest.mark.parametrize(("version", "opset"), [("10.13.3.9", 18), ("10.14", 23), ("10.14.1", 23), ("11.4.1", 23), ("9.9", 18)])
def test_opset_of_tensorrt_changes_at_10_14(version, opset):
    assert opset_of_tensorrt(version) == opset


@pytest.mark.parametrize(
    ("key", "jetpack", "refused"),
    [
        ("jetson-nano-4gb", None, {"bf16", "int8", "fp8", "int4"}),
        ("jetson-tx2-8gb", None, {"bf16", "int8", "fp8", "int4"}),
        ("jetson-xavier-nx-8gb", None, {"bf16", "fp8", "int4"}),
        ("jetson-orin-nx-16gb", "6.0", {"bf16", "fp8", "int4"}),
        ("jetson-orin-nx-16gb", "6.1", {"fp8"}),
        ("jetson-thor-t5000", None, set()),
        ("t4", None, {"bf16", "fp8", "int4"}),
        ("a100-80gb", None, {"fp8"}),
        ("rtx-4090", None, set()),
    ],
)
def test_precision_refusal_follows_capability_and_jetpack(key, jetpack, refused):
    assert {name for name in PRECISIONS if precision_refusal(find_target(key), name, jetpack)} == refused


def test_precision_refusal_says_what_is_needed():
    orin = find_target("jetson-orin-nx-16gb")
    assert precision_refusal(orin, "fp8") == "Jetson Orin NX 16 GB has compute capability 8.7; fp8 needs 8.9 or later"
    assert precision_refusal(orin, "int4", "6.0") == "JetPack 6.0 has TensorRT 8.6.2.3; int4 needs 10.0 or later"


def test_precision_refusal_unknown_precision_raises():
    with pytest.raises(ShallowvitError, match="unknown precision 'int2'; choose from fp32, fp16"):
        precision_refusal(find_target("t4"), "int2")


def test_jetpack_for_unknown_release_raises():
    with pytest.raises(ShallowvitError, match=r"no JetPack '6\.9' in the table; choose from 4\.6, 4\.6\.1"):
        jetpack_for(find_target("jetson-orin-nx-16gb"), "6.9")


def test_jetpack_for_release_of_other_boards_raises():
    with pytest.raises(
        ShallowvitError, match=r"JetPack 7\.0 doesn't run on jetson-orin-nx-16gb; its releases: 5\.0\.2, .*7\.2\.1\."
    ):
        jetpack_for(find_target("jetson-orin-nx-16gb"), "7.0")


def test_jetpack_for_no_jetson_raises():
    with pytest.raises(ShallowvitError, match=r"doesn't run on rtx-4090; its releases: none, it is no Jetson"):
        jetpack_for(find_target("rtx-4090"), "6.2")


def test_jetpacks_of_a_super_board_start_at_6_2():
    assert find_target("jetson-orin-nano-8gb-super").jetpacks[0] == "6.2"
    assert find_target("jetson-orin-nano-8gb").jetpacks[0] == "5.0.2"


@pytest.mark.parametrize(
    ("l4t", "version"), [("32.7.1", "4.6.1"), ("36.4.3", "6.2"), ("36.4.7", "6.2.1"), ("38.4.0", "7.1"), ("39.2.1", "7.2.1")]
)
def test_jetpack_from_l4t_finds_the_release(l4t, version):
    assert jetpack_from_l4t(l4t) == find_jetpack(version)


def test_jetpack_from_l4t_unknown_is_none():
    assert jetpack_from_l4t("36.9.9") is None


def test_jetpacks_name_each_l4t_once_and_only_known_boards():
    versions = [l4t for release in JETPACKS for l4t in release.l4t]
    assert len(set(versions)) == len(versions)
    assert {board for release in JETPACKS for board in release.boards} == {target.family for target in JETSONS}


@pytest.mark.parametrize(
    ("text", "numbers"), [("10.13.3.9", (10, 13, 3, 9)), ("8.6", (8, 6)), ("7.2-ea", (7,)), ("", ()), ("10.¹", (10,))]
)
def test_version_tuple_stops_at_what_is_no_number(text, numbers):
    assert version_tuple(text) == numbers


@pytest.mark.parametrize(
    ("key", "jetpack", "possible"),
    [
        ("jetson-orin-nano-8gb", None, False),
        ("jetson-orin-nx-16gb", "6.2", True),
        ("jetson-orin-nx-16gb", "7.2", False),
        ("jetson-agx-orin-64gb", "7.2", False),
        ("jetson-agx-orin-64gb", "7.2.2", True),
        ("jetson-thor-t5000", None, False),
    ],
)
def test_dla_refusal_follows_the_jetpack(key, jetpack, possible):
    assert (dla_refusal(find_target(key), jetpack) is None) is possible


@pytest.mark.parametrize(
    ("key", "jetpack", "text"),
    [
        ("jetson-orin-nx-16gb", "6.2", r"JetPack 6 an Orin stays on TensorRT 10"),
        ("jetson-orin-nx-16gb", "6.2", r"comes with Python 3\.10, and its TensorRT bindings are for that one"),
        ("jetson-orin-nx-16gb", "6.2.2", r"TensorRT of JetPack 6\.2\.2 was not read"),
        ("jetson-nano-4gb", None, r"takes precision from builder flags"),
        ("jetson-agx-orin-64gb", "7.2", r"10\.16\.2 of JetPack 7\.2 has no DLA"),
        ("jetson-thor-t5000", None, r"silently builds fp32"),
        ("rtx-4090", None, r"half the rate"),
        ("h100-sxm", None, r"refuses 9\.0 as an explicit target"),
        ("t4", None, r"start at compute capability 8\.0"),
        ("l4", None, r"memory bandwidth was not read"),
    ],
)
def test_traps_of_a_target_name_what_goes_wrong(key, jetpack, text):
    assert re.search(text, "\n".join(traps_of(find_target(key), jetpack)))


def test_build_steps_of_a_jetson_end_on_the_board():
    assert "on the board:  shallowvit build BUNDLE" in build_steps(find_target("jetson-orin-nx-16gb"))
    assert any("--engine rtx --target rtx-4090" in line for line in build_steps(find_target("rtx-4090")))
    assert "--engine" not in "".join(build_steps(find_target("h100-sxm")))


def test_build_steps_of_an_old_tensorrt_say_that_there_are_none():
    assert build_steps(find_target("jetson-nano-4gb"))[0].startswith("none: TensorRT 8.2.1 takes precision from builder flags")
    assert build_steps(find_target("jetson-orin-nx-16gb"), "6.0")[0].startswith("none: TensorRT 8.6.2.3")


def test_build_steps_carry_the_named_jetpack():
    orin = find_target("jetson-orin-nx-16gb")
    assert "--target jetson-orin-nx-16gb --jetpack 6.2 -o BUNDLE" in build_steps(orin, "6.2")[1]
    assert "--jetpack" not in "".join(build_steps(orin))


def test_targets_table_has_a_row_for_each_target_and_release():
    lines = targets_table().splitlines()
    assert [line.split("`")[1] for line in lines if line.startswith("| `")] == [target.key for target in all_targets()]
    assert [line.split(" | ")[0][2:] for line in lines[-len(JETPACKS) :]] == [release.version for release in JETPACKS]
    tables = "\n".join(lines).split("\n\n")
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)
    assert "None" not in targets_table()


def test_targets_command_lists_every_key(run):
    code, out, _ = run()
    assert code == 0
    assert all(target.key in out for target in all_targets())
    assert "None" not in out


def test_targets_command_explains_one(run):
    code, out, _ = run("jetson-orin-nx-16gb", "--jetpack", "6.2")
    assert code == 0
    assert re.search(r"bandwidth +unknown\n", out)
    assert re.search(r"fp8 +Jetson Orin NX 16 GB has compute capability 8\.7; fp8 needs 8\.9", out)
    assert "6.2 *" in out
    assert re.search(r"opset +18\n", out)
    assert "None" not in out


@pytest.mark.parametrize("target", all_targets(), ids=lambda target: target.key)
def test_targets_command_explains_every_target(run, target):
    code, out, _ = run(target.key)
    assert code == 0
    assert target.title in out
    assert "None" not in out


def test_targets_command_json_of_one_keeps_unknown_as_null(run):
    code, out, _ = run("jetson-orin-nx-16gb", "--json")
    record = json.loads(out)
    assert code == 0
    assert (record["bandwidth"]["value"], record["bandwidth"]["grade"]) == (None, None)
    assert (record["opset"], record["tensorrt"], record["jetpack"]) == (23, "10.16.2", "7.2")
    assert record["refused"]["fp16"] is None
    assert [row["version"] for row in record["jetpacks"]] == list(find_target("jetson-orin-nx-16gb").jetpacks)


def test_targets_command_json_lists_every_target(run):
    assert [row["key"] for row in json.loads(run("--json")[1])] == [target.key for target in all_targets()]


@pytest.mark.parametrize("words", [("--jetpack", "6.2"), ("--bundle", "x")])
def test_targets_command_option_without_a_key_exits_with_1(run, words):
    code, _, err = run(*words)
    assert code == 1
    assert "name it: shallowvit targets KEY" in err


def test_targets_command_unknown_key_exits_with_1(run):
    code, out, err = run("orin-nx")
    assert (code, out) == (1, "")
    assert "Near ones: jetson-orin-nx-8gb" in err


def test_targets_command_bundle_prints_an_estimate(run, bundle):
    code, out, _ = run("h100-sxm", "--bundle", bundle.path, "--batch", 4)
    assert code == 0
    assert "roofline of fp32, batch 4 (estimate, not a measurement" in out
    assert "the dense fp32 rate of H100 SXM's GPU was not read" in out


def test_targets_command_bundle_json_holds_the_estimate(run, image_bundle):
    record = json.loads(run("h100-sxm", "--bundle", image_bundle.path, "--batch", 4, "--json")[1])["estimate"]
    assert record["flops"] == 4 * image_bundle.manifest.plan.flops_after
    assert record["kind"].startswith("estimate, not a measurement")
    assert record["bound_ms"] == max(record["compute_ms"], record["memory_ms"])


def test_targets_command_missing_bundle_exits_with_1(run, tmp_path):
    code, _, err = run("h100-sxm", "--bundle", tmp_path / "none")
    assert code == 1
    assert "no bundle folder" in err
