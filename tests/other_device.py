"""A device that is not there: tensors that say they lie on it, compute on the CPU, and refuse to be mixed with others.

    with Elsewhere() as there:
        whisper = there.move(whisper)

As on a CUDA card, a product of a tensor here and one there raises, `.numpy()` there raises, an index may be on the CPU
and a mask there cannot index a tensor here. Numbers are the CPU's, so results can be compared bit for bit.
"""

import copy

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("meta")
"""A device of which PyTorch needs no card."""

INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Operations whose indices may be on the CPU, wherever the tensor is."""

MOVING = {"_to_copy", "copy_", "_copy_from", "to"}


class There(torch.Tensor):
    """A tensor of the other device; `real` has its numbers."""

    @staticmethod
    def __new__(cls, real: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            device=DEVICE, requires_grad=False,
        )  # fmt: skip
        made.real_ = real
        return made

    def __repr__(self):
        return f"There({self.real_!r})"

    def numpy(self, *, force=False):
        raise TypeError("can't convert a tensor of another device to numpy; use .cpu() first")

    def tolist(self):
        return self.real_.tolist()

    def __getitem__(self, key):
        return super().__getitem__(_listed(key))

    def __setitem__(self, key, value):
        super().__setitem__(_listed(key), value)

    def __deepcopy__(self, _memo):
        return There(self.real_.clone())

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def _listed(key):
    """An index with its lists as tensors: PyTorch would make them below every dispatcher."""
    parts = key if isinstance(key, tuple) else (key,)
    return tuple(torch.tensor(part) if isinstance(part, list) else part for part in parts)


def run(func, args, kwargs):
    flat, spec = tree_flatten((args, kwargs))
    name = func._schema.name.split("::")[1]
    tensors = [one for one in flat if isinstance(one, torch.Tensor)]
    there = any(isinstance(one, There) for one in tensors)
    if name in INDEXING:
        there = isinstance(args[0], There)
        values = list(args[2:3]) if "put" in name else []
        indices = [one for one in args[1] if one is not None]
        wrong = [one for one in indices if isinstance(one, There) and not there]
        wrong += [one for one in values if isinstance(one, There) != there and one.dim()]
    elif name in MOVING:
        wrong = []
    else:
        wrong = [one for one in tensors if there and not isinstance(one, There) and one.dim()]
    if wrong:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cpu and {DEVICE}")
    device = kwargs.get("device")
    if device is not None:
        there = torch.device(device).type == DEVICE.type
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        flat, spec = tree_flatten((args, kwargs))
    elif name == "copy_":
        there = isinstance(args[0], There)
    elif name in ("_local_scalar_dense", "is_nonzero", "equal"):
        there = False
    plain = tree_unflatten([one.real_ if isinstance(one, There) else one for one in flat], spec)
    found = func(*plain[0], **plain[1])
    if name.endswith("_") and isinstance(args[0], There) and found is args[0].real_:
        return args[0]
    return tree_map(lambda one: There(one) if there and isinstance(one, torch.Tensor) else one, found)


class _Made(TorchFunctionMode):
    """`torch.tensor` builds its tensor below every dispatcher."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return There(func(*args, **kwargs | {"device": "cpu"}))
        return func(*args, **kwargs)


class Elsewhere(TorchDispatchMode):
    """While it is entered, tensors can be made on and moved to the other device."""

    def __enter__(self):
        self.made = _Made()
        self.made.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.made.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def move(self, module: torch.nn.Module) -> torch.nn.Module:
        """A copy of a module whose parameters and buffers lie there."""
        moved = copy.deepcopy(module)
        for one in moved.modules():
            for name, part in list(one._parameters.items()):
                if part is not None:
                    del one._parameters[name]
                    one._buffers[name] = There(part.detach())
            for name, part in list(one._buffers.items()):
                if part is not None and not isinstance(part, There):
                    one._buffers[name] = There(part)
        return moved
