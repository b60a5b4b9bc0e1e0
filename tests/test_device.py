"""Devices and the processes of a torchrun."""

import ctypes
import os
import platform
import subprocess
import sys
from functools import partial
from unittest.mock import Mock

import pytest
import torch

from memtool import MemtoolError
from memtool import device as device_module
from memtool.device import (
    LostProcess,
    Processes,
    choose,
    has_bf16,
    is_first,
    is_loss_of_process,
    machine_memory,
    memory_of,
    processes,
    processors,
)
from memtool.models import foreign_code


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(False, False, "cpu"), (False, True, "mps"), (True, False, "cuda"), (True, True, "cuda")],
)
def test_auto_takes_the_fastest_device_there_is(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose("auto") == torch.device(expected)
    assert choose("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose("auto") == torch.device("cuda:1" if cuda else expected)
    if cuda:
        assert choose("cuda:0") == torch.device("cuda:0")
        assert current == [1, 0]  # graphs and streams are made on the current one


@pytest.mark.parametrize("name", ["gpu", "", "cpu:x", "cpu:", "cpu:-1", "cuda:99"])
def test_a_device_that_is_not_here(name):
    with pytest.raises(MemtoolError, match=f"device {name!r} is not available .*cpu"):
        choose(name)


def test_more_processes_than_devices_are_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "3")
    for name in ("auto", "cuda"):
        with pytest.raises(MemtoolError, match="device 'cuda:3' is not available"):
            choose(name)


def test_what_a_model_raises_is_no_loss_of_a_process():
    assert is_loss_of_process(RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed"))
    assert not is_loss_of_process(KeyError("igloo"))


@pytest.mark.parametrize(
    ("rank", "processes", "name", "is_its_own"),
    [
        *(("0", "2", "cuda:1", False), ("1", "2", "cuda:1", True), ("0", "1", "cuda:1", True)),
        *(("1", "2", "cuda:0", False), ("1", "2", "cuda", True), ("1", "2", "cpu", True)),
    ],
)
def test_no_process_takes_the_gpu_of_another(monkeypatch, rank, processes, name, is_its_own):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    if is_its_own:
        choose(name)
    else:
        with pytest.raises(MemtoolError, match=f"'{name}' is not for .* local rank {rank}; leave"):
            choose(name)


NCCL = "NCCL error in: /pytorch/torch/csrc/NCCLUtils.cpp:77, {}, NCCL version 2.27.5\n{}"
DUPLICATE = NCCL.format(
    "invalid usage (run with NCCL_DEBUG=WARN for details)",
    "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n"
    "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 9b000\n"
    "Exception raised from getNCCLComm (most recent call first):\nframe #0: c10::Error::Error\n",
)
MISMATCHED = NCCL.format(
    "invalid usage", "Last error:\nMismatched NCCL version detected : rank 1 version 22705"
)
TIMEOUT = "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7) ran for 600029 ms"
UNKNOWN = NCCL.format(
    "internal error", "ncclInternalError: Internal check failed.\nLast error: Unknown NCCL Error\n"
)
MEMORY = NCCL.format(
    "unhandled cuda error",
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
    "Cuda failure 2 'out of memory'",
)
GLOO = "[/src/gloo/transport/tcp/unbound_buffer.cc:81] Cannot lock pointer to buffer"
REMOTE = NCCL.format(
    "remote process exited or there was a network error",
    "Last error:\nsocketProgress: Connection closed by remote peer node2<42830>",
)


@pytest.fixture
def of_two(monkeypatch):
    """This process is rank 0 of two, without the other one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    stand_ins = {"init_process_group": None, "destroy_process_group": None}
    for name, value in {**stand_ins, "get_rank": 0, "get_world_size": 2}.items():
        given = lambda *arguments, value=value, **more: value  # noqa: E731
        monkeypatch.setattr(torch.distributed, name, given)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (DUPLICATE, r"have one GPU \(Duplicate GPU detected .* 9b000\); leave --device out"),
        (MISMATCHED, r"different versions of NCCL \(Mismatched .*\); install the same"),
        (TIMEOUT, r"has not answered in time \(Watchdog caught .* ms\)"),
        (
            UNKNOWN,
            r"cannot work together \(ncclInternalError: Internal check failed.\); NCCL_DEBUG",
        ),
        (GLOO, r"cannot work together \(Cannot lock .* buffer\); TORCH_CPP_LOG_LEVEL=INFO"),
        (REMOTE, "has ended or cannot be reached"),
    ],
)
def test_what_is_wrong_between_processes_is_told(of_two, said, told):
    with pytest.raises(MemtoolError, match=told) as caught:
        with processes(torch.device("cpu")), foreign_code("model x"):
            raise torch.distributed.DistBackendError(said)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, LostProcess) == (said is REMOTE)


DEVICE = "[enforce fail at /src/my gloo/tcp/device.cc:84] rv != -1. Unable to resolve: eth7"
MESH = "Gloo connectFullMesh failed with [../gloo/transport/tcp/pair.cc:144] no error"
NOBODY = "The client socket has timed out after 60000ms while trying to connect to (node9, 29500)."


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError(DEVICE),
            r"cannot work together \(rv != -1. Unable to resolve: eth7\); TORCH",
        ),
        (RuntimeError(MESH), r"cannot work together \(Gloo connectFullMesh failed with no error\)"),
        (torch.distributed.DistBackendError(MISMATCHED), r"versions of NCCL \(Mismatched"),
        (torch.distributed.DistNetworkError(NOBODY), r"cannot be found \(.*\); start them all by"),
        (torch.distributed.DistBackendError(REMOTE), "has ended or cannot be reached"),
    ],
)
def test_what_is_wrong_when_processes_meet_is_told_alike(of_two, monkeypatch, error, told):
    monkeypatch.setattr(torch.distributed, "init_process_group", Mock(side_effect=error))
    with pytest.raises(MemtoolError, match=told) as caught:
        with processes(torch.device("cpu")):
            pass
    assert ".cc" not in str(caught.value) and "WORLD_SIZE is" not in str(caught.value)


def test_memory_that_nccl_lacks_is_memory(of_two):
    with pytest.raises(torch.distributed.DistBackendError, match="out of memory"):
        with processes(torch.device("cpu")), foreign_code("model x"):
            raise torch.distributed.DistBackendError(MEMORY)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_process_of_a_torchrun_takes_its_own_gpu(monkeypatch):
    assert choose() == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert choose() == choose("cuda") == choose("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize("supported", [True, False])
def test_bf16_is_that_of_the_card_and_no_emulation(monkeypatch, supported):
    def is_supported(including_emulation=True):
        return supported or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert has_bf16(torch.device("cuda")) == supported
    assert not has_bf16(torch.device("cpu"))


def test_what_pytorch_keeps_of_a_gpu_is_there_for_more_tensors(monkeypatch):
    sizes = {"mem_get_info": (1000, 9000), "memory_reserved": 700, "memory_allocated": 500}
    for name, size in sizes.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    assert memory_of(torch.device("cuda")) == 1000 + 700 - 500


def test_a_process_has_the_processors_that_it_may_use(monkeypatch):
    assert 1 <= processors() <= (os.cpu_count() or 1)
    monkeypatch.setattr(device_module, "_limits_of_groups", lambda *names: [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert processors() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processors() == 1


@pytest.fixture
def in_groups(tmp_path, monkeypatch):
    """Puts this process into a control group, of a system that has these files of groups."""

    def put(group, limits):
        files = {"proc/self/cgroup": group, **{f"sys/fs/cgroup/{k}": v for k, v in limits.items()}}
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n" if text else "")
        below = partial(device_module._limits_of_groups, root=tmp_path)
        monkeypatch.setattr(device_module, "_limits_of_groups", below)

    return put


@pytest.mark.parametrize(
    ("group", "limits", "found"),
    [
        ("0::/", {"memory.max": "3000"}, 3000),  # a container
        ("0::/job/step", {"job/memory.max": "2000", "job/step/memory.max": "max"}, 2000),
        ("4:cpu,memory:/job", {"memory/job/memory.limit_in_bytes": "1000"}, 1000),
        ("4:memory:/elsewhere", {"memory/memory.limit_in_bytes": "700"}, 700),
        ("4:memory:/\n0::/", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, None),
        ("3:cpu:/job", {"memory.limit_in_bytes": "10", "job/memory.limit_in_bytes": "10"}, None),
        ("", {}, None),
    ],
)
def test_a_process_has_the_memory_that_its_groups_allow(in_groups, group, limits, found):
    in_groups(group, limits)
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine_memory() == (found or pages)


@pytest.mark.parametrize(
    ("group", "limits", "found"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),  # docker run --cpus=2
        ("0::/", {"cpu.max": "10000 100000"}, 1),
        ("0::/", {"cpu.max": "250000 100000"}, 3),
        ("0::/", {"cpu.max": "max 100000"}, 16),
        ("0::/", {"cpu.max": "3200000 100000"}, 16),
        ("0::/job/step", {"job/cpu.max": "400000 100000", "job/step/cpu.max": "max 100000"}, 4),
        (
            "4:cpuacct,cpu:/job",
            {"cpu/job/cpu.cfs_quota_us": "150000", "cpu/job/cpu.cfs_period_us": "50000"},
            3,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "100000"}, 16),
        ("4:memory:/", {"cpu.max": "200000 100000"}, 16),
        ("", {}, 16),
    ],
)
def test_a_process_has_the_processors_that_its_groups_allow(
    in_groups, monkeypatch, group, limits, found
):
    in_groups(group, limits)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    assert processors() == found


def test_a_system_without_groups_has_all_of_the_machine(tmp_path):
    assert list(device_module._limits_of_groups("cpu", ["cpu.max"], [], tmp_path)) == []


SHORTER = {
    "as they are": "",
    "high": "torch.set_float32_matmul_precision('high')",
    "medium": "torch.set_float32_matmul_precision('medium')",
    "old names": "torch.backends.cuda.matmul.allow_tf32 = True",
    "new names": "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "all": "torch.backends.fp32_precision = 'tf32'",
    "all, in float32": "torch.backends.fp32_precision = 'ieee'",
    "all, in bfloat16": "torch.backends.fp32_precision = 'bf16'",
    "the GPU": "torch.backends.cudnn.fp32_precision = 'tf32'",
    "cudnn": "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "the CPU": "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
}
SWITCHED = """
import torch
from memtool.device import Precision, tf32
{setting}
backends = torch.backends
parts = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
parts += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
values = lambda: [part.fp32_precision for part in parts]

def old_name():
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "refused"

before = [*values(), old_name()]
with tf32(Precision.float32):
    assert not {{"tf32", "bf16"}} & {{*values()}}, values()
with tf32(Precision.tf32):
    assert values()[:3] == ["tf32"] * 3 and not {{"tf32", "bf16"}} & {{*values()[3:]}}, values()
assert [*values(), old_name()] == before
is_unset = backends.cuda.matmul.fp32_precision == backends.fp32_precision
backends.fp32_precision = "tf32"
assert backends.cuda.matmul.fp32_precision == "tf32" or not is_unset
"""


@pytest.mark.parametrize("setting", SHORTER.values(), ids=SHORTER)
def test_float32_is_float32_whatever_a_model_has_set(setting):
    """In a process of its own, since PyTorch minds by which names the switches were ever set."""
    code = SWITCHED.format(setting=setting)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_single_process_has_all_the_work(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes(torch.device("cpu")) as alone:
        assert (alone.rank, alone.size) == (0, 1)
        assert alone.share([1, 2, 3]) == [1, 2, 3]
        assert alone.sum(torch.ones(2)).tolist() == [1, 1]
        assert alone.gather("mine") == ["mine"]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_shares_make_up_the_whole(size):
    shares = [Processes(rank, size).share(range(6)) for rank in range(size)]
    assert sorted(sum(map(list, shares), [])) == list(range(6))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("size", "rank", "told"),
    [("2", None, "RANK expected"), ("x", "0", "cannot be found"), ("2", "x", "cannot be found")],
)
def test_variables_that_torchrun_does_not_set_so_are_refused(monkeypatch, size, rank, told):
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(MemtoolError, match=f"WORLD_SIZE is {size}, .*{told}"):
        with processes(torch.device("cpu")):
            pass


def test_a_rank_without_other_processes_speaks(monkeypatch):
    monkeypatch.setenv("RANK", "5")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert is_first()
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert not is_first()


WORKER = """
import json, sys, torch
from memtool.device import processes
with processes(torch.device("cpu")) as ours:
    total = ours.sum(torch.tensor([float(ours.rank + 1)], dtype=torch.float64))
    print(json.dumps([ours.rank, total.tolist(), ours.gather({"rank": ours.rank})]))
"""


def test_two_processes_sum_and_gather(tmp_path):
    import json
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env={**os.environ, **common, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    told = [json.loads(process.communicate(timeout=120)[0]) for process in started]
    assert told == [[rank, [3.0], [{"rank": 0}, {"rank": 1}]] for rank in range(2)]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be told")
def test_what_tensors_free_on_a_cpu_is_kept_for_others(monkeypatch):
    told = {}

    class Library:
        def __init__(self, name):
            self.real = ctypes.PyDLL(name)

        def mallopt(self, option, size):
            told[option, size] = self.real.mallopt(option, size)

    monkeypatch.setattr(ctypes, "CDLL", Library)
    choose("cpu")
    assert told == {(-3, 2**25): 1, (-1, 2**30): 1}  # the threshold of mmap, that of trimming: done
