# SPDX-License-Identifier: Apache-2.0
"""Settings as the library knows them: names, ranges and defaults are its own, none is written down here."""
import dataclasses
import functools

from . import _abi
from ._library import SENTENCE, check, load


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting of an object: an argument of `Attention` and `CudaAttention` of the same name.

    `low` and `high` are the smallest and largest value, both allowed; an `initial` below `low` has to be set.
    `policies` are the names of the policies that look at it. Policies and types are given by name.
    """
    name: str
    about: str
    type: str  # "integer", "real", "policy" or "dtype"
    low: float
    high: float
    initial: float
    policies: tuple[str, ...]


TYPES = {_abi.SETTING_INTEGER: "integer", _abi.SETTING_REAL: "real", _abi.SETTING_POLICY: "policy",
         _abi.SETTING_DTYPE: "dtype"}


def _names(function):
    names, i = [], 0
    while (name := function(i)) is not None:
        names.append(name.decode())
        i += 1
    return tuple(names)


@functools.cache
def policies() -> tuple[str, ...]:
    """Names of the policies; a policy's number is its place."""
    return _names(load().macattn_policy_name)


@functools.cache
def dtypes() -> tuple[str, ...]:
    """Names of the element types; a type's number is its place."""
    return _names(load().macattn_dtype_name)


@functools.cache
def settings() -> tuple[Setting, ...]:
    """All settings, in the library's order."""
    found, i = [], 0
    while s := load().macattn_setting_at(i):
        s = s.contents
        found.append(Setting(s.name.decode(), s.about.decode(), TYPES[s.type], s.low, s.high, s.initial,
                             tuple(p for k, p in enumerate(policies()) if s.policies >> k & 1)))
        i += 1
    return tuple(found)


def longest_ring():
    """What a ring of 0, the policy's own, is at most."""
    return int(next(s.high for s in settings() if s.name == "ring"))


def apply(config, values):
    """Set fields of an _abi.Config by name: numbers, or names of policies and types."""
    library, words = load(), _abi.buffer(SENTENCE)
    for name, value in values.items():
        if not library.macattn_setting_find(name.encode()):
            raise TypeError(f"there is no setting {name!r}; there are: {', '.join(s.name for s in settings())}")
        if isinstance(value, str):
            status = library.macattn_setting_parse(_abi.byref(config), name.encode(), value.encode(), words, SENTENCE)
        else:
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError):
                raise TypeError(f"{name} is {value!r}, neither a number nor a name") from None
            status = library.macattn_setting_set(_abi.byref(config), name.encode(), number, words, SENTENCE)
        check(status, words.value)


def new_config(values):
    config = _abi.Config()
    check(load().macattn_config_init(_abi.byref(config)))
    apply(config, values)
    return config


def read(config):
    """A configuration's settings as a dict; policies and types by name."""
    library, value, found = load(), _abi.f64(), {}
    for s in settings():
        check(library.macattn_setting_get(_abi.byref(config), s.name.encode(), _abi.byref(value)))
        v = value.value
        found[s.name] = (policies()[int(v)] if s.type == "policy" else dtypes()[int(v)] if s.type == "dtype"
                         else int(v) if s.type == "integer" else v)
    return found
