import copy
import json

import pytest
from torch import nn

from shallowvit import inspect_model, load

from .small_models import Adds, Block, Stacked, loaded
from .test_removal import PostNorm, Refuses
from .test_saved import TIMM_SWIN


def _blocks(count=4, kind=Block):
    return nn.ModuleList(kind() for _ in range(count))


def test_inspect_model_says_what_would_become_of_each_block():
    found = inspect_model(loaded(Adds(_blocks(3)), seed=0))
    assert [outlook.way for outlook in found.blocks] == ["placeholder"] * 3
    assert all("differ by" in outlook.reason for outlook in found.blocks)
    refused = inspect_model(loaded(Refuses(_blocks(4)), seed=0)).blocks
    assert {outlook.way for outlook in refused} == {"refused"}
    assert "isn't the model that skips them" in refused[0].reason
    deleted = inspect_model(loaded(Stacked(_blocks(3)), seed=0)).blocks
    assert [(outlook.way, outlook.reason) for outlook in deleted] == [("deleted", "")] * 3


def test_inspect_model_names_inputs_and_outputs(video_model):
    found = inspect_model(video_model)
    assert [outlook.way for outlook in found.blocks] == ["deleted"] * 4
    assert [(one.name, one.dtype, one.shape) for one in found.inputs] == [("pixel_values", "float32", (1, 4, 3, 16, 16))]
    assert [(one.name, one.shape) for one in found.outputs] == [("logits", (1, 5))]
    assert not found.notes
    halves = [outlook.halves for outlook in found.blocks]
    assert halves == [halves[0]] * 4
    assert halves[0]["attention"] + halves[0]["mlp"] == found.blocks[0].block.parameters


def test_inspect_model_says_why_a_half_can_not_go_alone():
    (outlook, *_) = inspect_model(loaded(Stacked(_blocks(3)), seed=0)).blocks
    assert isinstance(outlook.halves["attention"], str)


def test_inspect_model_without_removal_tries_nothing():
    seen = []
    found = inspect_model(loaded(Stacked(_blocks(3)), seed=0), removal=False, on_block=seen.append)
    assert [outlook.way for outlook in found.blocks] == [None] * 3
    assert seen == [0, 1, 2]


def test_inspect_model_windows_are_paired():
    found = inspect_model(load(TIMM_SWIN))
    assert [outlook.pair for outlook in found.blocks] == [(0, 1), (0, 1), (2, 3), (2, 3)]
    assert [(outlook.way, outlook.pair_way) for outlook in found.blocks] == [("deleted", "deleted")] * 4
    assert any("2 pairs of windows and shifted windows" in note for note in found.notes)


def test_inspect_model_post_norm_blocks_are_noted():
    (note,) = inspect_model(loaded(Stacked(_blocks(3, PostNorm)), seed=0), removal=False).notes
    assert note.startswith("3 blocks normalise their sum (post-norm, the first is blocks.0)")
    assert not inspect_model(loaded(Stacked(_blocks(3)), seed=0), removal=False).notes


class Copies(Stacked):
    """Its heads run copies of the last block."""

    def __init__(self):
        super().__init__(_blocks(3))
        self.part = nn.Sequential(copy.deepcopy(self.blocks[2]), nn.LayerNorm(8))

    def forward(self, x):
        for block in self.blocks[:-1]:
            x = block(x)
        return self.head(self.blocks[-1](x) + self.part(x))


def test_inspect_model_copies_of_a_block_outside_its_list_are_noted():
    (note,) = inspect_model(loaded(Copies(), seed=0), removal=False).notes
    assert note.startswith("part.0 is of the blocks' class but outside their list")


@pytest.fixture
def source(tmp_path):
    (tmp_path / "made.py").write_text(
        "import torch\n"
        "from tests.optimizer.small_models import Adds, Block, redraw\n"
        "def build():\n"
        "    return redraw(Adds(torch.nn.ModuleList(Block() for _ in range(3))), 0), torch.ones(1, 5, 8)\n"
    )
    return f"{tmp_path / 'made.py'}:build"


def test_inspect_command_prints_stacks_and_outlooks(source, capsys):
    from shallowvit.cli.inspect import inspect

    inspect(source, quiet=True)
    out = capsys.readouterr().out
    assert "input x: float32 [1, 5, 8]" in out
    assert "blocks │ Block" in out
    assert out.count("placeholder") == 3


def test_inspect_command_json_is_one_object(source, capsys):
    from shallowvit.cli.inspect import inspect

    inspect(source, json=True, quiet=True)
    record = json.loads(capsys.readouterr().out)
    assert [block["way"] for block in record["blocks"]] == ["placeholder"] * 3
    assert record["stacks"][0]["list_path"] == "blocks"
    assert record["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 5, 8]}]
    assert record["flops"] == load(source).flops
