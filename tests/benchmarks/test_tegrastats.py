import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tegrastats_lines import (
    AGX_ORIN_35,
    AGX_ORIN_36,
    AGX_ORIN_39,
    AGX_XAVIER_32,
    NANO_32,
    ORIN_NANO_36,
    THOR_38,
    TOTALS,
    TX2_32,
)

from shallowvit_bench.power.rails import rails_of_total, rails_remark, total_power_mw
from shallowvit_bench.power.tegrastats import Load, Memory, Rail, Tegrastats, parse_tegrastats

NAMES = ["thor-38", "agx-orin-39", "agx-orin-36", "agx-orin-35", "orin-nano-36", "agx-xavier-32", "tx2-32", "nano-32"]
ODD = st.text("aZ09 .,:=_/-@%[]()\t\0é²", min_size=1, max_size=12)


def _off(*names):
    return dict.fromkeys(names, Load(on=False))


# --- each capture, by hand --------------------------------------------------------------------------------------------------


def test_parse_tegrastats_of_a_thor_has_clocks_of_three_clusters_and_no_load():
    line = parse_tegrastats(THOR_38)
    assert line.gpus == {"GR3D": Load(None, (314, 314, 314))}
    assert (line.time, line.swap) == ("04-21-2026 15:50:52", None)
    assert line.ram == Memory(105265, 125772, 4, 34)
    assert (len(line.cpus), line.cpus[11], line.memory_load) == (14, Load(8, (972,)), Load(0, (2750,)))
    named = ("NVENC0", "NVENC1", "NVDEC0", "NVDEC1", "NVJPG0")
    at_314 = dict.fromkeys(named, Load(None, (314,)))
    assert line.engines == at_314 | {"OFA": Load(None, (315,)), "APE": Load(None, (300,))} | _off("VIC", "PVA0")
    assert line.temperatures_c == {"cpu": 37.343, "tj": 38.875, "soc012": 37.468, "gpu": 38.875, "soc345": 37.406}
    rails = {"VDD_GPU": 1962, "VDD_CPU_SOC_MSS": 5887, "VIN_SYS_5V0": 5635, "VIN": 19780}
    assert line.rails == {name: Rail(mw, mw) for name, mw in rails.items()}


def test_parse_tegrastats_of_jetpack_7_2_takes_the_first_of_two_temperatures_and_keeps_three_values_of_power():
    line = parse_tegrastats(AGX_ORIN_39)
    assert line.temperatures_c == {"cpu": 52.968, "soc2": 48.406, "soc0": 49.531, "gpu": 47.625}
    assert line.rails["VDD_GPU_SOC"] == Rail(5139, 5139, 5139)
    assert line.gpus == {"GR3D": Load(12, (1300, 1300))}
    assert line.engines == {"APE": Load(None, (174,))} | _off(
        "NVENC0", "NVDEC0", "NVJPG0", "NVJPG1", "VIC", "OFA", "NVDLA0", "NVDLA1", "PVA0"
    )
    assert line.ram == Memory(20642, 62817, 2, 1)


def test_parse_tegrastats_of_an_agx_orin_under_jetpack_6():
    line = parse_tegrastats(AGX_ORIN_36)
    assert line.swap == Memory(86, 31420, cached_mib=0)
    assert (line.engines["NVENC"], line.engines["VIC"]) == (Load(79, (166,)), Load(36, (115,)))
    assert (line.gpus["GR3D"], line.cpus[3]) == (Load(0, (0, 0)), Load(14, (2201,)))
    assert [rail.now_mw for rail in line.rails.values()] == [2412, 1607, 4707]


def test_parse_tegrastats_drops_sensors_without_power_and_rails_not_connected():
    line = parse_tegrastats(AGX_ORIN_35)
    assert line.unmeasured == ("CV0", "CV1", "GPU", "CV2")
    assert set(line.temperatures_c) == {"CPU", "Tboard", "SOC2", "Tdiode", "SOC0", "tj", "SOC1"}
    assert list(line.rails) == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]
    assert line.gpus == {"GR3D": Load(0, (0,)), "GR3D2": Load(0, (0,))}
    assert line.engines == {"VIC": Load(None, (729,)), "APE": Load(None, (174,))}


def test_parse_tegrastats_of_an_orin_nano_without_root_has_a_load_without_a_clock():
    line = parse_tegrastats(ORIN_NANO_36)
    assert (line.time, line.gpus, line.memory_load) == (None, {"GR3D": Load(0)}, None)
    assert line.swap == Memory(1875, 12002, cached_mib=43)
    assert line.rails == {"VDD_IN": Rail(7256, 7256), "VDD_CPU_GPU_CV": Rail(1711, 1711), "VDD_SOC": Rail(2511, 2511)}


