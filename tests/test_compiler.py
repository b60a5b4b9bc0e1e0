"""PyTorch's compiler is imported once something compiles, and works then as ever."""

import os
import subprocess
import sys

import pytest

BEFORE = """
import sys
from memtool import compiler
from memtool.cli import main

compiled = "torch._dynamo.eval_frame"
"""

COMMANDS = """
for command in (
    "train --model digits-cnn --data digits?samples_train=64 --epochs 1 -o a.safetensors",
    "train --model torchvision:resnet18 --data digits?samples_train=32&channels=3&image_size=32 "
    "--epochs 1 -o tv.safetensors --optimizer sgd",
    "info --layers tv.safetensors",
    "cka tv.safetensors tv.safetensors --samples 32 --layers layer?",
    "stitch a.safetensors a.safetensors --at block3 --epochs 1",
):
    try:
        main([*command.split(), "-q"])
    except SystemExit as done:
        assert not done.code, command
assert not compiler.is_there() and compiled not in sys.modules
"""

COMPILED = """
import torch
assert torch.compile(lambda x: x + 1, backend="eager")(torch.zeros(2)).tolist() == [1, 1]
assert compiler.is_there() and compiled in sys.modules
assert sys.modules["torch._dynamo"] is torch._dynamo
assert sys.modules["torch._dynamo.utils"] is torch._dynamo.utils
"""

NOTHING_ASKED = """
import inspect, torch
assert not any(hasattr(module, "__file__") for name, module in sys.modules.items()
               if name.startswith("torch._dynamo"))
inspect.getmodule(torch.nn.Module)
torch.optim.SGD([torch.zeros(1, requires_grad=True)]).step()
import torchvision.ops
assert not compiler.is_there() and compiled not in sys.modules
boxes = torch.tensor([[0, 0, 2, 2.]])
assert torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), [boxes], 2).tolist() == [[[[1, 1]] * 2]]
"""

OWN_CODE = """
import torch
def left_alone(x):
    return x
assert hasattr(torch._dynamo.disable(left_alone), "_torchdynamo_disable")
assert compiler.is_there() and compiled in sys.modules
"""

BY_PARTS = """
from torch._dynamo.utils import counters
import torch._dynamo.config
import torch
assert counters is torch._dynamo.utils.counters
"""

OPTIMIZER = """
import torch
weight = torch.ones(1, requires_grad=True)
optimizer = torch.optim.SGD([weight], lr=0.5)
optimizer.zero_grad()
optimizer.step()
assert not compiler.is_there()
@torch.compile(backend="eager")
def step():
    optimizer.zero_grad()
    (weight * weight).sum().backward()
    optimizer.step()
    return weight.detach().clone()
assert step().tolist() == [0] and compiler.is_there()
"""


def run(code, folder, before=BEFORE):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", before + code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr


def test_commands_import_it_no_more_than_they_compile(tmp_path):
    run(COMMANDS + COMPILED, tmp_path)


@pytest.mark.parametrize("code", [NOTHING_ASKED + COMPILED, OWN_CODE, BY_PARTS, OPTIMIZER])
def test_it_is_there_for_whoever_asks(code, tmp_path):
    run(code, tmp_path)


def test_one_that_is_there_stays(tmp_path):
    imported = "import torch._dynamo\nit, utils = torch._dynamo, torch._dynamo.utils\n"
    code = """
assert compiler.is_there()
assert sys.modules["torch._dynamo"] is torch._dynamo is it
assert sys.modules["torch._dynamo.utils"] is it.utils is utils
"""
    run(imported + BEFORE + code, tmp_path, before="")
