"""Makes a host as new for each call: puts back what a function changed of its process, or says what it cannot.

What costs a system call to look at is not looked at after every call, since most calls change nothing and take less
time than that. So there are three ways in which a change is noticed:

- names and lists of Python's own (`sys.path`, `sys.stdout`) are compared after each call: that takes nanoseconds;
- functions that change something of the process (`os.chdir`, `signal.signal`, `random.seed`) are wrapped, and leave a
  note;
- everything is looked at after a call that took long, after one that left a note, and before the last result of a
  batch is sent; but without the system's help if calls took so little time that they cannot have had it either.

What a module changes while it is imported is part of it: the module stays, and so does that. What is left in variables
of the context (`contextvars`, and with them `decimal`'s context) needs nothing, for each call has a context of its own.

What cannot be put back (a thread or a process that runs on, a file that is open, a limit that was lowered for good)
makes the host be replaced: `settle` returns what it was.
"""

import builtins
import contextvars
import functools
import gc
import os
import resource
import signal
import stat
import sys
import threading
import time
import warnings
import _locale
import _thread

# After a call that took longer everything is looked at; that takes some microseconds.
LONG_NS = 50_000

# What took less, all of a batch, has called nothing of the system's but perhaps what leaves a note.
SHORT_NS = 10_000

# After one that took longer, also what takes a hundred times as long to look at.
VERY_LONG_NS = 1_000_000

# How long a thread that was told to end may take to be gone.
THREAD_NS = 20_000_000

# Descriptors without a name (of event loops, timers) that libraries may leave open; each is of no use to others.
MAX_NAMELESS = 256

PR_GET_CHILD_SUBREAPER = 37

# What leaves a note, by the module and what the note says. Some have a twin of the same name in another module.
NOTED = {
    "os": (
        ("directory", "chdir fchdir"),
        ("variables", "putenv unsetenv"),
        ("umask", "umask"),
        ("streams", "dup2 closerange"),
        ("affinity", "sched_setaffinity"),
        ("its priority", "nice setpriority sched_setscheduler sched_setparam"),
        ("its process group or user", "setpgid setpgrp setsid setuid setgid seteuid setegid setreuid setregid setgroups"),
        ("its root directory", "chroot"),
    ),
    "signal": (
        ("signals", "signal siginterrupt set_wakeup_fd pthread_sigmask"),
        ("timers", "alarm setitimer"),
    ),
    "locale": (("locale", "setlocale"),),
    "_locale": (("locale", "setlocale"),),
    "resource": (("limits", "setrlimit prlimit"),),
    "faulthandler": (("faults", "dump_traceback_later enable disable register"),),
    "gc": (("numbers", "enable disable set_threshold set_debug"),),
    "sys": (("numbers", "setrecursionlimit setswitchinterval set_int_max_str_digits"),),
    "socket": (("numbers", "setdefaulttimeout"),),
    "random": (("random", "seed setstate"),),
    "numpy.random": (("numpy", "seed set_state set_bit_generator"),),
    "logging": (("logging", "basicConfig disable captureWarnings setLoggerClass addLevelName"),),
}
TWINS = {"os": "posix", "signal": "_signal", "socket": "_socket"}

# What is noted and cannot be put back, and how it is told.
LASTING = {
    "its priority": lambda: os.getpriority(os.PRIO_PROCESS, 0),
    "its process group or user": lambda: (os.getpgid(0), os.getuid(), os.geteuid(), os.getgid(), os.getgroups()),
    "its root directory": lambda: os.stat("/").st_ino,
}

_HOOKS = ("stdout", "stderr", "stdin", "excepthook", "displayhook", "unraisablehook", "breakpointhook", "argv")
_LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
if sys.platform == "linux":
    # RLIMIT_LOCKS, by which the node knows what was started here.
    _LIMITS.append(10)
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_LOGGER = (0, (), (), True, False)

context = contextvars.Context

notes = set()
_variables = set()
_originals = {}


