"""Tensors and dicts among the inert values of a pickle: what its calls would have made.

Each function that PyTorch and NumPy pickle a tensor by is known here by its name, and what it does
is done again with arguments that are checked. There are no others.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memtool.checkpoints.archives import Archive, unzipped
from memtool.checkpoints.pickles import Call, Name

MAX_DEPTH = 100  # modules in modules, or wrappers of a tensor
MAX_MODULES = 100_000
MAX_EXPANDED = 2**20  # numbers of a tensor that repeats those of a smaller storage

# What is not read, and what to do where it comes from.
UNREADABLE = {
    "_rebuild_qtensor": "is quantized; save it after dequantize()",
    "_rebuild_sparse_tensor": "is sparse; save it after to_dense()",
    "_rebuild_sparse_csr_tensor": "is sparse; save it after to_dense()",
    "_rebuild_nested_tensor": "is a nested tensor; save it after to_padded_tensor(0)",
    "_rebuild_meta_tensor_no_storage": "is on the meta device, without values",
    "_rebuild_wrapper_subclass": "is of a class of its own, which has no plain values",
    "UninitializedParameter": "was not initialized; let the network run before it is saved",
    "UninitializedBuffer": "was not initialized; let the network run before it is saved",
}


def called(value: Any) -> str:
    """The dotted name of the function or class whose call `value` is; empty if it is none."""
    if not isinstance(value, Call):
        return ""
    function = value.function
    if str(function) in ("copyreg._reconstructor", "copy_reg._reconstructor"):
        function = value.arguments[0] if value.arguments else None
    return str(function) if isinstance(function, Name) else ""


# --- Tensors --------------------------------------------------------------------------------------


def is_tensor(value: Any) -> bool:
    """Whether `value` is a tensor or an array, one that cannot be read included."""
    name = called(value)
    return name in REBUILT or name.rpartition(".")[2] in UNREADABLE


def is_array(value: Any) -> bool:
    """Whether `value` is an array of NumPy's."""
    return called(value).startswith("numpy.") and is_tensor(value)


def tensor(value: Any, archive: Archive, depth: int = 0) -> Tensor:
    """The tensor that `value` is, with its storage in `archive`.

    Raises ValueError, with the rest of a sentence about it, if it cannot be read or is not as
    PyTorch writes it.
    """
    name = called(value)
    if why := UNREADABLE.get(name.rpartition(".")[2]):
        raise ValueError(why)
    if name not in REBUILT or depth > MAX_DEPTH:
        raise ValueError("is not a tensor as PyTorch or NumPy write it")
    try:
        return REBUILT[name](value, archive, depth)
    except (TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"cannot be rebuilt ({error})") from error


def _strided(value: Call, archive: Archive, depth: int) -> Tensor:
    """(storage, offset, shape, strides, ...): part of a storage."""
    storage, offset, shape, strides, *_ = value.arguments
    return _view(_storage(storage, archive), offset, shape, strides)


def _strided_v2(value: Call, archive: Archive, depth: int) -> Tensor:
    """(..., requires_grad, hooks, metadata)"""
    _check_plain(value.arguments[6:])
    return _strided(value, archive, depth)


def _strided_v3(value: Call, archive: Archive, depth: int) -> Tensor:
    """(..., requires_grad, hooks, dtype, metadata), with a storage of bytes."""
    storage, offset, shape, strides, _, _, dtype, *rest = value.arguments
    _check_plain(rest)
    numbers = _storage(storage, archive, of=_dtype(dtype)).view(_dtype(dtype))
    return _view(numbers, offset, shape, strides)


def _check_plain(rest: Sequence[Any]) -> None:
    """Raise ValueError if the metadata say that the numbers are to be negated or conjugated."""
    for metadata in rest:
        if isinstance(metadata, dict) and any(metadata.values()):
            raise ValueError("is negated or conjugated; save it after resolve_conj().resolve_neg()")


def _view(storage: Tensor, offset: Any, shape: Any, strides: Any) -> Tensor:
    """A part of a storage that lies within it, and is not absurdly larger."""
    numbers = [offset, *shape, *strides]
    if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("has no sensible shape and strides")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    size = math.prod(shape)
    if size and last >= len(storage) or size > max(len(storage), MAX_EXPANDED):
        raise ValueError(
            f"claims {size:,} numbers up to number {last:,} of a storage of {len(storage):,}"
        )
    return storage.as_strided(shape, strides, offset) if size else storage.new_empty(shape)


def _storage(value: Any, archive: Archive, of: torch.dtype | None = None) -> Tensor:
    """The numbers of a storage in the archive or, in a pickle alone, of one that is a file of
    PyTorch's in the pickle; `of` is their type where they are given as bytes."""
    if called(value) == "torch.storage._load_from_bytes":
        archive = unzipped(BytesIO(_bytes(value.arguments[0])))
        value = archive.content
    return archive.storage(value, of)


def _dtype(value: Any) -> torch.dtype:
    dtype = getattr(torch, value.name, None) if isinstance(value, Name) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"is of no type of PyTorch's ({value!s:.40})")
    return dtype


def _wrapped(value: Call, archive: Archive, depth: int) -> Tensor:
    """(tensor, ...): a parameter, or a tensor of another device."""
    return tensor(value.arguments[0], archive, depth + 1)


def _of_subclass(value: Call, archive: Archive, depth: int) -> Tensor:
    """(function, class, arguments, state): the values of a subclass of Tensor."""
    function, _, arguments, *_ = value.arguments
    return tensor(Call(function, arguments), archive, depth + 1)


def _array(value: Call, archive: Archive, depth: int) -> Tensor:
    """In the state (version, shape, dtype, is_fortran, bytes): an array of NumPy's."""
    _, shape, dtype, is_fortran, content = value.state
    return _from_numpy(content, dtype, shape, "F" if is_fortran else "C")


