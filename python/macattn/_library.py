# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the shared library, and turns its statuses into exceptions.

The library is the one inside the package; the environment variable MACATTN_LIBRARY names another. Nothing else here
reads the environment.
"""
import ctypes as C
import functools
import operator
import os
import pathlib
import threading
import weakref

from . import _abi


class Error(RuntimeError):
    """A call that the library refused. `status` is its number, the text its sentence."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status


class ArgumentError(Error, ValueError):
    """An argument is missing, inconsistent, or out of its range."""


class UnsupportedError(Error, NotImplementedError):
    """A combination of types and sizes without a kernel, or an instruction set this machine lacks."""


class OutOfMemoryError(Error, MemoryError):
    """Host or device memory ran out."""


class StateError(Error):
    """The call is not valid now: no plan, a row that does not continue its slot, a layer computed twice."""


class DeviceError(Error):
    """There is no such GPU, it is too old, or its driver refused."""


class FormatError(Error, ValueError):
    """Saved state that is truncated, corrupt, or of another version or configuration."""


CLASSES = {
    _abi.E_ARG: ArgumentError, _abi.E_RANGE: ArgumentError, _abi.E_UNSUPPORTED: UnsupportedError,
    _abi.E_ISA: UnsupportedError, _abi.E_NOMEM: OutOfMemoryError, _abi.E_STATE: StateError,
    _abi.E_DEVICE: DeviceError, _abi.E_FORMAT: FormatError,
}
SENTENCE = 512  # bytes of room for an error's text


def path():
    """Where the library is loaded from."""
    return pathlib.Path(os.environ.get("MACATTN_LIBRARY") or pathlib.Path(__file__).with_name("libmacattn.so"))


@functools.cache
def load():
    """The library, loaded once. Loading needs no GPU."""
    file = path()
    try:
        library = C.CDLL(str(file))
        _abi.declare(library)
    except OSError as e:
        raise ImportError(f"macattn's library cannot be loaded: {e}. `pip install` builds it into the package; "
                          "MACATTN_LIBRARY names one built by CMake") from e
    except AttributeError as e:
        raise ImportError(f"{file} does not fit this package: {e}") from e
    # A library that knows more fields than this package would write past the end of its structs.
    room = (C.c_char * (C.sizeof(_abi.Config) + 1024))()
    config = _abi.Config.from_buffer(room)
    library.macattn_config_init(C.byref(config))
    if config.struct_size != C.sizeof(_abi.Config):
        raise ImportError(f"{file} (version {library.macattn_version().decode()}) does not fit this package: its "
                          f"configuration has {config.struct_size} bytes, not {C.sizeof(_abi.Config)}")
    return library


@functools.cache
def openmp():
    """The address of a macattn_parallel_for on the threads of the OpenMP runtime that this process has, or None."""
    try:
        library = C.CDLL(str(pathlib.Path(__file__).with_name("libmacattn-openmp.so")))
    except OSError:
        return None
    library.macattn_openmp.restype, library.macattn_openmp.argtypes = _abi.address, []
    return library.macattn_openmp()


def has_cuda():
    """Whether the library was built with its GPU side. Says nothing about this machine."""
    return hasattr(load(), "macattn_cuda_create")


def error(status, sentence=b""):
    """The exception for a status; without a sentence, the status's own text."""
    words = (sentence or load().macattn_status_string(status)).decode()
    return CLASSES.get(status, Error)(status, words)


def check(status, sentence=b""):
    if status != _abi.OK:
        raise error(status, sentence() if callable(sentence) else sentence)


def whole(value, what, bits=32):
    """A whole number for the library. ctypes would take the lowest bits of one that is too large, without a word."""
    try:
        n = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} is {value!r}, no whole number") from None
    if not -1 << bits - 1 <= n < 1 << bits - 1:
        raise ArgumentError(_abi.E_RANGE, f"{what} is {n}; it must be a number of {bits} bits")
    return n


class Owner:
    """What owns an object of the library: `_handle`, ended by functions whose names begin with `_prefix`. One thread at a
    time is in the library with it: another one is refused, since what the two asked for would be mixed."""

    _prefix = "macattn"
    _handle = None
    _gone = "the object is closed"
    _survives_forks = False

    def _own(self, library, handle):
        self._library, self._handle, self._lock = library, handle, threading.Lock()
        _owners.add(self)

    def _enter(self):
        """To be followed by self._lock.release()."""
        if self._handle is None:
            raise StateError(_abi.E_STATE, self._gone)
        if not self._lock.acquire(blocking=False):
            raise StateError(_abi.E_STATE, "another thread is in a call of this object, which one thread at a time can use")
        if self._handle is None:  # that thread closed it
            self._lock.release()
            raise StateError(_abi.E_STATE, self._gone)

    def _call(self, name, *arguments):
        self._enter()
        try:
            self._check(getattr(self._library, f"{self._prefix}_{name}")(self._handle, *arguments))
        finally:
            self._lock.release()

    def close(self):
        """Free everything (on a CPU, end the threads; a device must have finished with the object). Also done by `with`, and
        when the object is collected. Every later call raises a StateError, but another close()."""
        if self._handle is not None:
            self._enter()
            try:
                handle, self._handle = self._handle, None
                getattr(self._library, self._prefix + "_destroy")(handle)
            finally:
                self._lock.release()

    def _forked(self):
        if self._survives_forks:
            self._lock = threading.Lock()
        else:
            self._handle = None
            self._gone = "the object was made before this process was forked, and its threads stayed behind: make another"

    def __reduce_ex__(self, protocol):
        raise TypeError(f"{type(self).__name__} owns memory and threads of the library: it can be neither copied nor pickled")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        self.close()

    def _check(self, status):
        if status != _abi.OK:
            raise error(status, getattr(self._library, self._prefix + "_last_error")(self._handle))


_owners = weakref.WeakSet()


def _forked():
    for owner in tuple(_owners):
        owner._forked()


os.register_at_fork(after_in_child=_forked)