def _noting(function, note):
    @functools.wraps(function)
    def noting(*args, **kwargs):
        notes.add(note)
        if note == "variables" and args:
            _variables.add(args[0])
        return function(*args, **kwargs)

    return noting


def _install():
    """Wraps what is to leave notes, of modules that have been imported by now; returns the notes of those."""
    found = []
    for name, groups in NOTED.items():
        module = sys.modules.get(name)
        if module is None or name in _originals or getattr(module, "__spec__", None) is None:
            continue
        # One that is being imported comes later.
        if getattr(module.__spec__, "_initializing", False):
            continue
        kept = _originals[name] = {}
        twin = sys.modules.get(TWINS.get(name, ""))
        for note, functions in groups:
            found.append(note)
            for function in functions.split():
                original = getattr(module, function, None)
                if original is None:
                    continue
                kept[function] = original
                wrapped = _noting(original, note)
                setattr(module, function, wrapped)
                if twin is not None and getattr(twin, function, None) is original:
                    setattr(twin, function, wrapped)
                for accepts in (os.supports_fd, os.supports_dir_fd, os.supports_follow_symlinks):
                    if original in accepts:
                        accepts.add(wrapped)
    return found


def _reset_list(held, wanted):
    held[:] = wanted
    return held


def _learned(base, before, after):
    """A list as it was, with what an import added to it."""
    if before == base:
        return list(after)
    new = [item for item in after if item not in before]
    in_front = after[: len(new)] == new
    return new + base if in_front else base + new


def _filters_changed():
    if hasattr(warnings, "_filters_mutated"):
        warnings._filters_mutated()
    elif hasattr(warnings, "_filters_mutated_lock_held"):
        with warnings._lock:
            warnings._filters_mutated_lock_held()


def _numbers():
    socket = sys.modules.get("_socket")
    return (
        sys.getrecursionlimit(),
        sys.getswitchinterval(),
        gc.isenabled(),
        gc.get_threshold(),
        gc.get_debug(),
        socket.getdefaulttimeout() if socket else None,
        sys.get_int_max_str_digits() if hasattr(sys, "get_int_max_str_digits") else 0,
    )


def _set_numbers(wanted):
    limit, interval, collects, threshold, debug, timeout, digits = wanted
    sys.setrecursionlimit(limit)
    sys.setswitchinterval(interval)
    (gc.enable if collects else gc.disable)()
    gc.set_threshold(*threshold)
    gc.set_debug(debug)
    if "_socket" in sys.modules:
        sys.modules["_socket"].setdefaulttimeout(timeout)
    if digits:
        sys.set_int_max_str_digits(digits)


def _loggers():
    """What is set of each logger, by its name; those as they are when made are left out."""
    logging = sys.modules.get("logging")
    if logging is None or not hasattr(logging, "root"):
        return {}
    manager = logging.root.manager
    found = {"": (logging.WARNING, (), (), manager.disable, logging.raiseExceptions)}
    loggers = [("root", logging.root), *manager.loggerDict.items()]
    for name, logger in loggers:
        if hasattr(logger, "handlers"):
            state = (logger.level, tuple(logger.handlers), tuple(logger.filters), logger.propagate, logger.disabled)
            if state != _LOGGER:
                found[name] = state
    return found


_UNTOUCHED_LOGGERS = {"": (30, (), (), 0, True), "root": (30, (), (), True, False)}


def _set_loggers(wanted):
    logging = sys.modules["logging"]
    manager = logging.root.manager
    wanted = wanted or _UNTOUCHED_LOGGERS
    _, _, _, manager.disable, logging.raiseExceptions = wanted[""]
    for name, logger in [("root", logging.root), *manager.loggerDict.items()]:
        if hasattr(logger, "handlers"):
            level, handlers, filters, logger.propagate, logger.disabled = wanted.get(name, _LOGGER)
            logger.handlers[:], logger.filters[:] = handlers, filters
            logger.setLevel(level)
    if hasattr(manager, "_clear_cache"):
        manager._clear_cache()


