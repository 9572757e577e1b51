"""A CUDA device that is not there, on a CPU build of torch: for every thread, and without a change to what runs on it.

A tensor on it says that it is on cuda:0. Small ones hold numbers, on the CPU; those of more than `Limits.numbers`
elements are only shapes, on torch's meta device. What CUDA refuses is refused, in its words: tensors of two devices in
one operation (a CPU tensor without dimensions and CPU indexes of a CUDA tensor are none), two dtypes in a product, a
convolution, an attention or a norm, a generator of another device. So is asking for the values of a shape.

`memory` counts the bytes of all storages on the device, each rounded up to the 512 of CUDA's allocator. The scratch
memory of kernels is not in it; attention counts as the fused kernels need it, by its output and one number a row.
"""

import contextlib
import ctypes
import dataclasses
import math
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# CUDA's kernels of these take tensors of one dtype only; those of the CPU and of meta are not all so strict.
ONE_DTYPE = {
    *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default),
    *(aten.linear.default, aten.native_layer_norm.default, aten.native_group_norm.default),
}
SOURCES = {aten.copy_.default, aten._to_copy.default}


@dataclasses.dataclass
class Limits:
    """What the device holds. made_up: say True, or 1.0, where a shape is asked for its value, to measure memory."""

    numbers: int = 50_000_000
    made_up: bool = False


limits = Limits()


class Memory:
    """Bytes on the device: now, and the most since `peak` was set."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}
        # Models are read in threads, and the collector may free in the middle of add().
        self._lock = threading.RLock()

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // 512) * 512
        with self._lock:
            if key not in self._known:
                self._known[key] = weakref.ref(storage, lambda _: self._free(key, size))
                self.now += size
                self.peak = max(self.peak, self.now)

    def reserve(self, size: int) -> None:
        """Count what a kernel needs while it runs."""
        self.peak = max(self.peak, self.now + size)

    def _free(self, key: int, size: int) -> None:
        with self._lock:
            del self._known[key]
            self.now -= size


memory = Memory()


class Gpu(torch.Tensor):
    """A tensor on the simulated device. held: its numbers on the CPU, or its shape on meta."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Gpu":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CUDA,
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held, self._kept = held, held.untyped_storage()
        memory.add(self._kept)

    def __repr__(self, **_: Any) -> str:
        return f"Gpu({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def wrap(held: Any) -> Any:
    return Gpu(held) if isinstance(held, torch.Tensor) and not isinstance(held, Gpu) else held


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Gpu) else value


