"""The Python host: a process that runs the functions which a Floe node sends it.

The node and this process speak over the pipes that were its stdin and stdout; node/docs/host-protocol.md is the
page of that protocol. Only the standard library is used, of Python 3.8 or later, and nothing here knows what
functions do: a function's code is a pickle of something that can be called.

Functions see this module as `floe_host`; `floe_host.blob(id, bytes)` gives them the path of an object that several
tasks share.
"""

import sys
import types

# What runs here is not the program that functions were written in: `__main__` belongs to them, and processes that
# they start (multiprocessing) must not run this file again.
sys.modules["floe_host"] = sys.modules["__main__"]
sys.modules["__main__"] = types.ModuleType("__main__")
__name__ = "floe_host"
__spec__ = None

import collections
import faulthandler
import mmap
import os
import pickle
import signal
import struct
import threading
import time
import traceback

PROTOCOL = 1

# Longer texts and pickles are cut by the node anyway.
MAX_MESSAGE_BYTES = 4 << 10
MAX_TRACEBACK_BYTES = 16 << 10
MAX_EXCEPTION_BYTES = 24 << 10

# Of a longer traceback its beginning and its end are kept.
FIRST_TRACEBACK_BYTES = 2 << 10
LAST_TRACEBACK_BYTES = 14 << 10

MAX_HEADER_BYTES = 1 << 20

# Results of calls are sent together for so long, and up to so many bytes.
FLUSH_NS = 2_000_000
FLUSH_BYTES = 1 << 20

# A result does not wait for a long call after it: somebody looks this often, and goes to sleep after a while without
# calls.
LOOK_SECONDS = 0.005
LOOKS_WITHOUT_CALLS = 200

# Code of at most this size is kept in memory, the node sees to it that it is of no more than 256 functions. Larger
# code is in files. Of what was loaded, so much code's is kept for the next calls.
SMALL_CODE_BYTES = 32 << 10
LOADED_BYTES = 8 << 20

# Messages up to this size are put together for one write.
JOINED_BYTES = 64 << 10

PID = os.getpid()


