"""A host is as new for every call: what one function does to its process, no other sees."""

import os
import time

import pytest

import floe

from conftest import wait_until


def state():
    """What of its process a function can see that another one may have changed."""
    import asyncio
    import builtins
    import decimal
    import gc
    import json
    import locale
    import logging
    import resource
    import signal
    import socket
    import sys
    import threading
    import warnings
    from multiprocessing import context

    umask = os.umask(0o22)
    os.umask(umask)
    return {
        "directory": (os.path.basename(os.getcwd()), os.listdir(".")),
        "environment": {k: v for k, v in os.environ.items() if k != "FLOE_HOST_ID"},
        "signals": [str(signal.getsignal(number)) for number in (2, 10, 12, 14, 15)],
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "timers": [signal.getitimer(timer) for timer in (0, 1, 2)],
        "umask": umask,
        "locale": locale.setlocale(locale.LC_ALL),
        "decimal": (decimal.getcontext().prec, decimal.getcontext().rounding),
        "warnings": [str(entry) for entry in warnings.filters],
        "logging": (
            logging.root.level,
            len(logging.root.handlers),
            logging.root.manager.disable,
            logging.getLogger("other").level,
        ),
        "path": [entry for entry in sys.path if "host-" not in entry],
        "hooks": [str(getattr(sys, name)) for name in ("excepthook", "displayhook", "unraisablehook")],
        "streams": [(s.fileno(), s.closed) for s in (sys.stdout, sys.stderr)],
        "limits": [resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE)],
        "numbers": (sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled(), gc.get_threshold()),
        "timeout": socket.getdefaulttimeout(),
        "threads": threading.active_count() - any(t.name == "floe-results" for t in threading.enumerate()),
        "builtins": (str(builtins.open), hasattr(builtins, "leaked")),
        "modules": (json.__name__, "leaked" in sys.modules),
        "start method": context._default_context._actual_context,
        "loops": getattr(asyncio.events, "_event_loop_policy", None),
        "trace": (sys.gettrace(), sys.getprofile()),
    }


def changes_directory():
    os.chdir("/")


def removes_directory():
    import tempfile

    directory = tempfile.mkdtemp()
    os.chdir(directory)
    os.rmdir(directory)


def removes_its_own_directory():
    import shutil

    shutil.rmtree(os.getcwd())


def leaves_files():
    os.makedirs("a/b")
    with open("a/b/c", "w") as file:
        file.write("left")


def changes_environment():
    os.environ["LEAKED"] = "1"
    os.environ["HOME"] = "/nowhere"
    os.environ.pop("PATH", None)
    os.putenv("LEAKED_TOO", "1")


def replaces_environment():
    os.environ = {"LEAKED": "1"}  # noqa: B003


def sets_handlers():
    import signal

    for number in (2, 10, 12, 15):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])


def sets_an_alarm():
    import signal

    signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)


def sets_a_deadly_alarm():
    import signal

    signal.alarm(1)


def changes_umask():
    os.umask(0o777)


def changes_locale():
    import locale

    locale.setlocale(locale.LC_ALL, "C")


def changes_decimal():
    import decimal

    decimal.getcontext().prec = 2
    decimal.getcontext().rounding = decimal.ROUND_UP


def changes_warnings():
    import warnings

    warnings.simplefilter("error")
    warnings.filters = []


def changes_logging():
    import logging

    logging.basicConfig(level=logging.DEBUG)
    logging.getLogger("other").setLevel(logging.DEBUG)
    logging.disable(logging.CRITICAL)


def changes_path():
    import sys

    sys.path.insert(0, "/leaked")
    sys.path = ["/leaked"]
    sys.meta_path.clear()


def replaces_streams_and_hooks():
    import io
    import sys

    sys.stdout = sys.stderr = io.StringIO()
    sys.excepthook = sys.displayhook = print


def closes_streams():
    import sys

    sys.stdout.close()


def closes_descriptors():
    os.close(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)


def changes_numbers():
    import gc
    import socket
    import sys

    sys.setrecursionlimit(200)
    sys.setswitchinterval(1)
    gc.disable()
    socket.setdefaulttimeout(0.1)


def changes_limits():
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def lowers_a_limit_for_good():
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))


def damages_modules():
    import builtins
    import sys
    import types

    builtins.open = None
    builtins.leaked = True
    sys.modules["json"] = None
    sys.modules["leaked"] = types.ModuleType("leaked")


def traces():
    import sys

    sys.settrace(lambda *_: None)


def sets_start_method():
    import multiprocessing

    multiprocessing.set_start_method("spawn")


def leaves_a_loop():
    import asyncio

    asyncio.set_event_loop(asyncio.new_event_loop())


def leaves_a_thread():
    import threading

    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


def leaves_a_timer():
    import faulthandler

    faulthandler.dump_traceback_later(1, exit=True)


HARMS = [
    changes_directory,
    removes_directory,
    removes_its_own_directory,
    leaves_files,
    changes_environment,
    replaces_environment,
    sets_handlers,
    sets_an_alarm,
    sets_a_deadly_alarm,
    changes_umask,
    changes_locale,
    changes_decimal,
    changes_warnings,
    changes_logging,
    changes_path,
    replaces_streams_and_hooks,
    closes_streams,
    closes_descriptors,
    changes_numbers,
    changes_limits,
    lowers_a_limit_for_good,
    damages_modules,
    traces,
    sets_start_method,
    leaves_a_loop,
    leaves_a_thread,
    leaves_a_timer,
]


