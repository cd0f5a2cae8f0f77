"""Models of our own in the styles of the papers' code: each is pruned, and held against a bypass written by hand here."""

import copy
import importlib

import pytest
import torch

from families.cases import open_case
from families.papers.table import PAPERS
from shallowvit import ShallowvitError
from shallowvit.models.outputs import tensors_in
from shallowvit.pruning import PlanConfig, plan, prune

CASES = {case.name: case for case in PAPERS}
REFUSED = [name for name, case in CASES.items() if case.expect.way == "refused"]
DONE = [name for name in CASES if name not in REFUSED]
BUILDERS = {case.source: case.name for case in PAPERS}  # one case a model
# another item, whatever the other inputs are: numbers of words, cameras and masks stay
KEPT_INPUTS = ("input_ids", "cam_label", "mask")


def first(x, *args, **kwargs):
    return x


def both(x, y, *args):
    return x, y


def without_attention(x):
    return x, None


# what a skipped block does in the code that calls it, where that isn't to return its first argument
STUBS = {"cross-view-decoder": both, "tuples": without_attention}


def build(case):
    where, _, function = case.source.partition(":")
    return getattr(importlib.import_module(where), function)()


def random_inputs(example, seed):
    """Another input of the same kind."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value if name in KEPT_INPUTS else torch.randn(value.shape, generator=generator).abs() * 2 * value.sign()
        for name, value in example.items()
    }


def answers(module, inputs):
    """The outputs, with the same random numbers each time."""
    torch.manual_seed(0)
    with torch.no_grad():
        return tensors_in(module(**inputs))


def skipped(module, case, model, removed):
    """The module, built anew, in which the removed blocks do nothing; each keeps its place and its hooks."""
    for number in removed:
        block = module.get_submodule(model.blocks[number].path)
        if isinstance(block, torch.nn.ModuleList):  # the residuals stand in the loop
            for part in block:
                part.forward = torch.zeros_like
        else:
            block.forward = STUBS.get(case.name, first)
    return module


def removed_of(case, model):
    """The blocks that the case removes: those it names, else the middle one of the first stack with its pair."""
    if case.remove is not None:
        return tuple(int(number) for number in case.remove.split(","))
    middle = sum(block.stack == model.blocks[0].stack for block in model.blocks) // 2
    return next((pair for pair in model.pairs if middle in pair), (middle,))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Operations this small wait for threads longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Load each model once."""
    loaded = {}

    def get(case):
        key = (case.source, case.blocks)
        if key not in loaded:
            loaded[key] = open_case(case, tmp_path_factory.mktemp("model"))
        return loaded[key]

    return get


@pytest.mark.parametrize("name", BUILDERS.values())
def test_build_two_items_give_what_each_gives_alone(name):
    module, example = build(CASES[name])
    other = random_inputs(example, 3)
    pairs = {key: torch.cat([example[key], other[key]]) for key in example}
    together = answers(module, pairs)
    assert max(float(one.float().std()) for one in together) > 0.02  # flat outputs would agree with anything
    for place, alone in enumerate((example, other)):
        if name == "mae-paper" and place:  # the second item's mask is another when it comes first
            continue
        for one, batched in zip(answers(module, alone), together, strict=True):
            torch.testing.assert_close(batched[place : place + 1], one, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_load_finds_the_stack(name, models):
    case = CASES[name]
    model = models(case)
    stack = model.blocks[0].stack
    assert (stack, sum(block.stack == stack for block in model.blocks)) == (case.expect.stack, case.expect.blocks)


@pytest.mark.parametrize("name", DONE)
def test_prune_gives_the_model_that_skips_the_blocks(name, models):
    case = CASES[name]
    model = models(case)
    removed = removed_of(case, model)
    whole, example = build(case)
    pruned = prune(model, plan(model, None, PlanConfig(remove=",".join(map(str, removed)))))
    reference = skipped(copy.deepcopy(whole), case, model, removed)
    for seed in (11, 12):
        inputs = random_inputs(example, seed)
        expected = answers(reference, inputs)
        for one, wanted in zip(answers(pruned.model.module, inputs), expected, strict=True):
            torch.testing.assert_close(one, wanted, atol=2e-5, rtol=1e-4)
        apart = max(
            float((one - wanted).float().abs().max()) for one, wanted in zip(answers(whole, inputs), expected, strict=True)
        )
        assert apart > 1e-3  # the blocks did something
    assert {one.way for one in pruned.removals} == {case.expect.way}
    lists = {model.blocks[number].path.rpartition(".")[0] for number in removed}
    for path in lists:
        lost = len(whole.get_submodule(path)) - len(pruned.model.module.get_submodule(path))
        assert (lost > 0) == (case.expect.way == "deleted")
    gone = sum(model.blocks[number].parameters for number in removed)
    assert pruned.model.parameters == model.parameters - gone
    if case.expect.reason:
        assert any(case.expect.reason in one.reason for one in pruned.removals)


@pytest.mark.parametrize("name", REFUSED)
def test_prune_refuses_what_has_no_exact_form(name, models):
    case = CASES[name]
    model = models(case)
    wanted = plan(model, None, PlanConfig(remove=",".join(map(str, removed_of(case, model)))))
    with pytest.raises(ShallowvitError, match=case.expect.reason or "Remove other blocks"):
        prune(model, wanted)


def test_load_of_windows_in_turns_pairs_them(models):
    assert models(CASES["swin3d"]).pairs == ((0, 1), (2, 3), (4, 5))