def beside(name):
    """A module of the host's own, from the file beside this one."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".py")
    module = types.ModuleType("floe_" + name)
    with open(path, encoding="utf-8") as file:
        exec(compile(file.read(), path, "exec"), vars(module))
    return module


fresh = beside("fresh")


class ProtocolError(Exception):
    """The node said something that is not the protocol."""


class MissingBlob(LookupError):
    """An object cannot be had on this node."""


# CBOR, as far as headers need it.


def encode(value):
    out = bytearray()
    _encode(value, out)
    return bytes(out)


def _head(major, number, out):
    if number < 24:
        out.append(major << 5 | number)
    elif number < 1 << 8:
        out += bytes((major << 5 | 24, number))
    elif number < 1 << 16:
        out.append(major << 5 | 25)
        out += number.to_bytes(2, "big")
    elif number < 1 << 32:
        out.append(major << 5 | 26)
        out += number.to_bytes(4, "big")
    else:
        out.append(major << 5 | 27)
        out += number.to_bytes(8, "big")


def _encode(value, out):
    if value is None:
        out.append(0xF6)
    elif value is False:
        out.append(0xF4)
    elif value is True:
        out.append(0xF5)
    elif isinstance(value, int):
        if value >= 0:
            _head(0, value, out)
        else:
            _head(1, -1 - value, out)
    elif isinstance(value, float):
        out.append(0xFB)
        out += struct.pack(">d", value)
    elif isinstance(value, str):
        text = value.encode("utf-8", "replace")
        _head(3, len(text), out)
        out += text
    elif isinstance(value, (bytes, bytearray, memoryview)):
        _head(2, len(value), out)
        out += value
    elif isinstance(value, (list, tuple)):
        _head(4, len(value), out)
        for item in value:
            _encode(item, out)
    elif isinstance(value, dict):
        _head(5, len(value), out)
        for key, item in value.items():
            _encode(key, out)
            _encode(item, out)
    else:
        raise TypeError("no CBOR for %r" % type(value))


def decode(data):
    try:
        value, end = _decode(data, 0, 0)
    except (IndexError, struct.error, UnicodeDecodeError, TypeError, KeyError):
        raise ProtocolError("a header is not CBOR") from None
    if end != len(data):
        raise ProtocolError("bytes follow a header")
    return value


_SIMPLE = {0xF4: False, 0xF5: True, 0xF6: None, 0xF7: None}
_FLOATS = {0xF9: (">e", 2), 0xFA: (">f", 4), 0xFB: (">d", 8)}


def _decode(data, at, depth):
    if depth > 16:
        raise ProtocolError("a header is nested too deeply")
    first = data[at]
    if first in _SIMPLE:
        return _SIMPLE[first], at + 1
    if first in _FLOATS:
        form, size = _FLOATS[first]
        return struct.unpack(form, data[at + 1 : at + 1 + size])[0], at + 1 + size
    major, number = first >> 5, first & 31
    at += 1
    # Maps and lists may say where they end instead of how long they are.
    endless = number == 31 and major in (4, 5)
    if number >= 24 and not endless:
        size = {24: 1, 25: 2, 26: 4, 27: 8}[number]
        if at + size > len(data):
            raise IndexError
        number = int.from_bytes(data[at : at + size], "big")
        at += size
    if major == 0:
        return number, at
    if major == 1:
        return -1 - number, at
    if major in (2, 3):
        if at + number > len(data):
            raise IndexError
        content = bytes(data[at : at + number])
        return (content if major == 2 else content.decode("utf-8")), at + number
    if major == 4:
        items = []
        while data[at] != 0xFF if endless else len(items) < number:
            item, at = _decode(data, at, depth + 1)
            items.append(item)
        return items, at + endless
    if major == 5:
        pairs = {}
        left = number
        while data[at] != 0xFF if endless else left > 0:
            key, at = _decode(data, at, depth + 1)
            pairs[key], at = _decode(data, at, depth + 1)
            left -= 1
        return pairs, at + endless
    raise ProtocolError("a header is not CBOR")


# The pipes.


class Pipes:
    """What the node says and hears. Any thread may send; whoever holds `reading` may receive."""

    def __init__(self):
        # Whatever else writes to stdout or reads stdin, in whatever language, must not meet the protocol.
        self.input = os.fdopen(os.dup(0), "rb", buffering=1 << 16)
        self.output = os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        self.reading = threading.Lock()
        self.writing = threading.Lock()
        os.register_at_fork(after_in_child=self.close)

    def close(self):
        """A forked child has no part in the conversation."""
        for fd in (self.input.fileno(), self.output):
            try:
                os.close(fd)
            except OSError:
                pass
        # Numbers that were closed are given to files that are opened later.
        self.output = -1

    def receive(self):
        """The next message as header and sections; None at the end."""
        head = self.input.read(4)
        if not head:
            return None
        size = int.from_bytes(head, "big")
        if len(head) < 4 or size > MAX_HEADER_BYTES:
            raise ProtocolError("a header has %d bytes" % size)
        header = decode(self._exactly(size))
        return header, [self._exactly(size) for size in header.get("sections", ())]

    def _exactly(self, size):
        data = self.input.read(size)
        if len(data) < size:
            raise ProtocolError("a message is cut off")
        return data

    def send(self, header, sections=()):
        sections = [memoryview(section).cast("B") for section in sections]
        if sections:
            header["sections"] = [len(section) for section in sections]
        header = encode(header)
        parts = [len(header).to_bytes(4, "big"), header]
        if sum(map(len, sections)) <= JOINED_BYTES:
            parts = [b"".join(parts + sections)]
        else:
            parts = [b"".join(parts)] + sections
        with self.writing:
            for part in parts:
                self._write(part)

    def _write(self, data):
        written = os.write(self.output, data)
        if written < len(data):
            rest = memoryview(data)[written:]
            while len(rest):
                rest = rest[os.write(self.output, rest) :]


# Objects that several tasks share.

_answers = {}
_later = collections.deque()


def blob(name, size):
    """The path of a file that holds the object of this id (hexadecimal) and size in bytes."""
    answer = _answers.get(name)
    # Another function may have changed this process's copy.
    if answer is None or (answer[0] is not None and _stamp(answer[0]) != answer[2]):
        _answers.pop(name, None)
        PIPES.send({"type": "need", "blob": name, "bytes": size})
        while name not in _answers:
            # Whoever reads meanwhile takes the answer in.
            if PIPES.reading.acquire(timeout=0.01):
                try:
                    if name in _answers:
                        break
                    message = PIPES.receive()
                    if message is None:
                        raise MissingBlob("the node is gone")
                    if not _take_answer(message):
                        _later.append(message)
                finally:
                    PIPES.reading.release()
        answer = _answers[name]
    path, missing, _ = answer
    if path is None:
        del _answers[name]
        raise MissingBlob(missing or "the node does not have it")
    return path


def _take_answer(message):
    header = message[0]
    if header.get("type") != "blob":
        return False
    path = header.get("path")
    _answers[header["blob"]] = (path, header.get("missing"), path and _stamp(path))
    return True


def _stamp(path):
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def next_message():
    while True:
        with PIPES.reading:
            message = _later.popleft() if _later else PIPES.receive()
            if message is None or not _take_answer(message):
                return message


# Errors.


def cut(text, size):
    data = text.encode("utf-8", "replace")
    return text if len(data) <= size else data[:size].decode("utf-8", "ignore")


def one_line(error):
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__", None):
        name = "%s.%s" % (kind.__module__, name)
    try:
        text = " ".join(str(error)[:MAX_MESSAGE_BYTES].split("\n"))
    except BaseException as other:
        text = "(its text cannot be had: %s)" % type(other).__name__
    return cut("%s: %s" % (name, text) if text else name, MAX_MESSAGE_BYTES)


def hidden(frame):
    """Whether a frame is the host's, or of a module that says `__floe_hidden__ = True`."""
    return frame.f_globals is globals() or frame.f_globals.get("__floe_hidden__") is True


