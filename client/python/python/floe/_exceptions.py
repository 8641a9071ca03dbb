"""Exceptions as bytes: whatever is in them, and never more of it than fits.

Pickling an exception calls its class with its arguments again, which many classes do not bear, forgets its
cause and its context, and fails with the first thing in it that cannot be pickled. So an exception is taken
apart here: its class, its arguments, its attributes, each by itself, and references to other exceptions by
their number. It is put together again without calling its constructor, unless its class says how it wants to
be pickled. What cannot be sent is replaced by something that looks like it, and a note says so.
"""

from __future__ import annotations

import copyreg
import functools
import io
import pickle
import reprlib
import sys
import types
from typing import Any, Callable

from ._looking import is_a, module_of, name_of

# As in `_remote`.
__floe_hidden__ = True

#: How many exceptions travel together at most: causes, contexts, members of groups.
_MAX_EXCEPTIONS = 100

#: How many exceptions of a group travel with it.
_MAX_MEMBERS = 50

#: How long the text of something that stayed behind may be.
_MAX_TEXT = 200

#: A text or bytes within an exception are cut to this if the whole is too large.
_MAX_KEPT = 2048

#: How many sentences say what is missing.
_MAX_MISSING = 8

#: What the bytes take besides classes and records, those sentences above all.
_FRAME = 4 << 10

#: A record that has no more room than this is left out.
_LEAST = 256

_PLAIN = (str, int, float, bool, bytes, type(None))

#: By these a class says how its objects are pickled.
_OWN_PICKLING = (
    "__reduce_ex__",
    "__reduce__",
    "__getstate__",
    "__setstate__",
    "__getnewargs__",
    "__getnewargs_ex__",
)

#: That a class is made by `class`, or by a library, rather than by Python itself.
_HEAPTYPE = 1 << 9

#: Attributes of Python's own exceptions that their pickles do not have either: the object whose attribute was
#: missing may be anything.
_NOT_SENT = {(AttributeError, "obj")}


class Unsent:
    """Stands in an exception for something that could not be sent; it prints as that did."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def encode(error: BaseException, limit: int, pickler: type) -> bytes:
    """An exception, with all that hangs on it, in at most `limit` bytes; empty if that is too little.

    `pickler` is the class that pickles by value.
    """
    room = limit
    while room > _FRAME:
        data = _Encoder(room - _FRAME, pickler).encode(error)
        if len(data) <= limit:
            return data
        room = room * 3 // 4
    return b""


def decode(data: bytes, absent: Callable[[str], BaseException]) -> tuple[BaseException, bool, list[str]]:
    """The exception, whether it is itself, and sentences on what is missing of it.

    `absent` makes an exception that stands for one whose class cannot be had, of its type and text.
    """
    return _Decoder(data, absent).decode()


def reduced(error: BaseException) -> Any:
    """How an exception among other values is taken apart; NotImplemented if its class knows better.

    As in other pickles, what caused it stays behind.
    """
    if type(error) in copyreg.dispatch_table or _has_own_pickling(type(error)):
        return NotImplemented
    parts = _taken_apart(error)
    made = parts.pop("made", parts.get("args", ()))
    return _shell, (type(error), list(made)), parts, None, None, _fill


class _TooLarge(Exception):
    """There is no room for what is to be pickled."""


class _Bounded(io.BytesIO):
    """A file that takes so many bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise _TooLarge
        return super().write(data)