def _signals():
    return {number: signal.getsignal(number) for number in range(1, signal.NSIG)}


@functools.cache
def _prctl(ctypes):
    return ctypes.CDLL(None).prctl


def _adopts_orphans():
    """Whether processes whose parent has ended become this one's children still, as far as it is told."""
    ctypes = sys.modules.get("ctypes")
    # Nothing else of Python's own changes it.
    if ctypes is None or sys.platform != "linux":
        return True
    adopts = ctypes.c_int(1)
    _prctl(ctypes)(PR_GET_CHILD_SUBREAPER, ctypes.byref(adopts), 0, 0, 0)
    return adopts.value != 0


def _limits():
    return {which: resource.getrlimit(which) for which in _LIMITS}


def _descriptors():
    try:
        names = os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    except OSError:
        return None
    found = set()
    for name in map(int, names):
        try:
            os.fstat(name)
        except OSError:
            continue
        found.add(name)
    return found


class Fresh:
    """What a host was like before its first call."""

    def __init__(self, home, own_files):
        #: Gives the device and number of files that the host's own objects are read from.
        self.own_files = own_files
        self.home = home
        self.process = os.getpid()
        # What was printed goes here, whatever becomes of descriptors 1 and 2.
        self.printed = os.dup(2)
        self.nothing = os.open(os.devnull, os.O_RDONLY)
        self.threads = _thread._count()
        _install()
        #: How long calls took since everything was looked at.
        self.unseen_ns = 0
        #: What cannot be put back, once there is something.
        self.spoilt = None
        # Imports within imports, and a search for a module within that of another finder.
        self.depth = 0
        self.finding = False
        sys.meta_path.insert(0, self)
        self._base()
        notes.clear()

    def _base(self):
        umask = _originals["os"]["umask"]
        self.umask = umask(0o077)
        umask(self.umask)
        self.path_list, self.path = sys.path, list(sys.path)
        self.meta_path, self.path_hooks = list(sys.meta_path), list(sys.path_hooks)
        self.filters_list, self.filters = warnings.filters, list(warnings.filters)
        self.hooks = self._hooks()
        self.numbers = _numbers()
        self.environ = os.environ
        self.variables = dict(os.environ._data)
        self.signals = _signals()
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self.locale = _locale.setlocale(_locale.LC_ALL, None)
        self.limits = _limits()
        self.affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        self.lasting = {name: told() for name, told in LASTING.items()}
        self.loggers = _loggers()
        self.modules = dict(sys.modules)
        self.builtins = dict(vars(builtins))
        self.nameless = 0
        self._clean()
        self._know_descriptors()
        self._know_names()

    def expect_files(self):
        """The host itself has opened or closed a file, between calls."""
        self._know_descriptors()

    def expect_thread(self):
        """Another thread of the host's own runs."""
        self.threads += 1
        self._know_names()

    def _know_names(self):
        """What is compared after each call."""
        self.names = (self.path, self.filters, *self.hooks[:2], self.environ, self.threads, len(self.modules))

    # Noticing.

    def settle(self, elapsed_ns, last=False):
        """After a call: puts back what it changed. Returns what it cannot put back, as a clause; None if all is well."""
        self.unseen_ns += elapsed_ns
        now = (sys.path, warnings.filters, sys.stdout, sys.stderr, os.environ, _thread._count(), len(sys.modules))
        if last or notes or elapsed_ns > LONG_NS or now != self.names:
            # An alarm may still go off, or a handler of the function's own raise something.
            for _ in range(3):
                try:
                    return self._look(elapsed_ns)
                except BaseException as error:
                    raised = type(error).__name__
            self.spoilt = "something that raised %s while it was put back" % raised
            return self.spoilt
        return None

    def between(self):
        """Between two items of a call: puts back what left notes."""
        if notes:
            self._look(0)

    def _look(self, elapsed_ns):
        noted = set(notes) if notes else ()
        very_long = noted or elapsed_ns > VERY_LONG_NS
        if noted:
            self._put_back(noted)
        if sys.path is not self.path_list or sys.path != self.path:
            sys.path = _reset_list(self.path_list, self.path)
        if sys.meta_path != self.meta_path:
            sys.meta_path[:] = self.meta_path
        if sys.path_hooks != self.path_hooks:
            sys.path_hooks[:] = self.path_hooks
            sys.path_importer_cache.clear()
        if warnings.filters is not self.filters_list or warnings.filters != self.filters:
            warnings.filters = _reset_list(self.filters_list, self.filters)
            _filters_changed()
        if self._hooks() != self.hooks:
            self._set_hooks()
        if sys.stdout.closed or sys.stderr.closed:
            self._set_streams()
        if sys.gettrace() is not None or sys.getprofile() is not None:
            sys.settrace(None)
            sys.setprofile(None)
        if _numbers() != self.numbers:
            _set_numbers(self.numbers)
        if os.environ is not self.environ or self.environ._data != self.variables or "variables" in noted:
            self._set_variables()
        for name in ("multiprocessing.context", "asyncio.events"):
            if name in sys.modules:
                self._set_default(name)
        if vars(builtins) != self.builtins:
            self._set_builtins()
        long = noted or self.unseen_ns > SHORT_NS
        if long or len(sys.modules) != len(self.modules):
            self._set_modules()
        if very_long:
            self._set_loggers()
        self._threads()
        if long:
            self.unseen_ns = 0
            self._set_directory()
            self._children()
            self._look_at_descriptors(very_long)
        return self.spoilt

    def _put_back(self, noted):
        """Puts back what left notes."""
        original = _originals["signal"]
        if "timers" in noted or "signals" in noted:
            for timer in _TIMERS:
                original["setitimer"](timer, 0)
            original["pthread_sigmask"](signal.SIG_SETMASK, self.mask)
            if "signals" in noted:
                for number, handler in _signals().items():
                    wanted = self.signals.get(number)
                    if handler != wanted and wanted is not None:
                        original["signal"](number, wanted)
                original["set_wakeup_fd"](-1)
        if "umask" in noted:
            _originals["os"]["umask"](self.umask)
        if "locale" in noted and _locale.setlocale(_locale.LC_ALL, None) != self.locale:
            _originals["_locale"]["setlocale"](_locale.LC_ALL, self.locale)
        if "random" in noted:
            _originals["random"]["seed"]()
        if "numpy" in noted:
            _originals["numpy.random"]["seed"]()
        if "streams" in noted:
            self._set_streams()
        if "faults" in noted:
            faulthandler = sys.modules["faulthandler"]
            faulthandler.cancel_dump_traceback_later()
            _originals["faulthandler"]["enable"](self.printed)
        if "affinity" in noted and self.affinity is not None:
            _originals["os"]["sched_setaffinity"](0, self.affinity)
        if "limits" in noted:
            for which, (soft, hard) in _limits().items():
                if (soft, hard) != self.limits[which]:
                    try:
                        _originals["resource"]["setrlimit"](which, self.limits[which])
                    except (OSError, ValueError):
                        self.spoilt = "a limit of its process that cannot be raised again"
        for lasting, told in LASTING.items():
            if lasting in noted and told() != self.lasting[lasting]:
                self.spoilt = "another value of " + lasting
        notes.difference_update(noted)

    # Single kinds.

    def _hooks(self):
        return (*[getattr(sys, name, None) for name in _HOOKS], threading.excepthook, warnings.showwarning)

    def _set_hooks(self):
        for name, value in zip(_HOOKS, self.hooks):
            setattr(sys, name, value)
        threading.excepthook, warnings.showwarning = self.hooks[-2:]

    def _set_streams(self):
        dup2 = _originals["os"]["dup2"]
        dup2(self.nothing, 0)
        dup2(self.printed, 1)
        dup2(self.printed, 2)
        for name, number in (("stdout", 1), ("stderr", 2)):
            if getattr(sys, name).closed:
                stream = open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
                setattr(sys, name, stream)
                setattr(sys, "__%s__" % name, stream)
        self.hooks = self._hooks()
        self._know_names()

    def _set_variables(self):
        os.environ = self.environ
        held, original = self.environ._data, _originals["os"]
        names = {os.fsencode(name) for name in _variables}
        _variables.clear()
        names.update(name for name in set(held) | set(self.variables) if held.get(name) != self.variables.get(name))
        for name in names:
            value = self.variables.get(name)
            if value is None:
                original["unsetenv"](name)
                held.pop(name, None)
            else:
                original["putenv"](name, value)
                held[name] = value
        if b"TZ" in names and hasattr(time, "tzset"):
            time.tzset()

    def _set_loggers(self):
        loggers = _loggers()
        if loggers and loggers != (self.loggers or _UNTOUCHED_LOGGERS):
            _set_loggers(self.loggers)

    def _set_builtins(self):
        for name in set(vars(builtins)) - set(self.builtins):
            delattr(builtins, name)
        vars(builtins).update(self.builtins)

    def _set_modules(self):
        if sys.modules == self.modules:
            return
        sys.modules.update(self.modules)
        for name in set(sys.modules) - set(self.modules):
            # What was put there by hand; others have come in some way of importing that is not known here.
            if getattr(sys.modules[name], "__spec__", None) is None:
                del sys.modules[name]
        self.modules = dict(sys.modules)
        self._know_names()
        # What the function did with those that it imported left no notes.
        self._put_back(set(_install()))

    def _set_directory(self):
        try:
            sound = os.getcwd() == self.home and os.stat(self.home).st_mtime_ns == 0
        except OSError:
            sound = False
        if not sound:
            self._clean()

    def _set_default(self, name):
        module = sys.modules[name]
        if name == "multiprocessing.context":
            module._default_context._actual_context = None
        elif getattr(module, "_event_loop_policy", None) is not None:
            module._event_loop_policy = None

    def _clean(self):
        """Goes home, to an empty directory."""
        try:
            if not os.path.isdir(self.home) or os.path.islink(self.home):
                os.mkdir(self.home)
            os.chmod(self.home, 0o700)
            _originals["os"]["chdir"](self.home)
            with os.scandir(self.home) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        import shutil

                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)
            # Any change gives it another time.
            os.utime(self.home, ns=(0, 0))
        except OSError as error:
            self.spoilt = "its working directory, which cannot be made anew (%s)" % error

    def _threads(self):
        # One that was told to end may need a moment for it.
        until = None
        while _thread._count() > self.threads:
            now = time.perf_counter_ns()
            until = until or now + THREAD_NS
            if now > until:
                self.spoilt = "a thread that runs on"
                return
            time.sleep(0.001)

    def _children(self):
        """Processes that run on. Those whose parent has ended are this one's children, where the system has that."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            self.spoilt = "a process that runs on"
        except ChildProcessError:
            if not _adopts_orphans():
                self.spoilt = "orphans that it does not adopt"

    def _know_descriptors(self):
        self.descriptors = _descriptors()
        self.free = self._free()

    def _free(self):
        try:
            free = os.dup(self.nothing)
            os.close(free)
        except OSError:
            return -1
        return free

    def _look_at_descriptors(self, thoroughly):
        """Files that are open still, or not any more. The lowest free number shows nearly all of these."""
        if self._free() == self.free and not thoroughly:
            return
        now = _descriptors()
        if now is None or now == self.descriptors:
            return
        self._opened(now)
        self._closed(now)
        if self.spoilt is None:
            self._know_descriptors()

    def _opened(self, now):
        opened = [number for number in now - self.descriptors if self._matters(number)]
        if opened:
            # What nobody can reach is not open on purpose.
            gc.collect()
            opened = [number for number in opened if self._matters(number)]
        self.nameless += len((_descriptors() or now) - self.descriptors)
        if opened:
            self.spoilt = "a file or connection that is open still"
        elif self.nameless > MAX_NAMELESS:
            self.spoilt = "too many descriptors that are open still"

    def _matters(self, number):
        """Whether a descriptor is of something that others can see, or wait for."""
        try:
            found = os.fstat(number)
        except OSError:
            return False
        if stat.S_ISSOCK(found.st_mode):
            import socket

            with socket.socket(fileno=os.dup(number)) as opened:
                # Pairs have no names: they are within this process.
                return opened.family != socket.AF_UNIX or bool(opened.getsockname())
        kind = stat.S_IFMT(found.st_mode)
        if stat.S_ISCHR(found.st_mode):
            return found.st_rdev not in self._harmless()
        return kind != 0 and (found.st_dev, found.st_ino) not in self.own_files()

    def _harmless(self):
        devices = (os.devnull, "/dev/urandom", "/dev/random", "/dev/zero")
        return {os.stat(device).st_rdev for device in devices if os.path.exists(device)}

    def _closed(self, now):
        closed = self.descriptors - now
        if closed & {0, 1, 2}:
            self._set_streams()
            closed -= {0, 1, 2}
        if closed:
            self.spoilt = "a file of the host's own that it closed"

    # Imports.

    def find_spec(self, name, path=None, target=None):
        """Finds what the other finders find, and sees what its import changes."""
        if self.depth or self.finding or threading.current_thread() is not threading.main_thread():
            return None
        self.finding = True
        try:
            for finder in list(sys.meta_path):
                if finder is not self and hasattr(finder, "find_spec"):
                    spec = finder.find_spec(name, path, target)
                    if spec is not None:
                        self._watch(spec.loader)
                        return spec
        finally:
            self.finding = False
        return None

    def _watch(self, loader):
        # Those of built-in modules are classes.
        if isinstance(loader, type) or not hasattr(loader, "exec_module"):
            return
        if "exec_module" in getattr(loader, "__dict__", {"exec_module": None}):
            return
        run = loader.exec_module

        def exec_module(module):
            if self.depth or threading.current_thread() is not threading.main_thread():
                return run(module)
            self.depth += 1
            before = self._seen()
            try:
                return run(module)
            finally:
                self.depth -= 1
                self._learn(before)

        loader.exec_module = exec_module

    def _seen(self):
        return {
            "noted": set(notes),
            "lists": [list(sys.path), list(sys.meta_path), list(sys.path_hooks), list(warnings.filters)],
            "hooks": self._hooks(),
            "numbers": _numbers(),
            "variables": dict(os.environ._data),
            "loggers": _loggers(),
            "builtins": dict(vars(builtins)),
            "threads": _thread._count(),
            "free": self._free(),
            "locale": _locale.setlocale(_locale.LC_ALL, None),
        }

    def _learn(self, before):
        """What an import changed is as it should be."""
        after = self._seen()
        for attribute, was, is_ in zip(
            ("path", "meta_path", "path_hooks", "filters"), before["lists"], after["lists"]
        ):
            if was != is_:
                setattr(self, attribute, _learned(getattr(self, attribute), was, is_))
        self.threads += max(0, after["threads"] - before["threads"])
        for attribute in ("hooks", "numbers"):
            was, is_, base = before[attribute], after[attribute], getattr(self, attribute)
            setattr(self, attribute, tuple(new if new != old else kept for old, new, kept in zip(was, is_, base)))
        for attribute in ("variables", "loggers", "builtins"):
            was, is_ = before[attribute], after[attribute]
            if was != is_:
                base = getattr(self, attribute)
                base.update((name, value) for name, value in is_.items() if was.get(name, base) != value)
                for name in set(was) - set(is_):
                    base.pop(name, None)
        if before["locale"] != after["locale"]:
            self.locale = after["locale"]
        self.modules.update(sys.modules)
        if before["free"] == self.free != after["free"]:
            self._know_descriptors()
        noted = set(notes) - before["noted"]
        if "signals" in noted:
            self.signals = _signals()
        if "umask" in noted:
            self.umask = _originals["os"]["umask"](0o077)
            _originals["os"]["umask"](self.umask)
        _install()
        notes.difference_update(noted)
        self._know_names()
