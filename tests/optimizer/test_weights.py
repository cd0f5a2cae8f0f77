import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from shallowvit import ShallowvitError
from shallowvit.models.weights import align_safetensors, check_finite, hash_state, load_state, read_state_dict

from .small_models import Block, redraw

SUFFIXES = [".safetensors", ".pt", ".pth"]


class _Evil:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def _write(state, path):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_read_state_dict_whole_file_gives_the_tensors(tmp_path, suffix):
    state = Block().state_dict()
    found = read_state_dict(_write(state, tmp_path / f"w{suffix}"))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module", "model_state_dict", "model_ema"])
def test_read_state_dict_wrapped_is_unwrapped(tmp_path, wrapper):
    state = Block().state_dict()
    found = read_state_dict(_write({wrapper: state, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "w.pt"))
    assert found.keys() == state.keys()


def test_read_state_dict_distributed_prefix_is_dropped(tmp_path):
    state = Block().state_dict()
    found = read_state_dict(_write({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.pt"))
    assert found.keys() == state.keys()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_read_state_dict_missing_file_raises(tmp_path, suffix):
    with pytest.raises(ShallowvitError, match=f"no file .*w{suffix}"):
        read_state_dict(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_read_state_dict_empty_file_raises(tmp_path, suffix):
    (tmp_path / f"w{suffix}").touch()
    with pytest.raises(ShallowvitError, match=r"is empty \(0 bytes\)"):
        read_state_dict(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_read_state_dict_truncated_file_raises(tmp_path, suffix, share):
    path = _write(Block().state_dict(), tmp_path / f"w{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ShallowvitError, match=r"w\.\w+ .*again"):
        read_state_dict(path)


@pytest.mark.parametrize("how", ["pickle", "torch", "beside tensors"])
def test_read_state_dict_pickle_with_code_raises_and_runs_nothing(tmp_path, how):
    marker, path = tmp_path / "ran", tmp_path / "w.pt"
    if how == "pickle":
        path.write_bytes(pickle.dumps(_Evil(marker)))
    else:
        torch.save({"model": Block().state_dict(), "args": _Evil(marker)} if how != "torch" else _Evil(marker), path)
    with pytest.raises(ShallowvitError, match="holds Python objects or code"):
        read_state_dict(path)
    assert not marker.exists()


def test_evil_pickle_would_run_if_loaded(tmp_path):
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(_Evil(marker)))
    assert marker.is_dir()  # so the test above tests something


def test_read_state_dict_list_raises(tmp_path):
    with pytest.raises(ShallowvitError, match="holds a list, expected a dict of tensors"):
        read_state_dict(_write([torch.ones(2)], tmp_path / "w.pt"))


def test_read_state_dict_no_tensors_raises_with_keys(tmp_path):
    with pytest.raises(ShallowvitError, match="holds no tensors; its keys: epoch, lr"):
        read_state_dict(_write({"epoch": 1, "lr": 0.1}, tmp_path / "w.pt"))


def test_load_state_fitting_weights_are_taken():
    module, state = Block(), redraw(Block(), 3).state_dict()
    load_state(module, state, "w.pt")
    assert hash_state(module) == hash_state(redraw(Block(), 3))


def test_load_state_missing_weight_raises_and_names_it():
    state = {name: value for name, value in Block().state_dict().items() if name != "fc1.bias"}
    with pytest.raises(ShallowvitError, match=r"1 missing, 0 without a place; the first: fc1\.bias is missing\. Check --arch"):
        load_state(Block(), state, "w.pt")


def test_load_state_unexpected_weight_raises_and_names_it():
    with pytest.raises(ShallowvitError, match=r"0 missing, 1 without a place; the first: fc3\.bias has no place"):
        load_state(Block(), Block().state_dict() | {"fc3.bias": torch.ones(2)}, "w.pt")


def test_load_state_misshapen_weight_raises_and_names_both_shapes():
    with pytest.raises(ShallowvitError, match=r"fc1\.weight in w\.pt has shape \(16, 7\), but Block has \(16, 8\)"):
        load_state(Block(), Block().state_dict() | {"fc1.weight": torch.ones(16, 7)}, "w.pt")


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "Inf"), (float("-inf"), "Inf")])
def test_check_finite_bad_weight_raises_and_names_the_parameter(value, kind):
    module = Block()
    with torch.no_grad():
        module.fc2.weight[3, 2] = value
    with pytest.raises(ShallowvitError, match=rf"w\.pt: fc2\.weight holds 1 of 128 weights.*first kind: {kind}"):
        check_finite(module, "w.pt")


def test_check_finite_whole_numbers_pass():
    module = nn.BatchNorm1d(4)  # counts batches in an int64
    check_finite(module, "w.pt")
    assert module.num_batches_tracked.dtype == torch.int64


def test_hash_state_one_changed_weight_changes_it():
    module = redraw(Block(), 0)
    before = hash_state(module)
    with torch.no_grad():
        module.norm.bias[0] += 1e-6
    assert hash_state(module) != before
    assert hash_state(redraw(Block(), 0)) == before


def test_align_safetensors_aligns_the_matrices_and_changes_nothing_else(tmp_path):
    path = tmp_path / "model.safetensors"
    state = {"a.bias": torch.randn(40), "a.weight": torch.randn(40, 64), "b.weight": torch.randn(64, 64)}
    save_file(state, path, metadata={"format": "pt"})
    align_safetensors(path)
    again = load_file(path)
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    raw = path.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:begin])
    assert [(begin + header[name]["data_offsets"][0]) % 64 for name in ("a.weight", "b.weight")] == [0, 0]
    assert header["__metadata__"] == {"format": "pt"}
    before = raw
    align_safetensors(path)
    assert path.read_bytes() == before
