"""The metrics of the mounts, read by the official Prometheus client."""

import os
import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families as families

from judge import MOUNTS, run


def read(mount):
    with open(os.path.join(mount, ".vaultfs/metrics"), encoding="utf-8") as file:
        return {family.name: family for family in families(file.read())}


def check_all_is_parsed():
    """each metric of each mount has a type, a help and finite samples"""
    for mount in MOUNTS.values():
        found = read(mount)
        assert len(found) > 15, sorted(found)
        for family in found.values():
            assert family.name.startswith("vaultfs_"), family.name
            assert family.type in ("gauge", "counter"), (family.name, family.type)
            assert family.documentation, family.name
            for sample in family.samples:
                assert sample.value == sample.value and abs(sample.value) != float("inf"), sample


def check_requests_are_counted():
    """a read of an unknown name adds to the requests, a read of the metrics does not"""
    mount = MOUNTS["kv"]
    before = read(mount)["vaultfs_vault_requests"].samples[0].value
    again = read(mount)["vaultfs_vault_requests"].samples[0].value
    with open(os.path.join(mount, "metrics-are-counted"), "wb") as file:
        file.write(b"1")
    after = read(mount)["vaultfs_vault_requests"].samples[0].value
    assert again - before <= 2 and after > again, (before, again, after)


def check_no_labels_without_bound():
    """the only labels are version, dialect, errno, process and program, and of programs there are few"""
    for mount in MOUNTS.values():
        for family in read(mount).values():
            assert len(family.samples) <= 60, family.name
            for sample in family.samples:
                assert set(sample.labels) <= {"version", "dialect", "errno", "process", "program"}, sample


def check_processes():
    """restarts are counted, and whether memory is locked is told of each process"""
    for mount in MOUNTS.values():
        found = read(mount)
        assert found["vaultfs_worker_restarts"].type == "counter"
        assert found["vaultfs_worker_restarts"].samples[0].value == 0
        locked = {s.labels["process"]: s.value for s in found["vaultfs_memory_locked"].samples}
        assert set(locked) == {"worker", "keeper"} and set(locked.values()) <= {0, 1}, locked


def check_programs():
    """requests are told apart by the program that caused them, whatever it is called, and add up"""
    mount = MOUNTS["object"]
    script = r"import os,sys; open('/proc/self/comm','w').write('a\"b\\c'); open(sys.argv[1], 'w').write('1')"
    subprocess.run([sys.executable, "-c", script, os.path.join(mount, "written-by-a-program")], check=True)
    found = read(mount)
    spent = {s.labels["program"]: s.value for s in found["vaultfs_vault_requests_by_program"].samples}
    assert r'a"b\c' in spent, spent
    total = found["vaultfs_vault_requests"].samples[0].value
    assert abs(sum(spent.values()) - total) < 1, (spent, total)


run(globals())
