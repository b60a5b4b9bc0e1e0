"""How the names of a file's tensors are read as those of a model's.

Training code wraps a model, which adds tokens to the names (`module.layer1._orig_mod.0.weight`),
saves other things beside it (`criterion.pos_weight`, `ema.conv1.weight`), and may spell modules
otherwise (`shortcut` for `downsample`). The model decides what is meant: a name in the file is that
of one of its tensors if it ends like it, with nothing but tokens of WRAPPERS in between. What
stands before that is a prefix, whatever it is; the one under which most of the model is found is
removed, and what is not under it is left aside.

To support another wrapper, add its token to WRAPPERS; another spelling, a line to SPELLINGS.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from memtool import MemtoolError
from memtool.checkpoints.names import UNCOUNTED
from memtool.errors import some

logger = logging.getLogger("memtool")


class Ambiguous(MemtoolError):
    """Raised if a file holds a model several times."""


Tokens = tuple[str, ...]
# The names in a model of each tensor that has several, by each of them.
Tied = Mapping[str, Sequence[str]]

# Moving averages of the weights. The weights themselves come before averages of them.
AVERAGES = {
    *("ema", "model_ema", "ema_model", "ema_net", "ema_network", "module_ema", "state_dict_ema"),
    *("averaged_model", "average_model", "swa_model", "shadow", "shadow_params"),
}
# What DataParallel, torch.compile, FSDP, activation checkpointing, Lightning and others add.
WRAPPERS = AVERAGES | {
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module"),
    *("model", "net", "network", "inner_model", "wrapped_model", "state_dict", "model_state_dict"),
}
# What stands beside a model: losses, metrics, counters, teachers, the auxiliary classifiers that
# torchvision's models may be built without; by the first token of the name.
BESIDE = re.compile(
    r"criteri(on|a)|.*loss(es)?(_f.*)?|.*metrics?|.*(acc|accuracy|auroc|f1|confusion.*)\d*"
    r"|optimi[sz]er.*|.*scheduler|n_averaged|initted|(global_)?step|num_updates|decay|epoch"
    r"|(.*_)?teacher(_.*)?|AuxLogits|aux[12]"
)
# What tools leave in every module: batch norm its count, thop what it has counted.
LEFT = {"num_batches_tracked", "total_ops", "total_params"}

# How others spell the names in a model: what to replace in them, in this order.
SPELLINGS: Mapping[str, Sequence[tuple[str, str]]] = {
    "torchvision's old DenseNets": [(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.")],
    "torchvision's old ViTs": [
        (r"(encoder_layer_\d+\.mlp)\.0\.", r"\1.linear_1."),
        (r"(encoder_layer_\d+\.mlp)\.3\.", r"\1.linear_2."),
    ],
    "ResNets with shortcut for downsample": [(r"\.downsample\.", ".shortcut.")],
    "ResNets with linear for fc": [(r"^fc\.", "linear.")],
    "ResNets with conv2_x for layer1": [
        (r"^(layer\d\.\d+)\.conv1\.", r"\1.residual_function.0."),
        (r"^(layer\d\.\d+)\.bn1\.", r"\1.residual_function.1."),
        (r"^(layer\d\.\d+)\.conv2\.", r"\1.residual_function.3."),
        (r"^(layer\d\.\d+)\.bn2\.", r"\1.residual_function.4."),
        (r"^(layer\d\.\d+)\.conv3\.", r"\1.residual_function.6."),
        (r"^(layer\d\.\d+)\.bn3\.", r"\1.residual_function.7."),
        (r"\.downsample\.", ".shortcut."),
        (r"^conv1\.", "conv1.0."),
        (r"^bn1\.", "conv1.1."),
        *[(rf"^layer{stage}\.", f"conv{stage + 1}_x.") for stage in (1, 2, 3, 4)],
    ],
}


@dataclass(frozen=True)
class Reading:
    """One way to read the names of a file's tensors as those of a model's.

    `names` maps each name in the model to that in the file, and also has the names under the
    prefix that the model lacks. `prefix` and the tokens `inside` were removed. `spellings` maps a
    key of SPELLINGS to the names in the file that are spelled so; `shared` each name in the model
    that the file lacks to that of the same tensor. `beside` are the names in the file of what is
    left aside; `others`, those of it that are not known to be no part of the network.
    """

    names: Mapping[str, str]
    prefix: str = ""
    inside: Sequence[str] = ()
    spellings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    beside: Sequence[str] = ()
    others: Sequence[str] = ()

    def log(self, path: Path) -> None:
        """Log what was done to the names, for the file at `path`."""
        if self.prefix:
            logger.info(f"{path}: removed the prefix {self.prefix!r} from the names of its tensors")
        if self.inside:
            logger.info(f"{path}: removed {', '.join(self.inside)} within the names of its tensors")
        for spelling, names in self.spellings.items():
            logger.info(
                f"{path}: the names of {len(names)} tensors are those of {spelling} "
                f"({some(names)}); read accordingly"
            )
        for name, same in self.shared.items():
            logger.info(f"{path}: {name} is the same tensor as {same}")
        if known := [name for name in self.beside if name not in self.others]:
            logger.info(f"{path}: ignored {len(known)} tensors ({some(known)})")
        if self.others:
            logger.warning(
                f"{path}: ignored {len(self.others)} tensors ({some(self.others)}); what they "
                "do to the outputs of the network is left out"
            )


# A tensor of the model as it may be called in a file.
@dataclass(frozen=True)
class _Spelled:
    name: str
    tokens: Tokens
    spelling: str | None = None


@dataclass(frozen=True)
class _Found:
    """A name in the file that is that of a tensor in the model, and what was done to it."""

    key: str
    spelling: str | None
    dropped: Tokens

    @property
    def cost(self) -> tuple[bool, int]:
        return self.spelling is not None, len(self.dropped)


_Group = dict[str, _Found]  # by the name in the model


def read_names(
    expected: Sequence[str],
    found: Sequence[str],
    tied: Tied | None = None,
    same: Mapping[str, str] | None = None,
) -> Reading:
    """The names `found` in a file, read as those `expected` of a model's tensors.

    Of several prefixes under which equally much of the model is found, that of no average is
    taken. A tensor that the model has under several names, as `tied` says, needs only one of them.
    `same` maps names in `found` to others there that stand for the same tensor. Raises Ambiguous,
    which is a MemtoolError, if the whole model is there under several prefixes.

    >>> reading = read_names(
    ...     ["fc.weight", "fc.bias"],
    ...     ["net.fc.module.weight", "net.fc.bias", "ema.fc.weight", "ema.fc.bias", "loss.weight"],
    ... )
    >>> reading.names
    {'fc.weight': 'net.fc.module.weight', 'fc.bias': 'net.fc.bias'}
    >>> reading.prefix, reading.inside, reading.beside
    ('net.', ['module'], ['ema.fc.weight', 'ema.fc.bias', 'loss.weight'])
    """
    tied = tied or {}
    groups = _groups(expected, found)
    missing = {prefix: len(_missing(expected, group, tied)) for prefix, group in groups.items()}
    fewest = min(missing.values(), default=0)
    prefix = _chosen([prefix for prefix in groups if missing[prefix] == fewest], whole=not fewest)
    group = groups.get(prefix, {})
    shared = _shared(expected, group, tied)
    group |= {name: group[same] for name, same in shared.items()}
    reading = Reading(
        names={name: group[name].key for name in expected if name in group},
        prefix="".join(f"{token}." for token in prefix),
        inside=sorted({token for match in group.values() for token in match.dropped}),
        spellings=_spellings(group),
        shared=shared,
    )
    same = same or {}
    used = {same.get(key, key) for key in reading.names.values()}
    leftovers = [key for key in found if same.get(key, key) not in used]
    return _with_leftovers(reading, leftovers, prefix)


def _missing(expected: Sequence[str], group: _Group, tied: Tied) -> list[str]:
    """The names of a model, counts of batches apart, that have no counterpart in a group."""
    return [
        name
        for name in expected
        if not name.endswith(UNCOUNTED) and group.keys().isdisjoint([name, *tied.get(name, ())])
    ]


def _shared(expected: Sequence[str], group: _Group, tied: Tied) -> dict[str, str]:
    """The names in a model without a counterpart, and another name of the same tensor with one."""
    missing = [name for name in _missing(expected, group, {}) if name in tied]
    return {
        name: other for name in missing for other in [*filter(group.__contains__, tied[name])][:1]
    }


def _spellings(group: _Group) -> dict[str, list[str]]:
    """The names in the file that others spell otherwise, by the key of SPELLINGS."""
    spellings: dict[str, list[str]] = {}
    for match in group.values():
        if match.spelling:
            spellings.setdefault(match.spelling, []).append(match.key)
    return spellings


def _chosen(prefixes: Sequence[Tokens], whole: bool) -> Tokens:
    """The prefix to remove: none if that is possible, else one that is of no average."""
    if not prefixes or () in prefixes:
        return ()
    weights = [prefix for prefix in prefixes if AVERAGES.isdisjoint(prefix)] or prefixes
    if whole and len(weights) > 1:
        raise Ambiguous(
            f"holds the whole model {len(weights)} times, under "
            f"{', '.join('.'.join(prefix) for prefix in weights)}; save the one that is meant alone"
        )
    return weights[0]


def _with_leftovers(reading: Reading, leftovers: Sequence[str], prefix: Tokens) -> Reading:
    """`reading`, which has the tensors of the model, with the other names in the file: those under
    the prefix that may be of the network, and what is left aside."""
    names, beside, others = dict(reading.names), [], []
    for key in leftovers:
        tokens = tuple(key.split("."))
        is_under = tokens[: len(prefix)] == prefix
        rest = tokens[len(prefix) :] if is_under else tokens
        if is_under and not _is_beside(rest):
            names[".".join(rest)] = key
            continue
        beside.append(key)
        if not _is_beside(rest):
            others.append(key)
    return replace(reading, names=names, beside=beside, others=others)


def _is_beside(tokens: Tokens) -> bool:
    """Whether this is no part of a network, but what training code keeps beside it."""
    first = next((token for token in tokens if token not in WRAPPERS - AVERAGES), "")
    return (
        first in AVERAGES or BESIDE.fullmatch(first) is not None or not LEFT.isdisjoint(tokens[-1:])
    )


# --- Which name in the file may be which in the model ---------------------------------------------


def _groups(expected: Sequence[str], found: Sequence[str]) -> dict[Tokens, _Group]:
    """What may be of the model, by prefix. A name that is exact comes before one from which tokens
    were dropped, and that before one of another spelling."""
    spelled: dict[Tokens, list[_Spelled]] = {}
    for name in expected:
        for one in _spelled(name):
            spelled.setdefault(_unwrapped(one.tokens), []).append(one)
    longest = max(map(len, spelled), default=0)
    groups: dict[Tokens, _Group] = {}
    for key in found:
        for prefix, (name, match) in _counterparts(key, spelled, longest).items():
            group = groups.setdefault(prefix, {})
            if name not in group or match.cost < group[name].cost:
                group[name] = match
    return groups


def _spelled(name: str) -> Iterator[_Spelled]:
    """The name of a tensor in a model, and how others spell it."""
    yield _Spelled(name, tuple(name.split(".")))
    for spelling, replacements in SPELLINGS.items():
        other = name
        for pattern, replacement in replacements:
            other = re.sub(pattern, replacement, other)
        if other != name:
            yield _Spelled(name, tuple(other.split(".")), spelling)


def _unwrapped(tokens: Tokens) -> Tokens:
    return tuple(token for token in tokens if token not in WRAPPERS)


def _counterparts(
    key: str, spelled: Mapping[Tokens, Sequence[_Spelled]], longest: int
) -> dict[Tokens, tuple[str, _Found]]:
    """The name in the model that a name in the file may be, for each prefix that it may have.
    `longest` is the number of tokens of the longest in `spelled`."""
    tokens = tuple(key.split("."))
    core = _unwrapped(tokens)
    best: dict[Tokens, tuple[str, _Found]] = {}
    for start in range(max(0, len(core) - longest), len(core) + 1):
        for one in spelled.get(core[start:], ()):
            if (aligned := _aligned(one.tokens, tokens)) is None:
                continue
            prefix, dropped = aligned
            match = _Found(key, one.spelling, dropped)
            if prefix not in best or match.cost < best[prefix][1].cost:
                best[prefix] = one.name, match
    return best


def _aligned(wanted: Tokens, tokens: Tokens) -> tuple[Tokens, Tokens] | None:
    """The prefix of `tokens` and those to drop further inside, so that `wanted` remains; None if
    others than WRAPPERS would have to be dropped.

    >>> _aligned(("0", "weight"), ("net", "0", "module", "weight"))
    (('net',), ('module',))
    """
    rest, dropped = list(tokens), []
    for token in reversed(wanted):
        while rest and rest[-1] != token and rest[-1] in WRAPPERS:
            dropped.append(rest.pop())
        if not rest or rest.pop() != token:
            return None
    return tuple(rest), tuple(dropped)
