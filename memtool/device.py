"""The device to compute on, the precision, and the processes that share work under torchrun."""

import ctypes
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from memtool import MemtoolError, __version__
from memtool.errors import is_lack_of_memory, last_line, shortened

# One process may wait for what another computes; of one that has ended, torchrun tells at once.
LONGEST_WAIT = timedelta(days=7)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h has them
MEMORY = 4 * 2**30  # bytes that images, or passes and results, may take unless told otherwise

# What errors of PyTorch's say where another process is gone.
LOST = r"remote process exited|connection.*(closed|reset|refused|aborted)|broken pipe"
# What they say of other trouble between processes, and what is told of it, with their words.
TROUBLE = {
    r"(client|server) socket|waiting for clients": "the other processes of this torchrun cannot be "
    "found ({}); start them all by torchrun, or unset WORLD_SIZE",
    r"duplicate gpu": "two processes of this torchrun have one GPU ({}); leave --device out, and "
    "each takes its own",
    r"mismatched nccl version": "the processes of this torchrun have different versions of NCCL "
    "({}); install the same PyTorch for all of them",
    r"timed? ?out": "another process of this torchrun has not answered in time ({}); see what "
    "keeps it",
    r"nccl": "the processes of this torchrun cannot work together ({}); NCCL_DEBUG=INFO in the "
    "environment tells more",
    r"": "the processes of this torchrun cannot work together ({}); TORCH_CPP_LOG_LEVEL=INFO in "
    "the environment tells more",
}

# Where in the source of PyTorch, or of a library of its own, an error comes from.
PLACE = re.compile(r"\[enforce fail at [^]]*\] ?|\[?[^\s[]*\.(?:cc|cpp|cu|cuh|h|hpp):\d+\]?[,:]? ?")

if TYPE_CHECKING:  # the command line offers Precision, and torch is slow to import
    import torch

T = TypeVar("T")


class Precision(StrEnum):
    """The precision of forward passes; that of Gram matrices too with `tf32`."""

    float32 = "float32"
    tf32 = "tf32"  # on CUDA, products of 10-bit mantissas; elsewhere the same as float32
    bf16 = "bf16"  # torch's autocast; Gram matrices stay float32


def choose(name: str = "auto") -> "torch.device":
    """The device called `name`; `auto` is CUDA if there is one, else Apple's MPS, else the CPU.

    Under torchrun, `auto` and `cuda` mean the CUDA device of the process's local rank. For the CPU,
    this process keeps what its tensors free from here on. Raises MemtoolError if the device is not
    available, or is that of another process's local rank.
    """
    import torch

    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        name = available[0]
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    kind, colon, index = name.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if kind not in available or colon and not (index.isdecimal() and int(index) < count):
        raise MemtoolError(f"device {name!r} is not available (available: {', '.join(available)})")
    rank = os.environ.get("LOCAL_RANK", index)
    if kind == "cuda" and index != rank and os.environ.get("LOCAL_WORLD_SIZE", "1") != "1":
        raise MemtoolError(
            f"device {name!r} is not for the process of local rank {rank}; leave --device out, and "
            "each process of a torchrun takes its own (CUDA_VISIBLE_DEVICES says which there are)"
        )
    if kind == "cuda" and index:
        torch.cuda.set_device(int(index))  # on which graphs and streams are made
    if kind == "cpu":
        _keep_freed_memory()
    return torch.device(name)


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next tensors, instead of giving it back: the system
    would hand out, and zero, each of its pages anew, a tenth of the time that training takes."""
    with suppress(OSError, AttributeError, TypeError):  # another C library, or none to be had
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 2**25)  # bytes; glibc before 2.35 takes no more
        mallopt(M_TRIM_THRESHOLD, 2**30)


def computed_by(device: "torch.device") -> dict[str, str | int]:
    """What the last digits of numbers depend on beside all settings, for the record: versions, the
    number of threads of this process, and what computes."""
    import numpy
    import torch

    if device.type == "cuda":
        model = torch.cuda.get_device_name(device)
    else:
        model = torch.backends.cpu.get_cpu_capability()  # such as AVX2
    return {
        "memtool": __version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "threads": torch.get_num_threads(),
        "device": f"{device.type} ({model})",
    }


def processors() -> int:
    """How many processors this process may use: in a container or a cluster's job, fewer than the
    machine has. Where time is shared out, a part of one counts as one."""
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:
        available = os.cpu_count() or 1  # macOS and Windows
    # The microseconds that the group may compute in each period, in which all processors do.
    limits = _limits_of_groups("cpu", ["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"])
    return min([available, *(ceil(quota / period) for quota, period in limits if quota > 0)])


def machine_memory() -> int:
    """The bytes of memory that this process may take: those of the machine, or fewer in a container
    or a cluster's job; more than any machine has where it does not say."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return sys.maxsize
    limits = _limits_of_groups("memory", ["memory.max"], ["memory.limit_in_bytes"])
    return min([physical, *(size for (size,) in limits)])


