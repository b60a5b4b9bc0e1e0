"""Forward hooks that are gone when their block ends: watch layers, run a model up to or from one.

Nothing is traced into a graph and nothing is rewritten, so any model will do.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

from memtool import MemtoolError, compiler
from memtool.errors import one_line
from memtool.layers.layer import first_tensor, plain, tensors_in, with_first

# Called with a layer's name, its module and what the module returned; a result other than None
# takes the place of that.
See = Callable[[str, nn.Module, Any], Any]


ACTIVE: list["_Watch"] = []  # of all blocks that watch at present, whatever model


class _Watch:
    """The hook that one `watching` block puts on the modules of a model.

    It numbers repeated calls of a module (`relu`, `relu_1`, ...) from the start of each forward
    pass: of the outermost call of the model, which may call itself, on a smaller image, say. While
    it is paused, calls are numbered but not seen.
    """

    def __init__(self, names: dict[nn.Module, str], taken: Collection[str], see: See) -> None:
        self.names, self.taken, self.see = names, taken, see
        self.calls: Counter[str] = Counter()
        self._depth = 0  # of the calls of the model
        self._pauses = 0

    def enter(self, *_: Any) -> None:
        """A call of the model begins."""
        if not self._depth:
            self.calls.clear()
        self._depth += 1

    def leave(self, *_: Any) -> None:
        """A call of the model ends."""
        self._depth -= 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        name = self.names[module]
        count = self.calls[name]
        self.calls[name] += 1
        if self._pauses:
            return None
        numbered = f"{name}_{count}" if count else name
        if count and numbered in self.taken:  # by a module of that very name
            numbered = f"{name}:{count}"
        return self.see(numbered, module, output)


@contextmanager
def watching(
    model: nn.Module, see: See, layers: Collection[str] | None = None, first: bool = False
) -> Iterator[None]:
    """Within the block, call `see` after each call of each submodule of `model`.

    With `layers`, only modules that can give one of those are watched. The model's own hooks come
    before: what they return is the layer's output. If `first`, `see` comes before other blocks that
    watch, so that those see the output that it returns.
    """
    names = {
        module: name
        for name, module in model.named_modules()
        if name and not isinstance(module, torch.jit.ScriptModule)  # which takes no hooks
    }
    taken = set(names.values())
    if layers is not None:
        giving = _modules_of(layers)
        names = {module: name for module, name in names.items() if name in giving}
    watch = _Watch(names, taken, see)
    with ExitStack() as attached:
        ACTIVE.append(watch)
        attached.callback(ACTIVE.remove, watch)
        if compiler.is_there():  # parts that are compiled would not call the hooks
            attached.enter_context(torch.compiler.set_stance("force_eager"))
        # Before all that may raise, and whatever has raised: each call that is entered is left.
        for handle in (
            model.register_forward_pre_hook(watch.enter, prepend=True),
            model.register_forward_hook(watch.leave, always_call=True),
        ):
            attached.callback(handle.remove)
        for module in names:
            attached.callback(_attach(watch, module, first))
        yield


def _modules_of(layers: Collection[str]) -> set[str]:
    """The names of all modules of whose calls one of the layers may be the output: its own name, or
    what stands in it before the number of a call or of a part.

    >>> sorted(_modules_of(["a_b_1"]))
    ['a', 'a_b', 'a_b_1']
    """
    return {
        layer[:end]
        for layer in layers
        for end in (len(layer), *(place for place, letter in enumerate(layer) if letter in "_:"))
    }


def _attach(watch: _Watch, module: nn.Module, first: bool) -> Callable[[], None]:
    """Have `watch` called after each call of a module; what undoes that."""
    hooks = module._forward_hooks
    has_own = any(not isinstance(hook, _Watch) for hook in hooks.values())
    if has_own or not isinstance(module, nn.TransformerEncoderLayer):
        others = [key for key, hook in hooks.items() if isinstance(hook, _Watch)]
        handle = module.register_forward_hook(watch)
        for key in others if first else []:
            hooks[key] = hooks.pop(key)
        return handle.remove
    # Such a layer computes all its parts in one kernel, unless it finds hooks on itself: with them
    # it would round differently than the network does by itself.
    if not isinstance(module.forward, _WatchedForward):
        module.forward = _WatchedForward(module)  # type: ignore[method-assign]
    watches = module.forward.watches
    watches.insert(0 if first else len(watches), watch)
    return lambda: _detach(watch, module)


def _detach(watch: _Watch, module: nn.Module) -> None:
    watched = module.forward
    assert isinstance(watched, _WatchedForward)
    watched.watches.remove(watch)
    if not watched.watches:
        module.forward = watched.forward
        if watched.is_of_class:
            del module.forward  # the class has it


class _WatchedForward:
    """In place of a module's `forward`: calls it, then the watches, as hooks would be."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.forward = module, module.forward
        self.is_of_class = "forward" not in vars(module)
        self.watches: list[_Watch] = []

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        output = self.forward(*inputs, **named)
        for watch in list(self.watches):
            result = watch(self.module, inputs, output)
            output = output if result is None else result
        return output