def trace(error):
    """The traceback, without what is above the function."""
    try:
        frames = error.__traceback__
        while frames is not None and hidden(frames.tb_frame):
            frames = frames.tb_next
        pieces = traceback.TracebackException(type(error), error, frames).format()
        first, last, shortened = b"", b"", False
        # Piece by piece, since messages may be far longer than what is kept of them.
        for piece in pieces:
            if len(piece) > MAX_TRACEBACK_BYTES:
                piece = "%s ... (cut: %d characters)\n" % (piece[:MAX_MESSAGE_BYTES], len(piece))
            last += piece.encode("utf-8", "replace")
            if len(first) < FIRST_TRACEBACK_BYTES:
                taken = FIRST_TRACEBACK_BYTES - len(first)
                first, last = first + last[:taken], last[taken:]
            if len(last) > LAST_TRACEBACK_BYTES:
                last, shortened = last[-LAST_TRACEBACK_BYTES:], True
    except BaseException:
        return ""
    if not shortened:
        return (first + last).decode("utf-8", "replace")
    return "%s\n  ...\n%s" % (first.decode("utf-8", "ignore"), last.decode("utf-8", "ignore"))


def pickled(error, call):
    """The exception for the driver: as the called object has it, who may know better, or its pickle."""
    try:
        if hasattr(call, "exception"):
            return bytes(call.exception(error, MAX_EXCEPTION_BYTES))
        data = pickle.dumps(error)
        if len(data) <= MAX_EXCEPTION_BYTES and isinstance(pickle.loads(data), BaseException):
            return data
    except BaseException:
        pass
    return b""


def raised(error, call=None):
    try:
        return {"message": one_line(error), "traceback": trace(error), "exception": pickled(error, call)}
    except BaseException as other:
        return {"message": type(error).__name__, "traceback": cut(repr(type(other)), 1000), "exception": b""}


# Functions.


class Broken:
    """Code that cannot be loaded: each call of it says so."""

    def __init__(self, error):
        self.error = error
        self.frames = error.__traceback__

    def __call__(self, *_):
        raise self.error.with_traceback(self.frames)


