"""What the judges in Python share: checks that are counted, the mounts, and the vaultfs command.

A check is a function whose name begins with `check_`; its docstring is its title. Where everything is comes
from the environment that `scripts/sdks` sets.
"""

import os
import subprocess
import sys
import time
import traceback

API = os.environ["VAULT_API"]
KEY = os.environ["WORKOS_API_KEY"]
READ_KEY = os.environ["READ_KEY"]
LIMITED_API = os.environ["LIMITED_API"]
LIMITED_KEY = os.environ["LIMITED_KEY"] if "LIMITED_KEY" in os.environ else None
MOUNTS = {"object": os.environ["MOUNT_OBJECT"], "kv": os.environ["MOUNT_KV"]}

# What a file holds and what the SDK calls it: text is the value itself, other bytes travel as a data URL.
BYTES_AND_VALUES = [
    (b"plain", "plain"),
    (b"a line\n", "a line\n"),
    ("snow \u2603, \U0001f512\r\n\ttab".encode(), "snow \u2603, \U0001f512\r\n\ttab"),
    (b'{"json": [1.0, 2]}', '{"json": [1.0, 2]}'),
    (b"", ""),
    (b"\x00\xff", "data:application/octet-stream;base64,AP8="),
]


def run(namespace):
    """Makes every check of a module, in order; the exit code is 0 only if none failed."""
    passed = failed = 0
    for name, check in list(namespace.items()):
        if not name.startswith("check_"):
            continue
        try:
            check()
            passed += 1
            print("ok     ", check.__doc__, flush=True)
        except Exception:
            failed += 1
            traceback.print_exc(file=sys.stdout)
            print("FAILED ", check.__doc__, flush=True)
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed != 0)


def same(found, wanted):
    assert found == wanted, f"{found!r} instead of {wanted!r}"


def raises(kind, status, call, *args, **kwargs):
    """Calls, and returns the exception: exactly of this kind, with this status."""
    try:
        result = call(*args, **kwargs)
    except kind as e:
        same(type(e), kind)
        # The old SDK has it in the response only.
        same(getattr(e, "status_code", e.response.status_code), status)
        return e
    raise AssertionError(f"{kind.__name__} was not raised: {result!r}")


def becomes(wanted, look):
    """Looks until it is so, for 20 seconds at most."""
    end = time.monotonic() + 20
    while True:
        try:
            found = look()
        except OSError as e:
            found = e
        if found == wanted:
            return
        assert time.monotonic() < end, f"still {found!r} instead of {wanted!r}"
        time.sleep(0.02)


def remove(path):
    """Deletes for good before it returns: an unlink by a program that is not known to remove is carried out a second
    later, or at the fsync of the directory."""
    os.unlink(path)
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, content):
    with open(path, "wb") as file:
        file.write(content)


def vaultfs(*args, stdin=b""):
    """Runs the command with this vault, in the kv dialect."""
    command = [os.environ["VAULTFS"], *args, "--api-url", API, "--api", "kv"]
    return subprocess.run(command, input=stdin, stdout=subprocess.PIPE, check=True, timeout=20).stdout