def test_parse_tegrastats_of_jetpack_4_reads_rails_without_a_unit_and_drops_the_constant_of_the_pmic():
    line = parse_tegrastats(AGX_XAVIER_32)
    powers = {"GPU": 0, "CPU": 216, "SOC": 864, "CV": 0, "VDDRQ": 144, "SYS5V": 1889}
    assert line.rails == {name: Rail(mw, mw) for name, mw in powers.items()}
    assert line.unmeasured == ("PMIC",)
    assert (line.temperatures_c["GPU"], line.temperatures_c["thermal"]) == (32.0, 32.9)
    assert line.memory_load == Load(0)


def test_parse_tegrastats_of_a_tx2_knows_parked_cores_and_both_values_of_a_rail():
    line = parse_tegrastats(TX2_32)
    assert line.cpus == (Load(2, (345,)), *(Load(on=False) for _ in range(5)))
    assert line.rails["VDD_IN"] == Rail(2003, 2658)
    assert (line.memory_load, line.gpus["GR3D"]) == (Load(13, (40,)), Load(0, (114,)))


def test_parse_tegrastats_of_a_nano():
    line = parse_tegrastats(NANO_32)
    assert line.rails == {"POM_5V_IN": Rail(900, 943), "POM_5V_GPU": Rail(0, 0), "POM_5V_CPU": Rail(123, 123)}
    assert line.temperatures_c == {"PLL": 39.0, "CPU": 40.5, "GPU": 41.0, "AO": 46.0, "thermal": 41.0}


@pytest.mark.parametrize("line", TOTALS, ids=NAMES)
def test_parse_tegrastats_of_each_capture_leaves_nothing_unknown(line):
    assert parse_tegrastats(line).unknown == ()


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("IRAM 0/252kB(lfb 252kB)", "iram", Memory(0, 252 / 1024, 252 / 1024)),
        ("RAM 1/7620MB (lfb 1x512kB)", "ram", Memory(1, 7620, 0.5, 1)),
        ("RAM 1/7620MB", "ram", Memory(1, 7620)),
        ("MTS fg 3% bg 11%", "translation_percent", (3, 11)),
        ("EMC 0%", "memory_load", Load(0)),
        ("MSENC 716", "engines", {"MSENC": Load(None, (716,))}),
        ("NVENC0_FREQ @314", "engines", {"NVENC0": Load(None, (314,))}),
        ("GR3D_FREQ 0%@76", "gpus", {"GR3D": Load(0, (76,))}),
        ("VDD_IN 2171mW", "rails", {"VDD_IN": Rail(2171)}),
        ("PMIC@50C", "unmeasured", ("PMIC",)),
        ("gpu@-256C/-256C", "unmeasured", ("gpu",)),
        ("gpu@-0.5C", "temperatures_c", {"gpu": -0.5}),
    ],
)
def test_parse_tegrastats_of_a_token_that_is_described_and_in_no_capture(text, field, expected):
    line = parse_tegrastats(text)
    assert (getattr(line, field), line.unknown) == (expected, ())


def test_parse_tegrastats_with_swap_behind_the_cpus_reads_both():
    line = parse_tegrastats("RAM 1/2MB CPU [off,3%@4] SWAP 5/6MB (cached 7MB)")
    assert (line.swap, line.cpus) == (Memory(5, 6, cached_mib=7), (Load(on=False), Load(3, (4,))))


@pytest.mark.parametrize("text", ["", "   ", "Cannot open tegrastats", "\0", "[[[", "CPU []", "RAM", "VDD_IN", "@C", "9" * 400])
def test_parse_tegrastats_of_no_line_keeps_the_words(text):
    assert parse_tegrastats(text) == Tegrastats(unknown=tuple(text.split()))


# --- captures that were changed ---------------------------------------------------------------------------------------------


@st.composite
def _garbled(draw):
    """A capture with tokens dropped, repeated, swapped or replaced, or cut anywhere."""
    words = draw(st.sampled_from(list(TOTALS))).split(" ")
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(words) - 1))
        change = draw(st.sampled_from(["drop", "repeat", "swap", "replace", "cut"]))
        other = draw(st.integers(0, len(words) - 1))
        if change == "drop" and len(words) > 1:
            del words[at]
        elif change == "repeat":
            words.insert(other, words[at])
        elif change == "swap":
            words[at], words[other] = words[other], words[at]
        elif change == "replace":
            words[at] = draw(ODD)
        elif change == "cut":
            words[at] = words[at][: draw(st.integers(0, len(words[at])))]
    return " ".join(words)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(text=_garbled())
