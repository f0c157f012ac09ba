"""Any torch module: places in it by the names that torch gives them, what is said there of items, and answering there.

A *site* is the name of a module in `net.named_modules()`, and stands for what comes out of it: `encoder.layer.5` or, as
a pattern, `encoder.layer.*.output`. With `:in` after it, it is what goes into it. The hooks and the store are those
that Whisper has, so whatever reads a store reads this one too:

    facts = modules.write(folder, net, items, ["layers.1"], collate, positions=64)
    rows = activations.Activations(folder).rows("layers.1")

`collate` makes a batch of some items: `(inputs, kinds)`. Inputs are a tensor, a tuple or a dictionary, and the net is
called with them. Kinds, (item, position), say what a position is: 0 or False is padding and is never stored, anything
else counts; None if no position is padding.
"""

import fnmatch
import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whisper_sae.activations import store
from whisper_sae.model.hooks import watching

INTO = ":in"
COUNTS = 2
"""The kind of a position that counts, where `collate` says no more than that."""


class BadSite(ValueError):
    """A name or pattern that no module has, or a module that says nothing of items; one line, with the way out."""


def sites(net: nn.Module, wanted: Sequence[str] = ("*",)) -> list[str]:
    """The sites that match any of the names or patterns, in the order of the net. BadSite for one without a match."""
    there, found = [name for name, _ in net.named_modules() if name], set()
    for asked in wanted:
        pattern = asked.removesuffix(INTO)
        matches = fnmatch.filter(there, pattern)
        if not matches:
            some = ", ".join(there[:: max(1, len(there) // 8)][:8])
            raise BadSite(f"site: {asked!r} matches no module; `named_modules()` has {len(there)}, such as {some}")
        found |= {name + asked[len(pattern) :] for name in matches}
    return [name + side for name in there for side in (INTO, "") if name + side in found]


@contextmanager
def at(net: nn.Module, see: dict[str, Callable]):
    """`hooks.watching` at several sites at once: what a function returns is said instead, None changes nothing."""
    with ExitStack() as stack:
        for site, look in see.items():
            (name,) = sites(net, [site])[:1]
            module = net.get_submodule(name.removesuffix(INTO))
            stack.enter_context(watching(module, look, "input" if site.endswith(INTO) else "output"))
        yield


class _Enough(Exception):
    """All that was wanted has been heard: what comes after need not be computed."""


@torch.no_grad()
def record(net: nn.Module, inputs, wanted: Sequence[str], as_rows: Callable | None = None) -> dict[str, Tensor]:
    """What the named sites say: {site: (item, position, width)} float32. Nothing is computed beyond the last of them.

    A site that says one row an item, (item, width), has one position. `as_rows(site, hidden)` turns any other shape,
    such as an image's (item, channel, y, x), into three dimensions. BadSite where a site is not called at all.
    """
    heard: dict[str, Tensor] = {}

    def take(hidden, site):
        heard.setdefault(site, hidden)
        if len(heard) == len(wanted):
            raise _Enough

    with suppress(_Enough), at(net, {site: functools.partial(take, site=site) for site in wanted}):
        call(net, inputs)
    if missing := [site for site in wanted if site not in heard]:
        raise BadSite(f"site: {missing[0]} is never called when the net is given these inputs")
    return {site: _three(site, heard[site], as_rows) for site in wanted}


def call(net: nn.Module, inputs):
    """What the net answers: inputs are one tensor, a tuple of arguments or a dictionary of named ones."""
    if isinstance(inputs, Tensor):
        return net(inputs)
    return net(**inputs) if hasattr(inputs, "keys") else net(*inputs)


def _three(site: str, hidden, as_rows: Callable | None) -> Tensor:
    hidden = hidden if as_rows is None else as_rows(site, hidden)
    if isinstance(hidden, Tensor) and hidden.ndim == 2:
        hidden = hidden[:, None]
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        told = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
        raise BadSite(f"site: {site} says {told}; (item, width) or (item, position, width) is wanted: give as_rows")
    return hidden.float()


def write(
    folder: Path,
    net: nn.Module | Callable[[], nn.Module],
    items: Sequence,
    wanted: Sequence[str],
    collate: Callable[[list], tuple],
    *,
    positions: int,
    batch: int = 1,
    shard: int = 256,
    dtype: str = "float16",
    device: str | torch.device = "cpu",
    as_rows: Callable | None = None,
    progress: Callable = lambda items, **_how: items,
) -> dict:
    """Store what some sites say of every item, as `activations.write` does, and return its facts.

    `net` may be a function that loads it, which is then called only if anything is left to do. No item has more than
    `positions` positions. With a `batch` of 1 an item is heard alone and goes to the CPU at once: the least memory.
    """

    def begin() -> tuple[Callable, Callable]:
        loaded = (net if isinstance(net, nn.Module) else net()).to(device).eval()
        named = sites(loaded, wanted)

        def prepare(numbers: range) -> tuple:
            return collate([items[number] for number in numbers])

        def hear(numbers: range, ready: tuple) -> tuple[dict[str, Tensor], np.ndarray]:
            inputs, kinds = ready
            said = {site: x.cpu() for site, x in record(loaded, _moved(inputs, device), named, as_rows).items()}
            kinds = _kinds(kinds, said, numbers, positions)
            return {site: F.pad(x, (0, 0, 0, positions - x.shape[1])) for site, x in said.items()}, kinds

        return hear, prepare

    return store.write(folder, len(items), begin, shard=shard, batch=batch, dtype=dtype, progress=progress)


def _moved(inputs, device):
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if hasattr(inputs, "keys"):
        return {name: _moved(one, device) for name, one in inputs.items()}
    return tuple(_moved(one, device) for one in inputs) if isinstance(inputs, tuple | list) else inputs


def _kinds(kinds, said: dict[str, Tensor], numbers: range, positions: int) -> np.ndarray:
    """What each position is, (item, position) uint8, up to `positions`; without `kinds` all that was spoken counts."""
    for site, hidden in said.items():
        if len(hidden) != len(numbers):
            raise BadSite(f"site: {len(numbers)} items were given to the net, and {site} spoke of {len(hidden)}")
        spoken = hidden.shape[1]
        if spoken > positions:
            raise ValueError(f"positions: items {numbers[0]}-{numbers[-1]} have {spoken}; {positions} were foretold")
        told = np.full((len(numbers), spoken), COUNTS) if kinds is None else np.asarray(kinds)
        if told.shape != (len(numbers), spoken):
            raise BadSite(f"kinds: {site} spoke of {len(numbers)} x {spoken} positions, the kinds are {told.shape}")
    told = told.astype(np.uint8) * (COUNTS if told.dtype == bool else 1)
    return np.pad(told, ((0, 0), (0, positions - told.shape[1])))