def _limits_of_groups(
    controller: str, files: list[str], files_of_first: list[str], root: Path = Path("/")
) -> Iterator[list[int]]:
    """The numbers in files of the control groups that this process is in, and of those around them
    (Linux, man 7 cgroups), below the directory `root` of the system: those in `files` together, or
    of groups of version 1 those in `files_of_first`. Limits that are not set are left out."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2
            tree, names = root / "sys/fs/cgroup", files
        elif controller in controllers.split(","):
            tree, names = root / "sys/fs/cgroup" / controller, files_of_first
        else:
            continue
        inside = Path(group.lstrip("/"))
        for folder in (inside, *inside.parents):  # a container may see its own as the root
            with suppress(OSError, ValueError):  # not there, or "max"
                texts = [(tree / folder / name).read_text() for name in names]
                yield [int(word) for word in " ".join(texts).split()]


def memory_of(device: "torch.device") -> int:
    """The bytes that a device has for more tensors of this process: of CUDA those that are free,
    and those that PyTorch keeps of tensors that are gone; else those of the machine."""
    import torch

    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return machine_memory()


def has_bf16(device: "torch.device") -> bool:
    """Whether a GPU computes in bfloat16 by itself; older ones emulate it, more slowly than float32
    is."""
    import torch

    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@contextmanager
def tf32(name: Precision) -> Iterator[None]:
    """Within the block, products in float32 are of TF32 on CUDA if `name` says so, and else of
    float32, whatever the code of a model has set. (PyTorch by itself lets convolutions use TF32.)
    """
    import torch

    backends: Any = torch.backends
    of_gpu = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    of_cpu = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)
    allowed = name is Precision.tf32
    with ExitStack() as undo:
        # What has the precision of its backend goes on following that. (Convolutions do by default,
        # too, but with tf32 where the backend has none; nothing sets that again.)
        for backend, parts in ((backends.cudnn, of_gpu), (backends.mkldnn, of_cpu)):
            for part in parts:
                own = part.fp32_precision
                before = "none" if own == backend.fp32_precision else own
                undo.callback(setattr, part, "fp32_precision", before)
        # The old names, which PyTorch refuses to read once the new ones say otherwise, set some of
        # these parts, too, and so come before them, here and when all is put back.
        with suppress(RuntimeError):
            undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("high" if allowed else "highest")
        with suppress(RuntimeError):
            undo.callback(setattr, backends.cudnn, "allow_tf32", backends.cudnn.allow_tf32)
            backends.cudnn.allow_tf32 = allowed
        for part in of_gpu:
            part.fp32_precision = "tf32" if allowed else "ieee"
        for part in of_cpu:  # may round to bfloat16 where the CPU has instructions for it
            part.fp32_precision = "ieee"
        yield


@contextmanager
def precision(name: Precision, device: "torch.device") -> Iterator[None]:
    """Within the block, forward passes compute in this precision."""
    import torch

    with tf32(name), torch.autocast(device.type, torch.bfloat16, enabled=name is Precision.bf16):
        yield


def is_first() -> bool:
    """Whether this is rank 0 of a torchrun, the one that speaks, or the only process."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Processes:
    """The processes of a torchrun: this one's rank, and how many there are. Without torchrun there
    is one. Only rank 0 prints and writes."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of `items`. The parts of all processes together are all items."""
        return items[self.rank :: self.size]

    def sum(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """Sum a tensor over all processes, in place; the same tensor."""
        if self.size > 1:
            from torch import distributed

            distributed.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """The values that all processes have given, by rank; the same list in every process."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values


@contextmanager
def processes(device: "torch.device") -> Iterator[Processes]:
    """Within the block, this process works together with the others of a torchrun, if any.

    Raises MemtoolError if the variables that torchrun sets are not as it sets them, or if processes
    cannot work together in the block, and LostProcess if another one ends.
    """
    if (size := os.environ.get("WORLD_SIZE", "1")) == "1":
        yield Processes()
        return
    import torch
    from torch import distributed

    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT
        )
    except (ValueError, RuntimeError) as error:
        if is_trouble_of_processes(error):
            raise _trouble(error) from error
        raise MemtoolError(
            f"WORLD_SIZE is {size}, and the other processes cannot be found ({last_line(error)}); "
            "start them all by torchrun, or unset WORLD_SIZE"
        ) from error
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    except RuntimeError as error:
        if is_lack_of_memory(error) or not is_trouble_of_processes(error):
            raise
        raise _trouble(error) from error
    finally:
        distributed.destroy_process_group()


def is_trouble_of_processes(error: Exception) -> bool:
    """Whether PyTorch raised this in what the processes of a torchrun do together."""
    from torch import distributed

    known = getattr(distributed, "DistError", ())  # not there in every build
    told = isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    return isinstance(error, known) or told


def is_loss_of_process(error: Exception) -> bool:
    """Whether PyTorch says so that another process of the torchrun has ended."""
    return is_trouble_of_processes(error) and bool(re.search(LOST, str(error), re.IGNORECASE))


def _trouble(error: Exception) -> MemtoolError:
    """What is wrong between processes, in one line with the words of NCCL or Gloo: the last ones
    before C++'s stack, unless NCCL has none, without places in the source."""
    if is_loss_of_process(error):
        return LostProcess(
            "another process of this torchrun has ended or cannot be reached; what it did last "
            "is told above, or by torchrun below"
        )
    said = PLACE.sub("", str(error)).partition("Exception raised from")[0].splitlines()
    words = [line.strip() for line in said if not line.strip().startswith("Last error:")]
    last = next((line for line in reversed(words) if line), type(error).__name__)
    found = (key for key in TROUBLE if re.search(key, str(error), re.IGNORECASE))
    return MemtoolError(TROUBLE[next(found)].format(shortened(last, 200)))


class LostProcess(MemtoolError):
    """Another process has ended in the middle of common work."""


def is_first_to_fail(error: object) -> bool:
    """Whether no other process of the torchrun has failed before, so that this one is to say why.

    One that has only lost another gives that one a second to speak. Without torchrun, and where its
    store cannot be reached, it is this process that speaks.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    if isinstance(error, LostProcess):
        time.sleep(1)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
        return bool(store.add(f"memtool-failed-{attempt}", 1) == 1)
    except (KeyError, ValueError, RuntimeError):
        return True