@pytest.fixture
def one(mesh):
    """A node, so that calls meet each other in its only slot."""
    return mesh["n0"]


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_what_a_function_changes_no_other_sees(one, harm):
    one.apply_sync(lambda: None)
    before = one.apply_sync(state)
    harmed = one.apply(harm)
    after = one.apply(state)
    try:
        harmed.result(60)
    except ZeroDivisionError:
        assert harm is sets_an_alarm
    assert after.result(60) == before
    # What was printed arrives, and short calls after one another are as apart as long ones.
    assert one.apply_sync(lambda: print("still here")) is None
    for _ in range(3):
        one.apply(harm)
    assert one.apply_sync(state) == before


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_in_jobs(mesh, harm):
    def work(part):
        before = state()
        if part[0] % 2:
            harm()
        return before

    n = 6
    for left in reversed(range(5)):
        try:
            states = mesh.parallelize(list(range(n)), work, n, merge=None).collect()
            break
        except ZeroDivisionError:
            # Where the machine is busy it goes off before the function that set it has returned. If it went
            # off in another one, it would each time.
            if harm is not sets_an_alarm or left == 0:
                raise
    assert all(other == states[0] for other in states)


def test_between_the_items_of_a_map(mesh):
    def item(n):
        seen = os.getcwd() != "/", "LEAKED" in os.environ, os.umask(0o22)
        os.chdir("/")
        os.environ["LEAKED"] = "1"
        os.umask(0)
        return seen

    assert set(mesh.map(item, range(200), chunk=50)) == {(True, False, 0o22)}


def test_random_numbers_are_random_again(one):
    def seeds():
        import random

        import numpy

        random.seed(1)
        numpy.random.seed(1)
        return draws()

    def draws():
        import random

        import numpy

        return random.random(), float(numpy.random.random())

    first = one.apply_sync(seeds)
    assert one.apply_sync(seeds) == first
    others = [one.apply_sync(draws) for _ in range(3)]
    assert len({a for a, _ in others} | {first[0]}) == 4
    assert len({b for _, b in others} | {first[1]}) == 4


def test_what_an_import_changes_stays(one, tmp_path):
    (tmp_path / "changer.py").write_text(
        "import os, sys, warnings\nsys.path.append('/by/changer')\nos.environ['BY_CHANGER'] = '1'\n"
        "warnings.filterwarnings('ignore', 'by changer')\n"
    )

    def imports(path):
        import sys

        sys.path.insert(0, path)
        os.environ["BY_FUNCTION"] = "1"
        import changer  # noqa: F401

        return seen()

    def seen():
        import sys
        import warnings

        return (
            "/by/changer" in sys.path,
            os.environ.get("BY_CHANGER"),
            any("by changer" in str(entry) for entry in warnings.filters),
            "BY_FUNCTION" in os.environ,
        )

    with_own = floe.requires(env={"OWN": "host"})
    result = one.apply(with_own(imports), str(tmp_path))
    assert result.result(60) == (True, "1", True, True)
    assert one.apply_sync(with_own(seen)) == (True, "1", True, False)


def _lives(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_large_function_leaves_its_process_as_it_found_it(one):
    """What it is loaded from is a file that the host keeps open, and closes when it is called no more."""
    table = os.urandom(200_000)
    process = one.apply_sync(os.getpid)

    def large(_):
        return os.getpid() if table else None

    assert one.map(large, range(3), chunk=1).collect() == [process] * 3
    assert one.apply_sync(large, 0) == process
    del large
    assert [one.apply_sync(os.getpid) for _ in range(3)] == [process] * 3


def starts_processes():
    import subprocess

    daemon = "setsid sleep 600 >/dev/null 2>&1 & echo $!"
    made = subprocess.run(["sh", "-c", daemon], stdout=subprocess.PIPE, text=True, check=True)
    own = subprocess.Popen(["sleep", "600"], start_new_session=True)
    bare = subprocess.Popen(["env", "-i", "setsid", "sleep", "600"])
    return int(made.stdout), own.pid, bare.pid


def test_processes_end_with_their_call(one):
    processes = one.apply_sync(starts_processes)
    wait_until("the end of what the call started", lambda: not any(map(_lives, processes)))
    assert one.apply_sync(abs, -1) == 1


def test_processes_end_with_a_process_that_ends_by_itself(one, tmp_path):
    def starts_and_ends(path, end):
        import subprocess

        bare = subprocess.Popen(["sleep", "600"], start_new_session=True, env={})
        with open(path, "a") as file:
            file.write(f"{bare.pid}\n")
        end()

    def exits():
        os._exit(0)

    def is_killed():
        os.kill(os.getpid(), 9)

    def accesses_what_is_not_there():
        import ctypes

        ctypes.string_at(0)

    for end in (exits, is_killed, accesses_what_is_not_there):
        written = tmp_path / end.__name__
        with pytest.raises(floe.Crashed):
            one.apply_sync(starts_and_ends, str(written), end)
        processes = [int(number) for number in written.read_text().split()]
        assert processes
        wait_until("the end of what was started", lambda seen=processes: not any(map(_lives, seen)))


def test_processes_end_with_their_node(mortal):
    def starts_and_stays(path):
        with open(path, "w") as file:
            file.write(" ".join(map(str, starts_processes())))
        time.sleep(600)

    with mortal.connect() as mesh:
        written = mortal.directory / "processes"
        mesh["n1"].apply(starts_and_stays, str(written))
        wait_until("the processes", lambda: written.exists() and len(written.read_text().split()) == 3)
        processes = [int(number) for number in written.read_text().split()]
        assert all(map(_lives, processes))
        mortal.nodes["n1"].kill()
        wait_until("the end of what the node ran", lambda: not any(map(_lives, processes)))
