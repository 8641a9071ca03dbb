"""Looking at objects of the user's without asking them.

A class may answer for attributes that it does not have, in ``__getattr__`` or ``__getattribute__``, and do
anything then: raise whatever it likes, connect to something, or make up what was asked for. What is sent only
has to be pickled, so here such methods are passed by. Runs on both sides.
"""

from __future__ import annotations

import sys
import types
from typing import Any

# As in `_remote`.
__floe_hidden__ = True


def attribute(obj: Any, name: str, default: Any = None) -> Any:
    """An attribute that an object or its class has.

    Args:
        obj: Any object, also a class or a module.
        name: The attribute's name.
        default: What is returned if there is no such attribute.

    Returns:
        The attribute, as Python finds it where no class says otherwise. Only a property of this very name is
        called, and one that raises something is as none.
    """
    if type(obj) is types.MethodType:
        # A bound method has what its function has.
        return attribute(obj.__func__, name, default)
    try:
        return object.__getattribute__(obj, name)
    except Exception:
        return default


def answers(obj: Any, name: str) -> bool:
    """Whether an object that will be used by an attribute has it, which its own methods may say."""
    try:
        return hasattr(obj, name)
    except Exception:
        return False


def imported(library: str) -> Any:
    """A module, None until it is imported to its end: before, nobody has an object of its classes."""
    module = sys.modules.get(library)
    return None if getattr(getattr(module, "__spec__", None), "_initializing", False) else module


def is_a(obj: Any, *classes: type) -> bool:
    """Whether an object is of one of these classes. `isinstance` would ask it for its `__class__`."""
    return issubclass(type(obj), classes)


def module_of(cls: type) -> Any:
    """What a class says of the module that it is of, whatever its metaclass makes of getting attributes."""
    return type.__getattribute__(cls, "__module__")


def name_of(cls: type) -> str:
    """A class's name, with its module unless it is of Python's own."""
    name = type.__getattribute__(cls, "__qualname__")
    module = module_of(cls)
    return name if module == "builtins" else f"{module}.{name}"
