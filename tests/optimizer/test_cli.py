import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from shallowvit.cli.main import COMMANDS, main

from .test_bundle import NAMES

EXTRAS = ("transformers", "timm", "torchvision", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "matplotlib", "sklearn", "PIL")
HEAVY = (*EXTRAS, "torch", "numpy", "safetensors", "pydantic")
WITHOUT = """
import sys
for name in {blocked}:
    sys.modules[name] = None
sys.argv = ["shallowvit", *sys.argv[1:]]
from shallowvit.cli.main import main
main()
"""


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process; returns the exit code, stdout and stderr."""

    def run_main(*words):
        monkeypatch.setattr(sys, "argv", ["shallowvit", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        written = capsys.readouterr()
        return stopped.value.code or 0, written.out, written.err

    return run_main


def _without(blocked, *words):
    command = [sys.executable, "-c", WITHOUT.format(blocked=blocked), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_names_every_command_with_heavy_packages_blocked():
    done = _without(HEAVY, "--help")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_works_with_the_extras_blocked(command):
    done = _without(EXTRAS, command, "--help")
    assert done.returncode == 0, done.stderr
    assert "--quiet" in done.stdout or "Commands:" in done.stdout  # a group has commands, and they have the options


def test_missing_extra_names_what_to_install(video_folder):
    done = _without(("transformers",), "score", f"hf:{video_folder}", "--criterion", "auto")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("Run: pip install 'shallowvit[transformers]'")
    assert "Traceback" not in done.stderr


def test_console_script_prints_its_version():
    script = shutil.which("shallowvit", path=os.path.dirname(sys.executable))
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    import shallowvit

    assert (done.returncode, done.stdout.strip()) == (0, shallowvit.__version__)


def test_score_json_is_one_object_and_nothing_else(run, video_folder, video_model):
    code, out, err = run("score", f"hf:{video_folder}", "--json", "--prune-ratio", "0.3")
    record = json.loads(out)
    assert (code, err.splitlines()) == (0, [f"warning: {warning}" for warning in record["warnings"]])
    assert [row["block"] for row in record["blocks"]] == [0, 1, 2, 3]
    assert [row["path"] for row in record["blocks"]] == [block.path for block in video_model.blocks]
    assert all(isinstance(row["score"], float) for row in record["blocks"])
    assert (record["criterion"], record["settings"]) == ("entropy", {"mantissa_bits": 7})
    assert record["would_remove"] == record["removal_order"][:1]


def test_score_options_reach_the_criterion(run, video_folder):
    code, out, err = run("score", f"hf:{video_folder}", "--json", "--mantissa-bits", "23")
    assert (code, json.loads(out)["settings"]) == (0, {"mantissa_bits": 23})
    assert err.startswith("warning: entropy with 23 mantissa bits is saturated")
    drawn = [json.loads(run("score", video_folder, "--json", "--criterion", "random", "--seed", seed)[1]) for seed in (1, 2)]
    assert drawn[0]["blocks"] != drawn[1]["blocks"]


def test_score_prints_every_block_by_its_path(run, video_folder, video_model):
    code, out, _ = run("score", video_folder, "--prune-ratio", "0.5")
    assert code == 0
    assert all(block.path in out for block in video_model.blocks)
    assert out.count("removed") == 2


def test_score_compare_puts_criteria_side_by_side(run, video_folder):
    code, out, _ = run("score", video_folder, "--compare", "l1,random,bypass", "--prune-ratio", "0.3")
    assert code == 0
    assert "Spearman with entropy" in out
    assert [name for name in ("depth", "l1", "random") if f"│ {name} " not in out] == []
    assert "left out: bypass: needs labelled data" in out
    record = json.loads(run("score", video_folder, "--json", "--compare", "all")[1])
    assert record["spearman"]["entropy"]["entropy"] == 1
    assert record["spearman"]["entropy"]["depth"] == record["spearman"]["depth"]["entropy"]
    assert {"block-influence", "bypass"} <= set(record["left_out"])


def test_score_saved_scores_decide_what_prune_removes(run, video_folder, tmp_path):
    saved = tmp_path / "scores.json"
    assert run("score", video_folder, "--criterion", "l1", "--save", saved)[0] == 0
    order = json.loads(saved.read_text())["removal_order"]
    code, out, _ = run("prune", video_folder, "--scores", saved, "--prune-ratio", "0.5", "-o", tmp_path / "out", "--json")
    assert (code, json.loads(out)["plan"]["removed"]) == (0, sorted(order[:2]))
    code, _, err = run("score", video_folder, "--save", saved)
    assert (code, "exists; choose another --save" in err) == (1, True)


def test_prune_scores_of_other_weights_are_refused(run, video_folder, tmp_path):
    from ..conftest import save_video_model

    other = save_video_model(tmp_path / "other", seed=1)
    assert run("score", other, "--save", tmp_path / "scores.json")[0] == 0
    words = ("--scores", tmp_path / "scores.json", "--prune-ratio", "0.5", "-o", tmp_path / "out")
    code, out, err = run("prune", video_folder, *words)
    assert (code, out) == (1, "")
    assert "the scores were computed on" in err
    assert not (tmp_path / "out").exists()
    code, _, err = run("prune", other, *words, "--criterion", "l1")
    assert (code, "already says how the blocks were scored; leave out the criterion" in err) == (1, True)


def test_score_block_0_among_the_removed_is_warned_of(run, video_folder):
    assert "warning: block 0 goes" not in run("score", video_folder, "--criterion", "depth", "--prune-ratio", "0.75")[2]
    saved = run("score", video_folder, "--criterion", "random", "--seed", "2", "--prune-ratio", "0.75", "--json")
    assert ("warning: block 0 goes" in saved[2]) == (0 in json.loads(saved[1])["would_remove"])


def test_prune_selection_options_reach_the_plan(run, video_folder, tmp_path):
    words = ("--criterion", "depth", "--prune-ratio", "0.5", "--protect", "last", "--select", "interval")
    code, out, _ = run("prune", video_folder, *words, "-o", tmp_path / "out", "--json")
    assert (code, json.loads(out)["plan"]["removed"]) == (0, [1, 2])


def test_score_plot_is_written_once(run, video_folder, tmp_path):
    for name in ("one.svg", "two.svg"):
        assert run("score", video_folder, "--plot", tmp_path / name)[0] == 0
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    code, _, err = run("score", video_folder, "--plot", tmp_path / "one.svg")
    assert (code, "--force" in err) == (1, True)


@pytest.mark.parametrize(("name", "message"), [("plot.pdf", "write a .svg or a .png"), ("no/plot.svg", "no folder")])
def test_score_plot_that_can_not_be_written_fails(run, video_folder, tmp_path, name, message):
    code, out, err = run("score", video_folder, "--plot", tmp_path / name)
    assert (code, out) == (1, "")
    assert message in err


def test_prune_json_says_where_and_how_to_load(run, video_folder, tmp_path):
    code, out, _ = run("prune", video_folder, "-o", tmp_path / "pruned", "--remove", "1,3", "--json")
    record = json.loads(out)
    assert (code, record["stock"], record["plan"]["removed"]) == (0, True, [1, 3])
    assert record["reload"] == f"transformers.VideoMAEForVideoClassification.from_pretrained('{tmp_path / 'pruned'}')"
    assert json.loads((tmp_path / "pruned/config.json").read_text())["num_hidden_layers"] == 2


def test_prune_blocks_option_chooses_the_list(run, tmp_path):
    import transformers

    from tests.conftest import VIDEO

    transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**VIDEO)).save_pretrained(tmp_path / "model")
    words = ("--blocks", "decoder.decoder_layers", "--keep", "0", "--json")
    code, out, err = run("prune", tmp_path / "model", "--out", tmp_path / "pruned", *words)
    assert code == 0, err
    assert json.loads(out)["plan"]["paths"] == ["decoder.decoder_layers.0", "decoder.decoder_layers.1"]
    config = json.loads((tmp_path / "pruned/config.json").read_text())
    assert (config["num_hidden_layers"], config["decoder_num_hidden_layers"]) == (4, 1)


def test_export_command_in_another_process_writes_the_same_bytes(bundle, video_folder, tmp_path):
    command = [shutil.which("shallowvit", path=os.path.dirname(sys.executable)), "export", f"hf:{video_folder}"]
    words = ["--prune-ratio", "0.5", "-o", tmp_path / "small", "--json"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["manifest"]["plan"]["removed"] == list(bundle.manifest.plan.removed)
    for name in NAMES:
        assert (tmp_path / "small" / name).read_bytes() == (bundle.path / name).read_bytes(), name


def test_export_interrupted_half_way_leaves_no_partial_bundle(video_folder, tmp_path):
    script = shutil.which("shallowvit", path=os.path.dirname(sys.executable))
    command = [script, "export", video_folder, "-o", tmp_path / "out"]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a job in the background of a script inherits an ignored SIGINT, which Python then leaves ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob(".out.*.partial")):  # the work of exporting begins with this folder
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=100)
    assert running.returncode == 130
    assert err.endswith("shallowvit: interrupted; what was finished is kept, and nothing is half-written\n")
    assert list(tmp_path.iterdir()) == []


def test_verify_whole_bundle_exits_with_0(run, bundle):
    code, out, _ = run("verify", bundle.path, "--json")
    assert (code, json.loads(out)) == (0, {"bundle": str(bundle.path), "ok": True, "files": 3})
    assert "all 3 files are whole" in run("verify", bundle.path)[1]


def test_verify_damaged_bundle_exits_with_1_and_one_sentence(run, bundle, tmp_path):
    shutil.copytree(bundle.path, tmp_path / "small")
    (tmp_path / "small/README.md").unlink()
    code, out, err = run("verify", tmp_path / "small", "--json")
    assert (code, out) == (1, "")
    assert err == f"shallowvit: verify: {tmp_path / 'small/README.md'} is missing; copy the bundle again\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["export", "SOURCE", "-o", "OUT", "--engine", "openvino"],
            "unknown engine 'openvino'; choose from none, rtx",
        ),
        (["export", "SOURCE", "-o", "OUT", "--precision", "int7"], "unknown precision 'int7'; choose from fp32, fp16, bf16"),
        (["export", "SOURCE", "-o", "OUT", "--opset", "17"], "opset 17 is not offered; choose from 23, 18"),
        (["export", "SOURCE", "-o", "OUT", "--frame-size", "24x24"], "--frame-size needs --embed-preprocessing"),
        (["export", "SOURCE", "-o", "OUT", "--embed-preprocessing", "--frame-size", "24"], "isn't height x width"),
        (["export", "SOURCE", "-o", "OUT", "--embed-preprocessing", "--frame-size", "0x8"], "isn't height x width"),
        (["export", "SOURCE", "-o", "OUT", "--data", "nowhere.npz"], "no data at nowhere.npz"),
        (["export", "SOURCE", "-o", "OUT", "--remove", "0-3"], "all 4 blocks of videomae.encoder.layer would be removed"),
        (["export", "SOURCE", "-o", "OUT", "--remove", "1", "--keep", "2"], "--remove and --keep exclude each other"),
        (["export", "SOURCE", "-o", "no/such/folder"], "create it first"),
        (["prune", "SOURCE", "-o", "OUT"], "nothing to remove; give --prune-ratio, --remove, --keep, --quota or --keep-tokens"),
        (["prune", "SOURCE", "-o", "OUT", "--prune-ratio", "1.2"], "--prune-ratio 1.2 is out of range"),
        (["prune", "SOURCE", "-o", "OUT", "--prune-ratio", "0.9"], "would remove all 4 blocks"),
        (["prune", "SOURCE", "-o", "OUT", "--remove", "7"], "names block 7, but the model has blocks 0 to 3"),
        (["prune", "SOURCE", "-o", "SOURCE", "--remove", "1"], "exists; choose another --out"),
        (["prune", "SOURCE", "-o", "SOURCE", "--remove", "1", "--force"], "is the source itself, so --force leaves it"),
        (["score", "SOURCE", "--criterion", "size"], "unknown criterion 'size'; choose from entropy, interval-entropy, "),
        (["score", "SOURCE", "--mantissa-bits", "30"], "--mantissa-bits 30 is out of range"),
        (["score", "SOURCE", "--blocks", "nope"], "no blocks under nope in"),
        (["score", "no.safetensors"], "no file no.safetensors"),
        (["score", "nothing"], "'nothing' is no known source"),
        (["verify", "OUT"], "no folder"),
    ],
)
def test_commands_bad_input_exits_with_1_and_one_sentence(run, video_folder, tmp_path, words, message):
    places = {"SOURCE": video_folder, "OUT": tmp_path / "out"}
    code, out, err = run(*(places.get(word, word) for word in words))
    assert (code, out) == (1, "")
    assert message in err
    assert err.startswith("shallowvit: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert (video_folder / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["score"],
        ["prune", "demo"],
        ["export", "demo", "-o", "x", "--pruneratio", "0.5"],
        ["export", "demo", "-o", "x", "--opset", "new"],
        ["nothing"],
    ],
)
def test_commands_wrong_usage_exits_with_2(run, words):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "Usage" in err


def test_export_demo_writes_a_bundle_of_half_the_blocks(run, demo_source, tmp_path):
    code, out, err = run("export", demo_source, "--prune-ratio", "0.5", "-o", tmp_path / "b", "--json")
    assert code == 0, err
    assert len(json.loads(out)["manifest"]["plan"]["kept"]) == 6
    assert run("verify", tmp_path / "b")[0] == 0