class _Encoder:
    """Takes an exception apart."""

    def __init__(self, room: int, pickler: type) -> None:
        self.room = room
        self.pickler = _numbering(pickler)
        #: All exceptions that were met; their numbers are their places.
        self.met: list[BaseException] = []
        #: Those that were too many.
        self.refused: set[int] = set()
        self.numbers: dict[int, int] = {}
        self.classes: list[tuple[bytes, str, str]] = []
        self.class_numbers: dict[type, int] = {}
        self.missing: list[str] = []

    def encode(self, error: BaseException) -> bytes:
        self.number(error)
        records: list[Any] = []
        while len(records) < len(self.met):
            if self.room < _LEAST:
                break
            record = self.record(self.met[len(records)])
            self.room -= len(record)
            records.append(record)
        left = len(self.met) - len(records) + len(self.refused)
        if left:
            self.missing.append(f"{left} of the exceptions that belong to it, which are too many")
        if not records:
            return b""
        return pickle.dumps((self.classes, records, self.missing[:_MAX_MISSING]), pickle.DEFAULT_PROTOCOL)

    def number(self, error: BaseException) -> int | None:
        """The number of an exception; none if there are too many."""
        number = self.numbers.get(id(error))
        if number is None:
            if len(self.met) == _MAX_EXCEPTIONS:
                self.refused.add(id(error))
                return None
            number = self.numbers[id(error)] = len(self.met)
            self.met.append(error)
        return number

    def record(self, error: BaseException) -> bytes:
        number = self.class_number(type(error))
        described = {"line": _line(error), "class": number, "links": self.links(error)}
        # Each has most of the room that those before it left.
        room = self.room * 3 // 4
        custom = self.custom(error, room)
        if custom is not None:
            return self.packed({**described, "custom": custom})
        parts = _taken_apart(error)
        members = len(_of_group(error)[1]) if _is_group(type(error)) else 0
        if members > _MAX_MEMBERS:
            self.missing.append(f"{members - _MAX_MEMBERS} of its {members} exceptions, which are too many")
        # First as it is; if that is too much, what is long is cut; at last only what it is remains.
        for cut in (room, _MAX_KEPT, 64):
            missing: list[str] = []
            sent = {name: self.part(name, value, cut, missing) for name, value in parts.items()}
            packed = self.packed({**described, "parts": sent})
            if len(packed) <= room:
                self.missing += dict.fromkeys(missing)
                return packed
        self.missing.append("its arguments and attributes, which are too large")
        return self.packed({**described, "parts": {}})

    def packed(self, record: dict[str, Any]) -> bytes:
        return pickle.dumps(record, pickle.DEFAULT_PROTOCOL)

    def links(self, error: BaseException) -> tuple[int | None, int | None, bool]:
        cause, context = _get(error, "__cause__"), _get(error, "__context__")
        return (
            self.number(cause) if cause is not None else None,
            self.number(context) if context is not None else None,
            _get(error, "__suppress_context__"),
        )

    def class_number(self, cls: type) -> int:
        number = self.class_numbers.get(cls)
        if number is None:
            try:
                data = self.pickled(cls, self.room // 2)
                if pickle.loads(data) is not cls:
                    data = b""
            except Exception:
                data = b""
            self.room -= len(data)
            number = self.class_numbers[cls] = len(self.classes)
            self.classes.append((data, str(cls.__module__), cls.__qualname__))
        return number

    def custom(self, error: BaseException, room: int) -> bytes | None:
        """What its class takes it apart into, if that has a way of its own, and the way leads back."""
        cls = type(error)
        if cls not in copyreg.dispatch_table and not _has_own_pickling(cls):
            return None
        try:
            reducer = copyreg.dispatch_table.get(cls)
            taken = reducer(error) if reducer is not None else error.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
            if not isinstance(taken, tuple) or len(taken) > 3:
                return None
            data = self.pickled(taken, room)
            again = _put_together(*_Loader(data, self.met.__getitem__).load())
            return data if type(again) is cls else None
        except BaseException:  # It is the user's code, and may do anything.
            return None

    def part(self, name: str, value: Any, cut: int, missing: list[str]) -> Any:
        """Something of an exception, as it is sent."""
        if name in ("args", "made"):
            return tuple(self.part(f"argument {i}", item, cut, missing) for i, item in enumerate(value))
        if type(value) in _PLAIN:
            if isinstance(value, (str, bytes)) and len(value) > cut:
                missing.append(f"the rest of its {name}, which has {len(value)} {_unit(value)}")
                rest = f"... (cut: {len(value)} {_unit(value)} are too many to send)"
                return value[:cut] + rest if isinstance(value, str) else value[:cut] + rest.encode()
            if not isinstance(value, int) or value.bit_length() < 8 * cut:
                return value
        if isinstance(value, list) and name == "attribute '__notes__'" and all(type(n) is str for n in value):
            return _Pickled(self.pickled([self.part("note", note, cut, missing) for note in value], 1 << 30))
        try:
            data = self.pickled(value, cut)
            _Loader(data, self.met.__getitem__).load()
        except _TooLarge:
            missing.append(f"its {name}, a {_kind(value)}, which is too large")
        except BaseException as why:  # It is the user's code, and may do anything.
            missing.append(f"its {name}, a {_kind(value)} ({_line(why)[:_MAX_TEXT]})")
        else:
            return _Pickled(data)
        return Unsent(_text(value))

    def pickled(self, value: Any, room: int) -> bytes:
        file = _Bounded(room)
        pickler = self.pickler(file, pickle.DEFAULT_PROTOCOL)
        pickler.encoder = self
        pickler.dump(value)
        return file.getvalue()


@functools.lru_cache(maxsize=4)
def _numbering(pickler: type) -> Any:
    """The class of picklers that name exceptions by their numbers."""

    class Numbering(pickler):
        encoder: _Encoder

        def persistent_id(self, obj: Any) -> Any:
            if not is_a(obj, BaseException):
                return None
            number = self.encoder.number(obj)
            return ("left out", _line(obj)) if number is None else number

    return Numbering


class _Pickled:
    """A pickle within a record."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        return _Pickled, (self.data,)


class _Loader(pickle.Unpickler):
    """Unpickles what may refer to exceptions by their numbers."""

    def __init__(self, data: bytes, exception: Callable[[int], Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._exception = exception

    def persistent_load(self, pid: Any) -> Any:
        return self._exception(pid) if isinstance(pid, int) else Unsent(f"<{pid[1]}>")


class _Circle(Exception):
    """An exception is needed to make itself."""


class _Decoder:
    """Puts an exception together again."""

    def __init__(self, data: bytes, absent: Callable[[str], BaseException]) -> None:
        self.classes, records, self.missing = pickle.loads(data)
        self.records = [pickle.loads(record) for record in records]
        self.absent = absent
        self.made: dict[int, BaseException] = {}
        self.making: set[int] = set()
        #: Those whose class, or whose own way of unpickling, is not to be had.
        self.strange: set[int] = set()

    def decode(self) -> tuple[BaseException, bool, list[str]]:
        for number in range(len(self.records)):
            self.exception(number)
        for number, error in self.made.items():
            record = self.records[number]
            if number not in self.strange and "parts" in record:
                self.fill(error, record["parts"])
            cause, context, suppress = record["links"]
            set_own(error, "__cause__", self.linked(cause))
            set_own(error, "__context__", self.linked(context))
            set_own(error, "__suppress_context__", suppress)
        return self.made[0], 0 not in self.strange, self.missing

    def linked(self, number: int | None) -> BaseException | None:
        return None if number is None else self.made.get(number)

    def exception(self, number: int) -> Any:
        known = self.made.get(number)
        if known is not None:
            return known
        if number >= len(self.records):
            return Unsent("<an exception that was left out>")
        if number in self.making:
            raise _Circle
        self.making.add(number)
        record = self.records[number]
        try:
            cls = self.class_of(record["class"])
            if "custom" in record:
                error = _put_together(*_Loader(record["custom"], self.exception).load())
            else:
                parts = record["parts"]
                error = _shell(cls, list(map(self.value, parts.get("made", parts.get("args", ())))))
            if type(error) is not cls:
                raise TypeError(f"it came as {type(error)}")
        except _Circle:
            error = _shell(cls, [])
        except BaseException as why:  # It is the user's code, and may do anything.
            if number == 0:
                self.missing.append(
                    f"the exception itself, which cannot be had here ({_line(why)[:_MAX_TEXT]})"
                )
            self.strange.add(number)
            error = self.absent(record["line"])
        self.made[number] = error
        return error

    def class_of(self, number: int) -> Any:
        data, module, name = self.classes[number]
        if data:
            return pickle.loads(data)
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            try:
                found = getattr(found, part, None)
            except Exception:  # A module may answer for what it does not have, and so may a metaclass.
                found = None
        if not isinstance(found, type) or not issubclass(found, BaseException):
            raise TypeError(f"the class {module}.{name} cannot be sent, and there is none of this name")
        return found

    def value(self, part: Any) -> Any:
        if not isinstance(part, _Pickled):
            return part
        return _Loader(part.data, self.exception).load()

    def fill(self, error: BaseException, parts: dict[str, Any]) -> None:
        for name, part in parts.items():
            if name == "made":
                continue
            try:
                value = tuple(map(self.value, part)) if name == "args" else self.value(part)
            except BaseException as why:  # It is the user's code, and may do anything.
                self.missing.append(f"its {name}, which cannot be had here ({_line(why)[:_MAX_TEXT]})")
                continue
            _fill(error, {name: value})


def _fill(error: BaseException, parts: dict[str, Any]) -> None:
    for name, value in parts.items():
        kind, _, key = name.partition(" ")
        if name == "args":
            set_own(error, "args", value)
        elif kind == "attribute":
            _attributes(error)[key[1:-1]] = value
        else:
            for descriptor in _members(type(error)).get(key[1:-1], ()):
                try:
                    descriptor.__set__(error, value)
                except BaseException:  # It cannot be set, since it follows from the arguments.
                    pass


# What exceptions consist of.


def _taken_apart(error: BaseException) -> dict[str, Any]:
    cls = type(error)
    arguments = made = _get(error, "args")
    if not _has_own_pickling(cls):
        # The arguments that Python's own class wants, of which `args` may have fewer.
        try:
            reduced = error.__reduce__()
            made = reduced[1] if isinstance(reduced, tuple) else made
        except Exception:
            pass
    parts: dict[str, Any] = {"args": arguments}
    if _is_group(cls):
        # What its own constructor was called with may be something else.
        message, members = _of_group(error)
        made = (message, *members[:_MAX_MEMBERS])
        if len(members) > len(made) - 1 or len(arguments) == 2 and arguments[0] is made[0]:
            del parts["args"]
    if made is not arguments:
        parts["made"] = made
    for name, descriptors in _members(cls).items():
        for descriptor in descriptors:
            try:
                value = descriptor.__get__(error, cls)
            except Exception:  # It is not set.
                continue
            # Python's own follow from the arguments, unless somebody set them; None is what is not set.
            own = descriptor.__objclass__.__flags__ & _HEAPTYPE
            if own or not any(value is known for known in (None, *made)):
                parts[f"member {name!r}"] = value
    for name, value in _attributes(error).items():
        parts[f"attribute {name!r}"] = value
    return parts


def _members(cls: type) -> dict[str, list[Any]]:
    """What objects of a class have besides their dictionary: slots, and what Python's own exceptions have."""
    members: dict[str, list[Any]] = {}
    for base in cls.__mro__:
        if base in (BaseException, object) or _is_group(base) and base.__module__ == "builtins":
            continue
        for name, member in vars(base).items():
            known = isinstance(member, (types.MemberDescriptorType, types.GetSetDescriptorType))
            if known and name not in ("__dict__", "__weakref__") and (base, name) not in _NOT_SENT:
                members.setdefault(name, []).append(member)
    return members


def _is_group(cls: type) -> bool:
    group = getattr(__import__("builtins"), "BaseExceptionGroup", None)
    return group is not None and issubclass(cls, group)


def _of_group(error: BaseException) -> tuple[str, tuple[BaseException, ...]]:
    """The message and the members of a group, whatever its class makes of getting attributes."""
    own = vars(getattr(__import__("builtins"), "BaseExceptionGroup"))  # noqa: B009
    return own["message"].__get__(error), own["exceptions"].__get__(error)


def _native(cls: type) -> Any:
    """The class of Python's own that decides what an object of a class is in memory."""
    while cls.__flags__ & _HEAPTYPE or cls.__module__ != "builtins":
        cls = cls.__base__ or BaseException
    return cls


def _has_own_pickling(cls: type) -> bool:
    """Whether a class says how its objects are pickled, rather than Python."""
    for name in _OWN_PICKLING:
        owner = next((base for base in cls.__mro__ if name in vars(base)), object)
        if module_of(owner) != "builtins":
            return True
    return False


def _shell(cls: Any, arguments: list[Any]) -> BaseException:
    """An exception of a class, of which Python's own part is made of arguments."""
    native = _native(cls)
    if _is_group(cls):
        members = [member for member in arguments[1:] if isinstance(member, BaseException)]
        return native.__new__(cls, str(arguments[0]), members)
    try:
        error = native.__new__(cls, *arguments)
        native.__init__(error, *arguments)
    except Exception:
        error = native.__new__(cls)
    return error


def _put_together(make: Any, arguments: Any, state: Any = None) -> Any:
    made = make(*arguments)
    if state is not None:
        # All exceptions have `__setstate__`.
        made.__setstate__(state)
    return made


def _attributes(error: BaseException) -> dict[str, Any]:
    return object.__getattribute__(error, "__dict__")


def _get(error: BaseException, name: str) -> Any:
    """Something of Python's own, whatever the class makes of getting attributes."""
    return vars(BaseException)[name].__get__(error, type(error))


def set_own(error: BaseException, name: str, value: Any) -> None:
    """Sets something of Python's own, whatever the class makes of setting attributes."""
    vars(BaseException)[name].__set__(error, value)


# Texts.


def _line(error: BaseException) -> str:
    name = type(error).__qualname__
    try:
        text = str(error)[:_MAX_TEXT].replace("\n", " ")
    except BaseException:
        return name
    return f"{name}: {text}" if text else name


def _kind(value: Any) -> str:
    return name_of(type(value))


def _text(value: Any) -> str:
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = brief.maxlong = _MAX_TEXT
    try:
        return brief.repr(value)[:_MAX_TEXT]
    except BaseException:  # It is the user's code, and may do anything.
        return f"<{_kind(value)}>"


def _unit(value: Any) -> str:
    return "characters" if isinstance(value, str) else "bytes"