def _watches(model: nn.Module) -> list[_Watch]:
    """All blocks that watch `model` or parts of it at present."""
    if not ACTIVE:
        return []
    found: list[Any] = []
    for module in model.modules():
        found += module._forward_hooks.values()
        found += getattr(module.forward, "watches", [])
    return list(dict.fromkeys(hook for hook in found if isinstance(hook, _Watch)))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; every submodule's own mode is back when the block ends, and what else a `train` of
    its own does, such as merging weights for eval mode, is undone. Raises MemtoolError for a model
    that has no modes."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
    except NotImplementedError as error:
        raise MemtoolError(
            f"{type(model).__name__} has no eval mode ({one_line(error)}), as what torch.export "
            "makes, which hides its layers; take the module that it was made of"
        ) from error
    try:
        yield
    finally:
        for module, training in modes:  # from the outside in: each sets the mode of its parts too
            if module.training != training:
                module.train(training)
        for module, training in modes:  # whatever a `train` of its own has made of it
            module.training = training


@contextmanager
def observed(
    model: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Within the block, call `see(name, activation)` for each layer in `names`, in each forward
    pass, as soon as the activation appears: before an in-place module that follows can change it.
    """
    wanted = set(names)

    def look(name: str, module: nn.Module, output: Any) -> None:
        if name in wanted and (tensor := first_tensor(output)) is not None:
            with _own_mode():
                see(name, plain(tensor))

    with watching(model, look, wanted):
        yield


@contextmanager
def _own_mode() -> Iterator[None]:
    """Within the block, no inference mode and no transform, such as torch.func.grad, in which part
    of a model may run: what is made there could not be changed elsewhere, nor the reverse."""
    with temporarily_clear_interpreter_stack(), ExitStack() as modes:
        if torch.is_inference_mode_enabled():
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.no_grad())
        yield


class _Reached(Exception):
    """Ends a forward pass that need go no further; `found` tells whose, where one is in another."""

    def __init__(self, found: dict[str, Tensor]) -> None:
        self.found = found


def run_to(model: nn.Module, layers: Collection[str], images: Tensor) -> dict[str, Tensor]:
    """The activation of `model` at each of `layers`; what comes after the last does not run.

    Raises MemtoolError for a layer that the model does not have or does not call.
    """
    found: dict[str, Tensor] = {}

    def see(name: str, module: nn.Module, output: Any) -> None:
        if name in layers and (tensor := first_tensor(output)) is not None:
            with _own_mode():
                tensor = plain(tensor)
            # A copy, unless nothing runs that could change it in place.
            found[name] = tensor if len(found) + 1 == len(layers) else tensor.clone()
            if len(found) == len(layers):
                raise _Reached(found)

    with watching(model, see, layers):
        try:
            model(images)
        except _Reached as reached:
            if reached.found is found:
                return found
            raise
    raise _no_layer(model, next(layer for layer in layers if layer not in found))


def _no_layer(model: nn.Module, layer: str) -> MemtoolError:
    return MemtoolError(f"{type(model).__name__} has no layer {layer!r}, or does not call it")


class Back:
    """A model from one of its layers on: `back(activation, images)` is what the model returns with
    `activation`, (n, ...), in place of what the layer gives for the n `images`.

    The part before the layer runs too, since the model is not rewritten: on the first image alone,
    if that gives the very same output, else on all images (a class token is expanded to the batch,
    say). Which of the two is found at the first call; on the meta device, where there are no values
    to compare, it runs on all. Gradients are those with respect to the activation, also where the
    model asks for none, as for a frozen part.

    The activation is converted to the type of what it replaces, and may be changed in place, as the
    model changes its own. The images are not changed.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        self.model, self.layer = model, layer
        self._one_image_is_enough: bool | None = None

    def __call__(self, activation: Tensor, images: Tensor) -> Any:
        if self._one_image_is_enough is None and len(images) > 1 and not images.is_meta:
            with torch.no_grad():
                self._one_image_is_enough = self._is_one_image_enough(activation, images)
        return self._run(activation, images[:1] if self._one_image_is_enough else images)

    def _is_one_image_enough(self, activation: Tensor, images: Tensor) -> bool:
        """Whether the first image alone gives what all images give, to the last bit; tried with
        two, where that can be told from the activation."""
        if len(activation) == len(images):
            activation, images = activation[:2], images[:2]
        with _disable_current_modes(), ExitStack() as restored:  # no trace sees these runs,
            for watch in _watches(self.model):  # which are not the model's own
                restored.enter_context(watch.paused())
                restored.callback(setattr, watch, "calls", watch.calls.copy())
            expected = list(tensors_in(self._run(activation.clone(), images)))
            try:
                found = list(tensors_in(self._run(activation.clone(), images[:1])))
            except Exception:  # whatever a model raises that is given another number of rows
                return False
            return len(found) == len(expected) and all(map(torch.equal, found, expected))

    def _run(self, activation: Tensor, images: Tensor) -> Any:
        gradients, others = torch.is_grad_enabled(), _watches(self.model)
        paused = ExitStack()  # until the layer is reached: nothing before it counts
        reached = False

        def substitute(name: str, module: nn.Module, output: Any) -> Any:
            nonlocal reached
            if name != self.layer:
                return None
            reached = True
            paused.close()
            if gradients:
                torch.set_grad_enabled(True)
            replaced = first_tensor(output)
            if replaced is None:
                return activation
            if (result := with_first(output, activation.to(replaced.dtype))) is None:
                raise MemtoolError(f"nothing can take the place of what {name!r} returns")
            return result

        with paused, watching(self.model, substitute, [self.layer], first=True):
            for watch in others:
                paused.enter_context(watch.paused())
            result = self.model(images.clone())  # they may be one image, expanded
        if not reached:
            raise _no_layer(self.model, self.layer)
        return result