def _shape(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _is_shape(tensor: torch.Tensor) -> bool:
    return bool(_held(tensor).device.type == "meta")


def _without_values(tensor: Gpu) -> Gpu:
    """Forget the numbers of a tensor into which went what is only a shape."""
    if not _is_shape(tensor):
        tensor.held = _shape(tensor.held)
    return tensor


def _on_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func in SOURCES:
        return _moved(func, args, kwargs)
    tensors: list[torch.Tensor] = []
    _map(lambda each: tensors.append(each) if isinstance(each, torch.Tensor) else None, (args, kwargs))
    gpus = [each for each in tensors if isinstance(each, Gpu)]
    device = kwargs.get("device")
    _check_generator(kwargs.get("generator"), gpus or _on_cuda(device))
    if not gpus:
        return _made_on(func, args, kwargs) if _on_cuda(device) else func(*args, **kwargs)
    _check_devices(func, args, tensors)
    if func in ONE_DTYPE:
        _check_dtypes([each for each in tensors if each.is_floating_point()], func)
    if func is aten._local_scalar_dense.default:
        return _value(args[0])
    shapes = any(_is_shape(each) for each in gpus)
    if shapes and func is aten.index.Tensor:
        args = (args[0], [place for index in args[1] for place in _places(index)])
    away = device is not None and not _on_cuda(device)
    given, more = _map(lambda each: _plain(each, shapes and not away), (args, kwargs))
    if shapes and not away:
        more.pop("pin_memory", None)
        more.pop("generator", None)
        result = _known_shape(func, given, more)
    else:
        result = func(*given, **more)
    if away:
        return result
    if func._schema.is_mutable:
        changed = kwargs.get("out", args[0])
        return _without_values(changed) if shapes else changed
    return _map(wrap, result)


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    """Return value with change applied to all that is in its lists, tuples and dicts. Quicker than a tree_map."""
    if isinstance(value, list | tuple):
        return type(value)([_map(change, each) for each in value])
    if isinstance(value, dict):
        return {name: _map(change, each) for name, each in value.items()}
    return change(value)


def _plain(value: Any, shapes: bool) -> Any:
    """Return what the operation runs on in place of value: on meta if shapes, else on the CPU."""
    if isinstance(value, torch.Tensor):
        held = _held(value)
        return _shape(held) if shapes and held.device.type != "meta" and held.dim() else held
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("meta" if shapes else "cpu")
    return value


_shapes_made: dict[Any, Any] = {}


def _known_shape(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run the operation on meta, or repeat what it made of the same shapes: that takes long in Python."""
    returns = func._schema.returns
    if func._schema.is_mutable or any(str(each.type) != "Tensor" or each.alias_info for each in returns):
        return func(*args, **kwargs)
    key = func, _known(args), _known(list(kwargs.items()))
    if key not in _shapes_made:
        made = func(*args, **kwargs)
        several = made if isinstance(made, tuple) else (made,)
        _shapes_made[key] = [(each.shape, each.stride(), each.dtype) for each in several]
        return made
    again = [
        torch.empty_strided(shape, stride, dtype=dtype, device="meta") for shape, stride, dtype in _shapes_made[key]
    ]
    return tuple(again) if len(again) > 1 else again[0]


def _known(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device.type
    return tuple(map(_known, value)) if isinstance(value, list | tuple) else (type(value), value)


def _moved(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Copy between devices, or into another dtype."""
    if func is aten.copy_.default:
        to, source = _held(args[0]), _held(args[1])
        if source.device.type == "meta" and isinstance(args[0], Gpu):
            return _without_values(args[0])
        _refuse_values(args[1], limits.made_up)
        if to.device.type != "meta" and source.device.type != "meta":
            to.copy_(source)
        return args[0]
    (source,), more = args, {**kwargs, "non_blocking": False}
    device = torch.device(more.pop("device", None) or source.device)
    held = _held(source)
    if device.type == "meta":
        return func(_shape(held), **more)
    if device.type != "cuda":
        _refuse_values(source, limits.made_up)
        return func(held if not _is_shape(source) else torch.zeros(held.shape, dtype=held.dtype), **more)
    if held.numel() > limits.numbers and held.device.type != "meta":
        held = _shape(held)
    if held.device.type == "meta":
        more.pop("pin_memory", None)
    made = func(held, **more)
    return wrap(made.clone() if made.untyped_storage()._cdata == held.untyped_storage()._cdata else made)


def _made_on(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Make a tensor on the device, out of none."""
    more = {name: value for name, value in kwargs.items() if name not in ("pin_memory", "generator")}
    shape = func(*args, **{**more, "device": "meta"})
    if not isinstance(shape, torch.Tensor) or shape.numel() > limits.numbers:
        return _map(wrap, shape)
    return wrap(func(*args, **{**more, "device": "cpu"}))


def _check_generator(generator: Any, cuda: Any) -> None:
    if generator is not None and cuda and generator.device.type != "cuda":
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{generator.device.type}'")


def _check_devices(func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    indexes = {id(each) for each in args[1] or ()} if func in INDEXED and isinstance(args[0], Gpu) else set()
    for each in tensors:
        if not isinstance(each, Gpu) and each.dim() > 0 and id(each) not in indexes:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({func}, {tuple(each.shape)})"
            )


def _check_dtypes(tensors: list[torch.Tensor], what: Any) -> None:
    dtypes = {each.dtype for each in tensors}
    if len(dtypes) > 1:
        raise RuntimeError(f"expected all tensors to have the same dtype, but got {sorted(map(str, dtypes))} ({what})")


def _refuse_values(tensor: torch.Tensor, allowed: bool = False) -> None:
    if _is_shape(tensor) and not allowed:
        raise RuntimeError(f"The simulated GPU holds no values of a tensor of {tuple(tensor.shape)}, only its shape.")


def _value(tensor: Gpu) -> Any:
    # An integer may be a size: then what follows would be too small.
    _refuse_values(tensor, limits.made_up and (tensor.dtype == torch.bool or tensor.is_floating_point()))
    return torch.ones((), dtype=tensor.dtype).item() if _is_shape(tensor) else tensor.held.item()


def _places(index: Any) -> list[Any]:
    """Return what a mask of numbers chooses, one index a dimension: meta cannot know how many elements these are."""
    if index is None or index.dtype != torch.bool or _is_shape(index):
        return [index]
    return [wrap(each) for each in _held(index).nonzero().unbind(1)]


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run what torch does in C++ before an operation, where that would look for a real device."""
    if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        index = tuple(torch.tensor(each) if isinstance(each, list) else each for each in index)
        args = (args[0], index if isinstance(args[1], tuple) else index[0], *args[2:])
    if func is torch.Tensor.tolist:
        _refuse_values(args[0])
        return args[0].held.tolist()
    if func is torch.Tensor.numpy:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")
    if func is torch.nn.functional.scaled_dot_product_attention:
        return _attention(*args, **kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def _attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
    tensors = [each for each in (query, key, value, attn_mask) if each is not None]
    if not all(isinstance(each, Gpu) for each in tensors):
        raise RuntimeError("Expected query, key, value and attn_mask to be on the same device, cuda:0")
    checked = tensors[:3] if attn_mask is None or attn_mask.dtype == torch.bool else tensors
    _check_dtypes(checked, "scaled_dot_product_attention")
    if not any(_is_shape(each) for each in tensors):
        made = torch.nn.functional.scaled_dot_product_attention(
            query.held, key.held, value.held, _held(attn_mask), *args, **kwargs
        )
        return wrap(made)
    # The logarithm of the sum of each row, in float32. Flash attention pads what is no multiple of 8.
    pad = -query.shape[-1] % 8
    copies = sum(math.prod(each.shape[:-1]) * pad * each.element_size() for each in (query, key, value))
    output = query.new_empty((*query.shape[:-1], value.shape[-1]))
    memory.reserve(math.prod(query.shape[:-1]) * 4 + (copies if pad else 0))
    return output


def _install_guard() -> None:
    """Give torch's CPU build what it asks for the current device of cuda: the guard of meta, but for three functions.

    c10/core/impl/DeviceGuardImplInterface.h: type, exchangeDevice and getDevice are the first in its table.
    """
    name = "libc10.dylib" if sys.platform == "darwin" else "libc10.so"
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
    registry = (ctypes.c_void_p * 64).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    kind, meta = int(torch._C._autograd.DeviceType.CUDA), int(torch._C._autograd.DeviceType.Meta)
    table = (ctypes.c_void_p * 40).from_buffer_copy(
        ctypes.string_at(ctypes.c_void_p.from_address(registry[meta]).value, 40 * ctypes.sizeof(ctypes.c_void_p))
    )
    # A Device is two bytes: its type, and its index, which is 0. So both are this number.
    functions = [ctypes.CFUNCTYPE(ctypes.c_int16, ctypes.c_void_p)(lambda _: kind)]
    functions += [ctypes.CFUNCTYPE(ctypes.c_int16, ctypes.c_void_p, ctypes.c_int16)(lambda _, __: kind)]
    functions += [functions[0]]
    for slot, function in enumerate(functions):
        table[slot] = ctypes.cast(function, ctypes.c_void_p).value
    guard = ctypes.c_void_p(ctypes.addressof(table))
    registry[kind] = ctypes.addressof(guard)
    _install_guard.kept = table, functions, guard  # type: ignore[attr-defined]


def _kernel(make: Callable[..., torch.Tensor]) -> Callable[..., Gpu]:
    def kernel(size: Any, *rest: Any, dtype: Any = None, **_: Any) -> Any:
        return wrap(make(size, *rest, dtype=dtype, device="cpu" if math.prod(size) <= limits.numbers else "meta"))

    return kernel


def _register_kernels() -> torch.library.Library:
    """Register what makes a tensor on cuda in C++, `.to()` and `torch.tensor()` among it."""
    library = torch.library.Library("aten", "IMPL")
    made = {
        "empty.memory_format": _kernel(torch.empty),
        "empty_strided": _kernel(torch.empty_strided),
        "arange": lambda end, *, dtype=None, **_: wrap(torch.arange(end, dtype=dtype)),
        "arange.start": lambda start, end, *, dtype=None, **_: wrap(torch.arange(start, end, dtype=dtype)),
        "arange.start_step": lambda start, end, step=1, *, dtype=None, **_: wrap(
            torch.arange(start, end, step, dtype=dtype)
        ),
        "copy_": lambda to, source, non_blocking=False: _moved(aten.copy_.default, (to, source), {}),
        "_local_scalar_dense": _value,
    }
    for name, kernel in made.items():
        library.impl(name, kernel, "CUDA")
    return library


def take_gguf(replace: Callable[[Any, str, Any], None]) -> None:
    """Let diffusers put packed tensors of a GGUF file on the device. replace: sets an attribute of an object.

    It makes them a subclass of a tensor's data, and that of a Gpu is elsewhere: here they stay a Gpu.
    """
    from diffusers.quantizers.gguf.utils import GGML_QUANT_SIZES, GGUFParameter, _quant_shape_from_byte_shape

    true = GGUFParameter.__new__

    class Packed(Gpu):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = _call(func, args, kwargs or {})
            return new(cls, made, quant_type=args[0].quant_type) if func is torch.Tensor.detach else made

        def as_tensor(self) -> Gpu:
            return Gpu(self.held)

    def new(cls: Any, data: Any, requires_grad: bool = False, quant_type: Any = None) -> Any:
        if not isinstance(data, Gpu):
            return true(cls, data, requires_grad, quant_type)
        block, size = GGML_QUANT_SIZES[quant_type]
        packed = Packed(data.held)
        packed.quant_type, packed.quant_shape = quant_type, _quant_shape_from_byte_shape(data.shape, size, block)
        packed._is_param = True
        return packed

    replace(GGUFParameter, "__new__", new)


LIBRARIES: list[torch.library.Library] = []


@contextlib.contextmanager
def device(total_bytes: int = 80 * 2**30) -> Iterator[Memory]:
    """Let torch say that there is a GPU, in this block."""
    if not LIBRARIES:
        _install_guard()
        LIBRARIES.append(_register_kernels())
        torch.__future__.set_overwrite_module_params_on_conversion(True)
    answers: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_capability": lambda *_: (9, 0),
        "memory_allocated": lambda *_: memory.now,
        "memory_reserved": lambda *_: memory.now,
        "mem_get_info": lambda *_: (total_bytes - memory.now, total_bytes),
    }
    true = {name: getattr(torch.cuda, name) for name in answers}
    try:
        for name, answer in answers.items():
            setattr(torch.cuda, name, answer)
        yield memory
    finally:
        for name, answer in true.items():
            setattr(torch.cuda, name, answer)
