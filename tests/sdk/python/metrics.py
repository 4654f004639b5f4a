"""The metrics of the mounts, read by the official Prometheus client."""

import os

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
    """the only labels are version, dialect and errno"""
    for mount in MOUNTS.values():
        for family in read(mount).values():
            for sample in family.samples:
                assert set(sample.labels) <= {"version", "dialect", "errno"}, sample


run(globals())
