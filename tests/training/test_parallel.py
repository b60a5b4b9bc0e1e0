"""Several processes train one network: the same batches, gradients, statistics and files as one."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from memtool import MemtoolError
from memtool.device import Processes
from memtool.training import TrainConfig
from memtool.training.parallel import SynchronizedBatchNorm, check_shares, shared, synchronized

from .examples import small_model, small_task

WORKER = """
from memtool.cli import app
app({command!r}, prog_name="memtool")
"""
NET = '''
from torch import distributed, nn
class Auxiliary(nn.Module):
    """With a head that no loss depends on."""
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.auxiliary = nn.Conv2d(3, 8, 3), nn.Linear(288, num_classes)
        self.fc = nn.Linear(288, num_classes)
    def forward(self, images):
        features = self.conv(images).relu().flatten(1)
        return {"logits": self.fc(features), "auxiliary": self.auxiliary(features)}
def plain(num_classes=4):
    return Auxiliary(num_classes)
def normed(num_classes=4):
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Flatten(), nn.Linear(288, 16, bias=False), nn.BatchNorm1d(16),
                         nn.ReLU(), nn.Linear(16, num_classes))
'''


def torchrun(program, cwd):
    """Run a Python program in two processes; the completed torchrun."""
    script = cwd / "worker.py"
    script.write_text(program)
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *run], cwd=cwd, env=environment, capture_output=True, timeout=300
    )


@pytest.mark.slow
@pytest.mark.parametrize("model, more", [("plain", []), ("normed", ["--sync-batch-norm"])])
def test_two_processes_train_the_network_of_one(run, folder, tmp_path, model, more):
    (tmp_path / "net.py").write_text(NET)

    def train(name):
        return [
            *("train", "--model", f"{tmp_path}/net.py:{model}", "--data", f"folder:{folder}"),
            *("--epochs", "3", "--batch-size", "24", "--table", f"{tmp_path}/{name}.csv"),
            *("--save-at", "1", "--augment", "crop-flip", "-o", f"{tmp_path}/{name}.safetensors"),
            *more,
        ]

    assert run(*train("one")).code == 0
    done = torchrun(WORKER.format(command=train("two")), tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().count("checkpoint,") == 1  # rank 0 alone prints
    assert b"find_unused" not in done.stderr
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-5, atol=1e-5, msg=name)
    names = {path.name for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".tmp")}
    assert names == {"one.safetensors", "two.safetensors", "epoch-0001.safetensors"}


FAILING = """
import os, signal, sys
import torch
from memtool.cli import app
from memtool.training import run
if {killed}:
    evaluate = run.evaluate
    def dying(*arguments):
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return evaluate(*arguments)
    run.evaluate = dying
app({command!r}, prog_name="memtool")
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_failure_is_told_once_and_ends_all(folder, tmp_path, killed):
    command = ["train", "--model", "digits-cnn", "--data", f"folder:{folder}", "--epochs", "5"]
    batch = "24" if killed else "3"
    script = FAILING.format(
        killed=killed, command=[*command, "--batch-size", batch, "-o", f"{tmp_path}/r.safetensors"]
    )
    done = torchrun(script, tmp_path)
    assert done.returncode == 1
    told = [line for line in done.stderr.decode().splitlines() if "memtool: error: " in line]
    if killed:  # torchrun may end the other process before it says that it has lost this one
        assert all("another process of this torchrun has ended" in line for line in told)
        assert "exitcode: -9" in done.stderr.decode() and len(told) <= 1
    else:
        assert ["too small for 2 processes" in line for line in told] == [True]
    assert not (tmp_path / "r.safetensors").exists()