def test_parse_tegrastats_of_a_garbled_capture_never_crashes_and_gives_possible_figures(text):
    line = parse_tegrastats(text)
    assert all(degrees > -256 for degrees in line.temperatures_c.values())
    assert all(rail.now_mw >= 0 for rail in line.rails.values())
    assert not set(line.rails) & {"NC"}
    for board in (None, *(board for board, _ in TOTALS.values())):
        total = total_power_mw(line, board)
        assert total is None or total >= 0


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    line=st.sampled_from(list(TOTALS)),
    word=st.from_regex(r"[A-Z]{2,6}_NEW=[0-9a-z]{1,5}", fullmatch=True),
    share=st.floats(0, 1),
)
def test_parse_tegrastats_keeps_a_token_of_tomorrow_and_everything_else(line, word, share):
    # between whole tokens: before a name that a figure follows, or before a temperature
    places = [found.start() for found in re.finditer(r"(?<= )(?:EMC|GR3D|CPU|[A-Za-z]\w*@-?\d|VDD_|POM_|SWAP|APE)", line)]
    at = places[int(share * (len(places) - 1))]
    changed = parse_tegrastats(f"{line[:at]}{word} {line[at:]}")
    untouched = parse_tegrastats(line)
    assert changed.unknown == (word,)
    assert Tegrastats(**vars(changed) | {"unknown": ()}) == untouched


@settings(derandomize=True, deadline=None)
@given(line=st.sampled_from(list(TOTALS)), at=st.integers(0, 40))
def test_parse_tegrastats_of_a_repeated_rail_keeps_the_first_and_shows_the_other(line, at):
    rails = list(parse_tegrastats(line).rails)
    name = rails[at % len(rails)]
    changed = parse_tegrastats(f"{line} {name} 999999/999999")
    assert changed.rails == parse_tegrastats(line).rails
    assert changed.unknown == (name, "999999/999999")


@settings(derandomize=True, deadline=None)
@given(line=st.sampled_from(list(TOTALS)), milliwatts=st.integers(0, 999_999_999))
def test_parse_tegrastats_of_changed_figures_reads_those(line, milliwatts):
    name, rail = next(iter(parse_tegrastats(line).rails.items()))
    changed = re.sub(rf"(?<= ){name} {rail.now_mw}(?=mW|/)", f"{name} {milliwatts}", line)
    assert parse_tegrastats(changed).rails[name].now_mw == milliwatts


@settings(derandomize=True, deadline=None)
@given(text=st.text(max_size=200))
def test_parse_tegrastats_of_noise_never_crashes(text):
    assert isinstance(parse_tegrastats(text), Tegrastats)


# --- the total --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", TOTALS, ids=NAMES)
def test_total_power_mw_of_each_board_is_its_input_or_its_sum(line):
    board, total = TOTALS[line]
    assert total_power_mw(parse_tegrastats(line), board) == total


@pytest.mark.parametrize("line", TOTALS, ids=NAMES)
def test_total_power_mw_without_the_boards_name_goes_by_its_rails(line):
    assert total_power_mw(parse_tegrastats(line), None) == TOTALS[line][1]


def test_total_power_mw_of_an_agx_orin_leaves_out_the_rail_that_may_count_twice():
    line = parse_tegrastats(AGX_ORIN_35)
    assert total_power_mw(line, "jetson-agx-orin-64gb") == 6831
    assert "VDDQ_VDD2_1V8AO, which may be fed by VIN_SYS_5V0" in rails_remark(
        rails_of_total(line.rails, "jetson-agx-orin-64gb")
    )


def test_total_power_mw_without_one_of_the_rails_is_none():
    line = parse_tegrastats(AGX_XAVIER_32.replace(" SYS5V 1889/1889", ""))
    assert total_power_mw(line, "jetson-agx-xavier-16gb") is None
    assert total_power_mw(parse_tegrastats(THOR_38.replace(" VIN 19780mW/19780mW", "")), "jetson-thor-t5000") is None


def test_total_power_mw_of_a_board_that_is_no_jetson_is_none():
    assert total_power_mw(parse_tegrastats(NANO_32), "rtx-4090") is None
