import json
import os
import re
import shutil
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from shallowvit_kernels import ahead, assembly, compile_worker, kept
from shallowvit_kernels.ahead import Request, compile_variant, compile_variants
from shallowvit_kernels.errors import KernelError
from shallowvit_kernels.launches import launch_from_json
from shallowvit_kernels.ptx import PTX_VERSIONS, own_ptx, target_of, threads_of
from shallowvit_kernels.records import Dtype, Kernel, Layout, Modifier, Operand, Tile, Variant
from shallowvit_kernels.targets import choose_launch, pick_targets
from shallowvit_kernels.tiles import SHARED_BYTES, TARGETS, tiles_for

PLAIN = Variant(Kernel.ATTENTION, Dtype.FP16, 64, scale=0.125)
GATED = Variant(
    Kernel.ATTENTION,
    Dtype.FP32,
    24,
    layout=Layout.PACKED,
    output_layout=Layout.TOKENS_FIRST,
    operands=(Operand(Modifier.POSITIONS, "b"),),
    log_sum_exp=True,
)
SMALL = Tile(32, 32, 4, 1)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def compiled(cache):
    requests = [Request(PLAIN, 80), Request(PLAIN, 90), Request(PLAIN, 120), Request(GATED, 87)]
    return dict(zip(["80", "90", "120", "gated"], compile_variants(requests), strict=True))


def parameters(ptx):
    entry = re.search(r"\.visible \.entry \w+\((.*?)\n\)", ptx, re.DOTALL)[1]
    return re.findall(r"\.param \.(\w+)", entry)


def test_compile_variants_gives_a_launch_that_is_what_the_ptx_says(compiled):
    for one in compiled.values():
        launch, ptx = one.launch, one.ptx
        assert f".visible .entry {launch.kernel}(" in ptx
        assert launch.kernel == launch.variant.name
        assert parameters(ptx) == ["u32" if argument.kind == "size" else "u64" for argument in launch.arguments]
        assert f".version {launch.ptx_version / 10:.1f}\n" in ptx
        assert launch.ptx_version == PTX_VERSIONS[launch.sm]
        assert f".target sm_{launch.sm}{'a' if launch.exact else ''}\n" in ptx
        assert f".reqntid {launch.threads}\n" in ptx
        assert launch.threads == 32 * one.facts.tile.warps
        assert launch.grid.divisor == one.facts.tile.queries


def test_compile_variants_passes_inputs_then_numbers_then_outputs(compiled):
    kinds = [one.kind for one in compiled["gated"].launch.arguments]
    order = ["input", "size", "output"]
    assert kinds == sorted(kinds, key=order.index)
    assert [kinds.count(one) for one in ("input", "output")] == [3, 2]  # qkv, positions, gate; the output and log-sum-exp


def test_compile_variants_passes_no_number_that_is_always_the_same(compiled):
    for one in compiled.values():
        assert all(argument.size.dims for argument in one.launch.arguments if argument.kind == "size")


def test_compile_variants_writes_nothing_of_this_machine_into_the_ptx(compiled):
    for one in compiled.values():
        assert not re.search(r"\.loc|\.file|\.py|/(?:tmp|home|work|usr)/", one.ptx)


def test_compile_variants_says_which_code_runs_on_one_generation_alone(compiled):
    assert {name: one.launch.exact for name, one in compiled.items()} == {
        "80": False,
        "90": True,
        "120": False,
        "gated": False,
    }
    assert "wgmma" in compiled["90"].ptx


def test_compile_variants_reports_what_the_code_takes(compiled):
    for one in compiled.values():
        facts = one.facts
        assert 0 < facts.registers <= 255
        assert facts.spilled_bytes == 0
        assert one.launch.shared_bytes <= facts.shared_bytes <= SHARED_BYTES
        assert facts.instructions > facts.tensor_core_instructions > 0
        assert facts.cubin_bytes == len(one.cubin)
        assert one.cubin.startswith(b"\x7fELF")
        assert one.launch.kernel.encode() in one.cubin
        assert facts.compile_seconds > 0
        assert facts.triton
        assert re.fullmatch(r"\d+\.\d+\.\d+", facts.ptxas)


def test_compile_variant_is_read_the_second_time(compiled, monkeypatch):
    monkeypatch.setattr(ahead, "_run_worker", None)
    assert compile_variant(PLAIN, 80) == compiled["80"]