@pytest.mark.parametrize("command", ["plot", "info", "convert", "make-noisy", "reproduce"])
def test_commands_that_cannot_share_their_work_refuse(run, monkeypatch, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = {
        "plot": ["x.csv", "-o", "f.png"],
        "info": ["x"],
        "convert": ["x", "-o", "y.safetensors"],
    }
    more = {"make-noisy": ["digits", "-r", "0", "-o", "x.safetensors"]}
    result = run(command, *{**arguments, **more}.get(command, ["digits", "-o", "x"]))
    assert result.code == 1 and result.stdout == ""
    assert f"memtool {command} works in one process; run it without torchrun" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_usage_error_is_told_by_one_process(run, monkeypatch):
    for rank, told in (("0", True), ("1", False)):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        for arguments in (("--epochs", "x"), ()):
            result = run("train", "--model", "digits-cnn", "-o", "x.safetensors", *arguments)
            assert result.code == 2 and bool(result.stderr) is told


@pytest.mark.parametrize("processes, batch_size, fits", [(2, 4, True), (2, 3, False), (1, 3, True)])
def test_each_process_needs_two_examples_of_every_batch(processes, batch_size, fits):
    config = TrainConfig(batch_size=batch_size)
    if fits:
        check_shares(config, 40, Processes(0, processes))
    else:
        with pytest.raises(MemtoolError, match="a batch of 3 .* 2 processes; choose another"):
            check_shares(config, 39, Processes(0, processes))


def test_the_last_batch_counts_too():
    with pytest.raises(MemtoolError, match="a batch of 2 of the 42 training images"):
        check_shares(TrainConfig(batch_size=8), 42, Processes(0, 2))


def test_a_buffer_that_no_process_can_receive_is_named():
    model, task = small_model(), small_task()
    model[0].register_buffer("scale", torch.ones(1, 3).expand(4, 3), persistent=False)
    with pytest.raises(MemtoolError, match=r"buffer '0\.scale' .* register buffer\.contiguous\(\)"):
        shared(model, task, Processes(0, 2))
    assert shared(model, task, Processes(0, 1)) is model


def test_a_buffer_with_one_element_in_each_place_is_received(alone):
    model, task = small_model(), small_task()
    model[0].register_buffer("scale", torch.ones(3, 1, 4).expand(3, 1, 4).transpose(0, 2))
    assert isinstance(shared(model, task, Processes(0, 2)), DistributedDataParallel)


@pytest.fixture
def alone():
    """A group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.BatchNorm1d(5), (12, 5)),
        (nn.BatchNorm1d(5, momentum=None), (6, 5, 3)),
        (nn.BatchNorm2d(5, eps=0.1, momentum=0.3), (4, 5, 3, 2)),
        (nn.BatchNorm2d(5, affine=False), (4, 5, 3, 2)),
        (nn.BatchNorm3d(5, track_running_stats=False), (2, 5, 3, 2, 2)),
    ],
)
def test_of_one_process_it_is_pytorchs_batch_norm(alone, layer, shape):
    from copy import deepcopy

    theirs, ours = deepcopy(layer), synchronized(deepcopy(layer))
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    for mode in (True, True, False):
        x = (torch.randn(shape) * 2 + 1).requires_grad_()
        twin = x.detach().clone().requires_grad_()
        expected, found = theirs.train(mode)(x), ours.train(mode)(twin)
        gradient = torch.randn(shape)
        expected.backward(gradient)
        found.backward(gradient)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(twin.grad, x.grad)
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, msg=name)
        for (name, p), q in zip(theirs.named_parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, msg=name)


def test_a_layer_under_several_names_stays_one(alone):
    norm = nn.BatchNorm1d(3)
    inner = nn.Sequential(norm)
    model = synchronized(nn.ModuleDict({"a": norm, "b": norm, "c": inner, "d": inner}))
    assert type(model["a"]) is SynchronizedBatchNorm
    assert model["a"] is model["b"] is model["c"][0] and model["c"] is model["d"]


def test_names_and_parameters_stay_the_same(alone):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    parameters = dict(model.named_parameters())
    converted = dict(synchronized(model).named_parameters())
    assert parameters.keys() == converted.keys()
    assert all(parameters[name] is converted[name] for name in parameters)
