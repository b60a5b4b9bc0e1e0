"""What timm does to the weights of others when it loads them, which each of its models tells by a
function from tensors to tensors."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from memtool.models.building import Admit, meta_parameters
from memtool.models.sources import check_options, factory_of
from memtool.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


def timm_rewrite(
    spec: ModelSpec, admit: Admit = lambda shape: None
) -> "Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None":
    """The function by which timm makes the tensors of its model of those in other layouts; None if
    it reads no other. `admit` is as for `skeleton`.

    timm hands it to its own loader while it builds a model with weights, in whose place we take it.
    Raises MemtoolError for options that the model does not have.
    """
    from timm.models import _builder

    taken: list[tuple[nn.Module, Any]] = []

    def take(model: "nn.Module", *_: Any, **settings: Any) -> None:
        taken.append((model, settings.get("filter_fn")))

    check_options(spec)
    loader, _builder.load_pretrained = _builder.load_pretrained, take
    try:
        with meta_parameters(admit):
            factory_of(spec)(pretrained=True, **spec.options)
    finally:
        _builder.load_pretrained = loader
    if not taken or taken[0][1] is None:
        return None
    model, function = taken[0]
    more = [model] if len(inspect.signature(function).parameters) > 1 else []
    return lambda tensors: function(dict(tensors), *more)
