"""A stand-in of the calls of ``pycuda.driver`` that the launcher makes: memory is the host's, and launches are written down."""

import ctypes
import sys
import types
from types import SimpleNamespace

import numpy as np


class Error(Exception):
    """PyCUDA's."""


class Driver:
    """``loaded`` and ``launched`` hold what was asked of it; ``kernel`` is called in a launch's place."""

    def __init__(self, capability=(8, 6), refuses=None, kernel=None):
        self.capability, self.refuses, self.kernel = capability, refuses, kernel
        self.loaded, self.launched, self.attributes = [], [], {}

    def module_from_buffer(self, content):
        self.loaded.append(content)
        if self.refuses:
            raise Error(self.refuses)
        return SimpleNamespace(get_function=self._function)

    def _function(self, name):
        if f".entry {name}(".encode() not in self.loaded[-1]:
            raise Error(f"cuModuleGetFunction failed: named symbol not found: {name}")
        return Function(self, name)

    def to_device(self, array):
        memory = Memory(array.nbytes)
        ctypes.memmove(int(memory), array.ctypes.data, array.nbytes)
        return memory

    def mem_alloc(self, size):
        return Memory(size)

    def memcpy_dtoh(self, host, device):
        ctypes.memmove(host.ctypes.data, int(device), host.nbytes)


class Function:
    def __init__(self, driver, name):
        self.driver, self.name = driver, name

    def set_attribute(self, attribute, value):
        self.driver.attributes[attribute] = value

    def __call__(self, *arguments, block, grid, shared, stream):
        self.driver.launched.append((self.name, arguments, block, grid, shared, stream))
        if self.driver.kernel:
            self.driver.kernel(arguments)


class Memory:
    def __init__(self, size):
        self.bytes = ctypes.create_string_buffer(b"\xff" * size, size)  # NaN in every type until written

    def __int__(self):
        return ctypes.addressof(self.bytes)


def at(address, shape, dtype):
    """The numbers at an address, to be read and written."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(int(address)), dtype).reshape(shape)


def install(patch, driver):
    """Let ``import pycuda.driver`` find a stand-in."""
    module = types.ModuleType("pycuda.driver")
    module.Error = Error
    module.Context = SimpleNamespace(get_device=lambda: SimpleNamespace(compute_capability=lambda: driver.capability))
    module.function_attribute = SimpleNamespace(MAX_DYNAMIC_SHARED_SIZE_BYTES="dynamic shared bytes")
    for name in ("module_from_buffer", "to_device", "mem_alloc", "memcpy_dtoh"):
        setattr(module, name, getattr(driver, name))
    patch.setitem(sys.modules, "pycuda", types.ModuleType("pycuda"))
    patch.setitem(sys.modules, "pycuda.driver", module)
    patch.setitem(sys.modules, "pycuda.autoprimaryctx", types.ModuleType("pycuda.autoprimaryctx"))
