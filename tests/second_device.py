"""A second device on a machine that has none, where tensors of two devices do not mix.

It goes by the name "meta", whose guards and gradients need no driver; but its tensors have numbers,
which lie in the CPU's memory. Models and batches that are sent there are computed as ever, and a
tensor that was left behind is an error, as it would be on a GPU.
"""

import contextlib
from unittest import mock

import torch
from speechbrain.nnet import attention
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "meta"
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")  # by indices of the CPU, too


def _is_second(device):
    return device is not None and torch.device(device).type == DEVICE


def _inner(x):
    return x.inner if isinstance(x, _Tensor) else x


class _Tensor(torch.Tensor):
    is_meta = False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})

    # What PyTorch does for a tensor of "meta" before any operation that could be seen here.

    def __getitem__(self, index):
        def sent(x):
            return torch.tensor(x).to(DEVICE) if isinstance(x, list) else x

        return super().__getitem__(
            tuple(map(sent, index)) if isinstance(index, tuple) else sent(index)
        )

    def __setitem__(self, index, value):
        _check(f"a value of shape {getattr(value, 'shape', ())}", [self, value])
        index = tuple(map(_inner, index)) if isinstance(index, tuple) else _inner(index)
        with torch._C._DisableTorchDispatch():
            self.inner[index] = _inner(value)

    def new_tensor(self, data, dtype=None):
        return torch.tensor(data, dtype=dtype or self.dtype).to(DEVICE)

    def tolist(self):
        return self.inner.tolist()

    def numpy(self):
        raise TypeError("a tensor of the second device has to come to the CPU first")

    __array__ = numpy

    def __reduce_ex__(self, protocol):
        return self.inner.__reduce_ex__(protocol)


def _check(what, leaves):
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    second = [isinstance(x, _Tensor) for x in tensors]
    if any(second) and any(x.dim() and not there for x, there in zip(tensors, second)):
        where = [(tuple(x.shape), x.device.type) for x in tensors]
        raise RuntimeError(f"{what}: tensors of two devices: {where}")


def _run(operation, args, kwargs):
    leaves = tree_leaves((args, kwargs))
    name = operation.overloadpacket.__name__
    by_indices = name in _INDEXING and isinstance(args[0], _Tensor)
    if operation not in _COPIES and not by_indices:
        _check(operation, leaves)
    device = kwargs.get("device")
    inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
    if device is not None:
        inner_kwargs["device"] = torch.device("cpu")
    found = operation(*inner_args, **inner_kwargs)
    if operation is torch.ops.aten.copy_.default:
        return args[0]
    there = [x for x in leaves if isinstance(x, _Tensor)]
    if not (there if device is None else _is_second(device)):
        return found
    known = {id(x.inner): x for x in there}  # of operations in place

    def outer(x):
        if not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if id(x) in known else _Tensor(x)

    return tree_map(outer, found)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and _is_second(kwargs.get("device")):
            del kwargs["device"]
            return function(*args, **kwargs).to(DEVICE)
        return function(*args, **kwargs)


def _load(file, map_location=None, load=torch.load, **kwargs):
    if not _is_second(map_location):
        return load(file, map_location=map_location, **kwargs)
    content = load(file, map_location="cpu", **kwargs)
    return tree_map(lambda x: x.to(DEVICE) if isinstance(x, torch.Tensor) else x, content)


def _autocast_as_on_cpu(function):
    def called(*args, **kwargs):
        return function(*("cpu" if x == DEVICE else x for x in args), **kwargs)

    return called


@contextlib.contextmanager
def second_device():
    """Within it there is the second device, the name of which it gives."""
    with contextlib.ExitStack() as stack:
        for name in ("get_autocast_dtype", "is_autocast_enabled", "autocast"):
            patched = _autocast_as_on_cpu(getattr(torch, name))
            stack.enter_context(mock.patch.object(torch, name, patched))
        stack.enter_context(mock.patch.object(torch, "load", _load))
        # SpeechBrain keeps its rotary sines for the process, and a "meta" that is real may follow.
        sines = attention._get_precomputed_values.memo
        stack.enter_context(mock.patch.dict(sines, clear=True))
        name = "_get_fused_kernels_supported_devices"
        stack.enter_context(mock.patch.object(optimizer, name, lambda: ["cpu", DEVICE]))
        # A module's parameters become new ones, since these cannot take the place of the CPU's.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        stack.enter_context(_Constructors())
        stack.enter_context(_Operations())
        yield DEVICE