def _array_of_buffer(value: Call, archive: Archive, depth: int) -> Tensor:
    """(bytes, dtype, shape, order): an array of NumPy's."""
    return _from_numpy(*value.arguments)


def _from_numpy(content: Any, dtype: Any, shape: Any, order: Any) -> Tensor:
    code = _numpy_dtype(dtype)
    numbers = np.frombuffer(_bytes(content), code)
    if math.prod(shape) != numbers.size or order not in ("C", "F"):
        raise ValueError(f"has {numbers.size} numbers, which are not of shape {shape}")
    native = numbers.astype(numbers.dtype.newbyteorder("="))  # a copy, which can be written to
    return torch.from_numpy(native.reshape(shape, order=order))


def _numpy_dtype(value: Any) -> np.dtype[Any]:
    """numpy.dtype(code, ...) in the state (version, order of bytes, ...), if it is of numbers."""
    code = value.arguments[0] if called(value) == "numpy.dtype" else None
    order = value.state[1] if code and value.state else "="
    if not isinstance(code, str) or not re.fullmatch(r"[biufc]\d{1,2}", code):
        raise ValueError(f"is an array of no numbers ({code!s:.40})")
    return np.dtype(f">{code}" if order == ">" else code)


def _bytes(value: Any) -> bytes:
    """Bytes, which old pickles write as text: as the argument of a call, or as they are."""
    match called(value):
        case "_codecs.encode":
            value = value.arguments[0]
        case "builtins.bytes" | "__builtin__.bytes" if not value.arguments:
            return b""
    return value.encode("latin-1") if isinstance(value, str) else bytes(memoryview(value))


Rebuild = Callable[[Call, Archive, int], Tensor]
REBUILT: Mapping[str, Rebuild] = {
    "torch._utils._rebuild_tensor": _strided,  # before 0.4
    "torch._utils._rebuild_tensor_v2": _strided_v2,
    "torch._utils._rebuild_tensor_v3": _strided_v3,
    "torch._tensor._rebuild_from_type": _of_subclass,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
    "torch.tensor._rebuild_from_type": _of_subclass,
    "torch._utils._rebuild_parameter": _wrapped,
    "torch._utils._rebuild_parameter_with_state": _wrapped,
    "torch._utils._rebuild_device_tensor_from_numpy": _wrapped,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _wrapped,
    "torch._utils._rebuild_xla_tensor": _wrapped,
    "torch.nn.parameter.Parameter": _wrapped,
    "torch.nn.parameter.Buffer": _wrapped,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
    "numpy.core.numeric._frombuffer": _array_of_buffer,
    "numpy._core.numeric._frombuffer": _array_of_buffer,
}


# --- Dicts ----------------------------------------------------------------------------------------


def entries(value: Any) -> dict[Any, Any] | None:
    """What `value` holds, if it is a container or an object: the tensors of a module by their names
    in its state_dict, the items of a dict, those of a list or a tuple by their numbers, else the
    attributes of an object."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if not isinstance(value, Call) or is_tensor(value):
        return None
    if is_module(value):
        return dict(_module_tensors(value))
    return _items(value) or _attributes(value)


def is_module(value: Any) -> bool:
    """Whether `value` is an object that has what every torch.nn.Module has."""
    return isinstance(value, Call) and {"_parameters", "_modules"} <= _attributes(value).keys()


def _attributes(value: Call) -> dict[Any, Any]:
    """The state of an object: a dict, or two of which the second has its slots. Of the modules that
    PyTorch pickles by the arguments of a call, what that would make of them."""
    parts = value.state if isinstance(value.state, tuple) else (value.state,)
    match value:
        case Call(function=Name(name="OptimizedModule"), arguments=(module, *_)):  # torch.compile
            parts = ({"_parameters": {}, "_modules": {"_orig_mod": module}}, *parts)
        case Call(
            function=Name(name="reduce_graph_module"), arguments=(attributes, *_)
        ):  # torch.fx
            parts = (attributes, *parts)
    return {key: entry for part in parts if isinstance(part, dict) for key, entry in part.items()}


def _items(value: Any) -> dict[Any, Any]:
    """The items of a dict, or of an object that is one, such as an OrderedDict."""
    match value:
        case Call(function=Name(name="OrderedDict"), arguments=(list(pairs),), items=items):
            return {pair[0]: pair[1] for pair in pairs if len(pair) == 2} | items
        case Call(items=items) | dict(items):
            return items
    return {}


def _module_tensors(module: Call) -> Iterator[tuple[str, Any]]:
    """The parameters and persistent buffers of a module and those in it, in the order of its
    state_dict."""
    waiting = [("", module)]
    for _ in range(MAX_MODULES):
        if not waiting:
            return
        prefix, part = waiting.pop()
        if prefix.count(".") > MAX_DEPTH:
            raise ValueError("its modules are nested absurdly deep, or in each other")
        attributes = _attributes(part)
        hidden = _members(attributes.get("_non_persistent_buffers_set"))
        for kind in ("_parameters", "_buffers"):
            for name, value in _items(attributes.get(kind)).items():
                if value is not None and name not in hidden:
                    yield f"{prefix}{name}", value
        inner = reversed(_items(attributes["_modules"]).items())
        waiting += [(f"{prefix}{name}.", module) for name, module in inner if is_module(module)]
    raise ValueError("has absurdly many modules")


def _members(value: Any) -> set[Any]:
    """A set, or the list that one is made of."""
    match value:
        case set(members):
            return members
        case Call(arguments=(list(members),)):
            return {member for member in members if isinstance(member, str)}
    return set()