def test_compile_variant_compiles_a_damaged_entry_again_to_the_same_bytes(compiled, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which must not reach the compiler
    folder = kept.folder_of(PLAIN, 80, tiles_for(PLAIN, 80))
    path = folder / "kernel.ptx"
    whole = {one.name: one.read_bytes() for one in folder.iterdir()}
    path.write_bytes(whole["kernel.ptx"][:1000])
    again = compile_variant(PLAIN, 80)
    assert (again.launch, again.ptx, again.cubin) == (compiled["80"].launch, compiled["80"].ptx, compiled["80"].cubin)
    assert path.read_bytes() == whole["kernel.ptx"]
    assert (folder / "launch.json").read_bytes() == whole["launch.json"]


def test_launch_of_a_compiled_variant_survives_its_file(compiled):
    for one in compiled.values():
        assert launch_from_json(one.launch.to_json()) == one.launch


@pytest.mark.parametrize("name", ["launch.json", "kernel.ptx", "kernel.cubin", "facts.json"])
def test_read_of_a_damaged_file_finds_nothing(compiled, tmp_path, name):
    folder = tmp_path / "entry"
    kept.write(folder, compiled["80"])
    assert kept.read(folder) == compiled["80"]
    (folder / name).write_bytes((folder / name).read_bytes()[:-10])
    assert kept.read(folder) is None
    (folder / name).unlink()
    assert kept.read(folder) is None


def test_read_of_an_entry_of_other_facts_finds_nothing(compiled, tmp_path):
    folder = tmp_path / "entry"
    kept.write(folder, compiled["80"])
    record = json.loads((folder / "facts.json").read_text())
    (folder / "facts.json").write_text(json.dumps(record | {"wavefronts": 3}))
    assert kept.read(folder) is None


def test_write_of_many_at_once_leaves_one_whole_entry(compiled, tmp_path):
    folder = tmp_path / "kernels" / "entry"
    threads = [threading.Thread(target=kept.write, args=(folder, compiled["80"])) for _ in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert kept.read(folder) == compiled["80"]
    assert os.listdir(folder.parent) == ["entry"]


def test_write_where_nothing_can_be_written_says_what_to_set(compiled, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KernelError, match=r"compile: .*file can't be written \(.*\), .* set XDG_CACHE_HOME"):
        kept.write(tmp_path / "file" / "entry", compiled["80"])


def test_write_where_something_is_in_the_way_says_what_to_set(compiled, tmp_path):
    folder = tmp_path / "entry"
    folder.write_text("no folder")
    with pytest.raises(KernelError, match=r"entry can't be written \(.*\), .* make room, or set XDG_CACHE_HOME"):
        kept.write(folder, compiled["80"])
    assert [one.name for one in tmp_path.iterdir()] == ["entry"]


def test_folder_of_differs_by_variant_target_and_tiles():
    tiles = tiles_for(PLAIN, 80)
    made_from = [(PLAIN, 80, tiles), (PLAIN, 86, tiles), (PLAIN, 80, (SMALL,)), (replace(PLAIN, scale=0.5), 80, tiles)]
    assert len({kept.folder_of(*one) for one in made_from}) == 4
    assert kept.folder_of(*made_from[0]) == kept.folder_of(*made_from[0])


def test_sources_of_a_kernel_are_its_own_file_and_what_compiles_it():
    names = {one.stem for one in kept.sources_of(Kernel.ATTENTION)}
    assert {"attention", "records", "tensors", "tiles", "ptx", "compile_worker", "ahead", "launching", "assembly"} <= names
    assert not names & {"gaussian", "linear", "cuda_launcher"}


def test_folder_of_follows_a_changed_source(tmp_path, monkeypatch):
    before = kept.folder_of(PLAIN, 80, (SMALL,))
    package = tmp_path / "package"
    shutil.copytree(kept._HERE, package)
    monkeypatch.setattr(kept, "_HERE", package)
    assert kept.folder_of(PLAIN, 80, (SMALL,)) == before
    with (package / "attention.py").open("a") as file:
        file.write("# changed\n")
    assert kept.folder_of(PLAIN, 80, (SMALL,)) != before


def test_compile_variant_refuses_too_much_shared_memory():
    with pytest.raises(
        KernelError, match=r"needs more shared memory than the 49152 bytes .*: \d{5,6} with tiles of 128 by 128;"
    ):
        compile_variant(replace(PLAIN, head_size=128), 80, Tile(128, 128, 8, 2))


def test_compile_variants_names_the_request_on_which_the_compiler_ended(compiled):
    wrong = replace(PLAIN, scale=0.25)
    with pytest.raises(KernelError, match=rf"the compiler ended on {wrong.name} for compute capability 8.6: .*exit 1"):
        compile_variants([Request(PLAIN, 80), Request(wrong, 86, Tile(48, 32, 4, 1))])


@pytest.mark.parametrize(
    ("shared", "spilled", "chosen"),
    [
        ((40000, 20000, 10000), (0, 0, 0), 0),
        ((60000, 20000, 10000), (0, 0, 0), 1),
        ((40000, 20000, 10000), (96, 8, 0), 2),
        ((60000, 20000, 10000), (0, 8, 96), 1),  # all that fit spill
    ],
)
def test_best_of_tiles_is_the_first_that_fits_and_spills_least(compiled, monkeypatch, shared, spilled, chosen):
    tiles = [Tile(64, 64, 4, 1), Tile(32, 32, 4, 1), Tile(16, 16, 4, 1)]
    sources = {tile: SimpleNamespace(metadata=SimpleNamespace(shared=size)) for tile, size in zip(tiles, shared, strict=True)}
    facts = {
        tile: replace(compiled["80"].facts, tile=tile, spilled_bytes=size) for tile, size in zip(tiles, spilled, strict=True)
    }
    monkeypatch.setattr(compile_worker, "_translated", lambda variant, sm, tile: (sources[tile], 1.0))
    monkeypatch.setattr(
        compile_worker, "_finished", lambda variant, tile, source, seconds: replace(compiled["80"], facts=facts[tile])
    )
    assert compile_worker._best_of(PLAIN, 80, tiles).facts.tile == tiles[chosen]


@pytest.mark.parametrize("sm", [88, 101, 70])
def test_compile_variant_refuses_a_target_that_would_end_the_compiler(sm):
    with pytest.raises(KernelError, match=rf"compute capability {sm / 10:.1f} can't be compiled for; choose from 7.5, 8.0"):
        compile_variant(PLAIN, sm)


def test_compile_variant_refuses_bf16_where_there_is_none():
    with pytest.raises(KernelError, match=r"bf16 needs compute capability 8.0, and this is 7.5"):
        compile_variant(replace(PLAIN, dtype=Dtype.BF16), 75)


def test_compile_variant_without_triton_says_what_to_install(monkeypatch):
    monkeypatch.setattr(assembly, "find_spec", lambda name: None)
    assembly.tool_versions.cache_clear()
    with pytest.raises(KernelError, match=r"Triton isn't installed, .* pip install triton"):
        compile_variant(PLAIN, 80)


def test_compile_variant_without_the_assembler_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(assembly, "_tools", lambda: tmp_path)
    assembly.tool_versions.cache_clear()
    with pytest.raises(KernelError, match="ptxas isn't there; install triton from the package index"):
        compile_variant(PLAIN, 80)


def test_assemble_of_what_the_assembler_refuses_says_its_complaint(compiled):
    broken = compiled["80"].ptx.replace("ret;", "rot;")
    with pytest.raises(KernelError, match=r"the assembler refuses the code for sm_80: .*line \d+"):
        assembly.assemble(broken)


def test_assemble_keeps_the_target_of_code_that_no_other_generation_has(compiled):
    assert target_of(assembly.assemble(compiled["90"].ptx).ptx).name == "sm_90a"
    common = compiled["120"].ptx.replace(".target sm_120\n", ".target sm_120a\n")
    assert target_of(assembly.assemble(common).ptx).name == "sm_120"


RAW = """.version 8.0
.target sm_80
.visible .entry some_kernel(
	.param .u64 some_kernel_param_0,
	.param .u32 some_kernel_param_1,
	.param .u64 some_kernel_param_2,
	.param .u64 some_kernel_param_3
)
.reqntid 128
{
	ld.param.b32 %r1, [some_kernel_param_1];
	// some_kernel_other
	ret;
}
"""


def test_own_ptx_renames_the_kernel_and_drops_the_scratch_pointers():
    found = own_ptx(RAW, "mine", 2)
    assert parameters(found) == ["u64", "u32"]
    assert "[mine_param_1]" in found
    assert re.findall(r"some_kernel\w*", found) == ["some_kernel_other"]


@pytest.mark.parametrize(
    ("ptx", "count", "complaint"),
    [
        ("ret;", 2, "0 kernels found, and one is expected"),
        (RAW, 3, "some_kernel has 4 parameters, and 3 and 2 for scratch memory are expected"),
        (RAW.replace("[some_kernel_param_1]", "[some_kernel_param_2]"), 2, r"reads scratch memory \(parameter 2\)"),
    ],
)
def test_own_ptx_refuses_what_it_does_not_know(ptx, count, complaint):
    with pytest.raises(KernelError, match=complaint):
        own_ptx(ptx, "mine", count)


def test_target_and_threads_of_other_text_are_refused():
    with pytest.raises(KernelError, match="no line with a target"):
        target_of("ret;")
    with pytest.raises(KernelError, match="how many threads"):
        threads_of("ret;")


def test_pick_targets_of_a_gpu_is_its_own():
    assert [pick_targets(sm) for sm in TARGETS] == [(sm,) for sm in TARGETS]
    with pytest.raises(KernelError, match=r"compute capability 8.8 can't be compiled for"):
        pick_targets(88)


def test_pick_targets_of_a_portable_engine_serve_every_gpu_since_80(compiled):
    launch = compiled["80"].launch
    # as compiled above: that of 8.0 runs later too, the others' alone where they were compiled for
    launches = [replace(launch, sm=sm, exact=sm != 80) for sm in pick_targets(None)]
    chosen = {sm: launches[choose_launch(launches, sm)].sm for sm in (80, 86, 87, 89, 90, 100, 103, 110, 120, 121)}
    assert chosen == {80: 80, 86: 80, 87: 80, 89: 80, 90: 90, 100: 100, 103: 80, 110: 80, 120: 80, 121: 80}


def test_choose_launch_refuses_a_gpu_that_none_was_compiled_for(compiled):
    launches = [compiled["90"].launch, compiled["120"].launch]
    assert choose_launch(launches, 90) == 0
    assert choose_launch(launches, 121) == 1
    with pytest.raises(
        KernelError, match=r"has compute capability 8.6, .* compiled for 9.0 alone, 12.0 and later; compile it for 8.6"
    ):
        choose_launch(launches, 86)