class Code:
    """A function's code: here if it is small, else in a file that nobody else sees and that goes with this."""

    def __init__(self, name, data):
        self.name = name
        self.size = len(data)
        self.data = data if self.size <= SMALL_CODE_BYTES else in_a_file(data)

    def load(self):
        try:
            found = pickle.loads(self.data)
            if isinstance(self.data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                # What was read from the file need not count as this process's memory.
                self.data.madvise(mmap.MADV_DONTNEED)
            if not callable(found):
                raise TypeError("the code of %s is %r, which cannot be called" % (self.name, type(found)))
        except BaseException as error:
            return Broken(error)
        return found


def in_a_file(data):
    """The same bytes, mapped from a file; as they are if there is no place for one."""
    import tempfile

    try:
        with tempfile.TemporaryFile(prefix="code-") as file:
            file.write(data)
            file.flush()
            return mmap.mmap(file.fileno(), len(data), access=mmap.ACCESS_READ)
    except OSError:
        return data


_codes = {}
# Those loaded, the one that was called last at the end.
_functions = collections.OrderedDict()


def define(header, sections):
    number = header["function"]
    _functions.pop(number, None)
    _codes[number] = Code(header.get("name", ""), sections.pop())


def forget(header, _):
    for number in header["functions"]:
        _functions.pop(number, None)
        _codes.pop(number, None)


def function(number):
    found = _functions.get(number)
    if found is not None:
        _functions.move_to_end(number)
        return found
    code = _codes.get(number)
    if code is None:
        raise ProtocolError("function %d is called and was not defined" % number)
    found = code.load()
    # What is kept for later calls counts as much as what a call takes: it must not be what a limit kills this for.
    if code.size <= LOADED_BYTES:
        _functions[number] = found
        while sum(_codes[kept].size for kept in _functions) > LOADED_BYTES:
            _functions.popitem(last=False)
    return found


def flush_prints():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            pass


def between():
    """Between two items of one call: what the first has changed of this process, the second does not see."""
    FRESH.between()


def lent_files():
    """The device and number of each file that holds a shared object: it may stay open."""
    found = set()
    for path, _ in list(_answers.values()):
        try:
            known = os.stat(path)
        except (OSError, TypeError):
            continue
        found.add((known.st_dev, known.st_ino))
    return found


def task(header, sections):
    argument = None
    kind = header["argument"]
    if kind != "none":
        argument = sections.pop(0)
        if kind == "path":
            argument = argument.decode("utf-8")
    call = function(header["function"])
    try:
        partitions = [memoryview(section) for section in sections]
        del sections
        output = fresh.context().run(call, argument, partitions)
        answer, parts = returned(output)
    except BaseException as error:
        output = partitions = None
        answer = raised(error, call)
        parts = [answer.pop("exception")]
        answer["type"] = "raised"
    if os.getpid() != PID:
        os._exit(1)
    flush_prints()
    spent = FRESH.settle(fresh.VERY_LONG_NS + 1)
    if spent:
        answer["spent"] = spent
    PIPES.send(answer, parts)
    return spent


def returned(output):
    if isinstance(output, tuple) and output and output[0] == "object" and len(output) == 2:
        return {"type": "returned", "kind": "object"}, [memoryview(output[1]).cast("B")]
    if isinstance(output, tuple) and output and output[0] == "frame" and len(output) == 3:
        return {"type": "returned", "kind": "frame", "rows": int(output[2])}, [memoryview(output[1]).cast("B")]
    raise TypeError("a task must put out a frame or an object, not %s" % type(output).__name__)


class Results:
    """Results of one batch of calls that were not sent yet."""

    def __init__(self, ids):
        self.ids = ids
        self.sent = 0
        # What makes this host of no use for another call.
        self.spent = None
        self.lock = threading.Lock()
        self.since = time.perf_counter_ns()
        self.clear()

    def clear(self):
        self.status = bytearray()
        self.elapsed = []
        self.bodies = []
        self.bytes = 0

    def add(self, status, elapsed_ns, body, now, spent):
        with self.lock:
            self.spent = spent
            self.status.append(status)
            self.elapsed.append(min(elapsed_ns // 1000, 0xFFFFFFFF))
            self.bodies.append(body)
            self.bytes += len(body)
            if now - self.since > FLUSH_NS or self.bytes > FLUSH_BYTES:
                self._flush()

    def flush(self):
        with self.lock:
            self._flush()

    def flush_old(self):
        with self.lock:
            if time.perf_counter_ns() - self.since > FLUSH_NS:
                self._flush()

    def _flush(self):
        count = len(self.bodies)
        self.since = time.perf_counter_ns()
        if count == 0:
            return
        flush_prints()
        sections = [
            self.ids[8 * self.sent : 8 * (self.sent + count)],
            self.status,
            struct.pack("<%dI" % count, *self.elapsed),
            struct.pack("<%dI" % count, *map(len, self.bodies)),
            self.bodies[0] if count == 1 else b"".join(self.bodies),
        ]
        self.sent += count
        self.clear()
        PIPES.send({"type": "results", "spent": self.spent} if self.spent else {"type": "results"}, sections)


class Looker(threading.Thread):
    """Sends results that wait behind a long call."""

    def __init__(self):
        super().__init__(name="floe-results", daemon=True)
        self.results = None
        self.wake = threading.Event()
        self.asleep = True

    def look_at(self, results):
        self.results = results
        if results is not None and self.asleep:
            self.asleep = False
            if self.ident is None:
                self.start()
                FRESH.expect_thread()
            self.wake.set()

    def run(self):
        without = 0
        while True:
            time.sleep(LOOK_SECONDS)
            results = self.results
            if results is not None:
                without = 0
                try:
                    results.flush_old()
                except OSError:
                    return
                continue
            without += 1
            if without > LOOKS_WITHOUT_CALLS:
                self.wake.clear()
                self.asleep = True
                # Calls that came in between find it awake, or wake it.
                if self.results is None:
                    self.wake.wait()
                without = 0


def calls(header, sections):
    ids, lengths, arguments = sections
    count = len(ids) // 8
    sizes = struct.unpack("<%dI" % count, lengths)
    call = function(header["function"])
    view = memoryview(arguments)
    results = Results(ids)
    clock = time.perf_counter_ns
    context, settle = fresh.context, FRESH.settle
    if count > 1:
        LOOKER.look_at(results)
    at = 0
    for index in range(count):
        MARK[0:8] = ids[8 * index : 8 * index + 8]
        size = sizes[index]
        begun = clock()
        try:
            body = context().run(call, view[at : at + size])
            if type(body) is not bytes:
                body = memoryview(body).cast("B")
            status = 0
        except BaseException as error:
            body = encode(raised(error, call))
            status = 1
        at += size
        now = clock()
        if os.getpid() != PID:
            os._exit(1)
        # The last result does not wait for what can be looked at after it; but no alarm may go off while it is sent.
        spent = settle(now - begun) if index + 1 < count or fresh.notes else None
        results.add(status, now - begun, body, now, spent)
        if spent:
            break
    LOOKER.look_at(None)
    results.flush()
    if count and not spent:
        spent = settle(now - begun, True)
        if spent:
            PIPES.send({"type": "spent", "spent": spent})
    return spent


# Beginning and end.


def misfit(libraries):
    """What is not installed as the driver has it, and what is instead; None if all is."""
    if not libraries:
        return None
    from importlib import metadata

    for name, wanted in sorted(libraries.items()):
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            return "%s %s" % (name, wanted), "%s is not installed" % name
        except BaseException as error:
            return "%s %s" % (name, wanted), "%s: %s" % (name, one_line(error))
        if found != wanted:
            return "%s %s" % (name, wanted), "%s %s is installed" % (name, found)
    return None


def hello():
    """Whether functions may come."""
    global FRESH, MARK
    message = next_message()
    if message is None:
        return False
    header = message[0]
    if header.get("type") != "hello" or header.get("protocol") != PROTOCOL:
        PIPES.send({"type": "unfit", "needs": "host protocol %s" % header.get("protocol"), "why": "this host speaks 1"})
        return False
    with open(header["progress"], "r+b") as file:
        MARK = mmap.mmap(file.fileno(), 8)
    # Unless it was told otherwise, Python looks first where this file is.
    if sys.path and os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):
        del sys.path[0]
    sys.path[0:0] = header.get("modules", [])
    missing = misfit(header.get("libraries", {}))
    if missing is not None:
        PIPES.send({"type": "unfit", "needs": missing[0], "why": missing[1]})
        return False
    FRESH = fresh.Fresh(HOME, lent_files)
    PIPES.send({"type": "ready", "version": "%d.%d.%d" % sys.version_info[:3]})
    return True


def check(header, sections):
    PIPES.send({"type": "ready"})


ORDERS = {"check": check, "define": define, "forget": forget, "task": task, "calls": calls}


def serve():
    if not hello():
        return
    while True:
        message = next_message()
        if message is None:
            return
        header, sections = message
        order = ORDERS.get(header.get("type"))
        if order is None:
            raise ProtocolError("the node wants %r" % header.get("type"))
        # Nothing but the order may keep what came with it.
        del message
        if order(header, sections):
            break
        if order in (define, forget):
            # Code that is mapped from a file keeps it open.
            FRESH.expect_files()
    # No function may come any more. What is on its way is not answered, and the node ends this process.
    while next_message() is not None:
        pass


HOME = os.getcwd()
PIPES = Pipes()
LOOKER = Looker()
sys.argv = [""]
# The terminal's Ctrl-C is for the node.
signal.signal(signal.SIGINT, signal.SIG_IGN)
faulthandler.enable()
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(line_buffering=True, errors="backslashreplace")
serve()
