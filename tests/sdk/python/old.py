"""The Python SDK 5.46 as a judge: it sends the slashes of a name as they are, and expects fields of its own."""

import workos
from workos import exceptions

import judge
from judge import MOUNTS, becomes, raises, read, remove, same, write

vault = workos.WorkOSClient(api_key=judge.KEY, client_id="client_unused", base_url=judge.API).vault


def made(name, value="v"):
    return vault.create_object(name=name, value=value, key_context={"organization_id": "org_1"})


def check_by_name():
    """read by name with raw slashes"""
    for name in ["old/dir/a b#1?ü", "old/%41%2f%", "old/x/", "old//y", "old/versions", "old/a+b&c=d;e"]:
        created = made(name, f"value of {name}")
        found = vault.read_object_by_name(name=name)
        same((found.id, found.name, found.value), (created.id, name, f"value of {name}"))
        same(found.metadata, created)


def check_lifecycle():
    """create, read, update with a check, list, versions, delete"""
    created = made("old/life", "1")
    same(created.context.root, {"organization_id": "org_1"})
    same(vault.read_object(object_id=created.id).value, "1")
    updated = vault.update_object(object_id=created.id, value="2", version_check=created.version_id)
    assert updated.metadata.version_id != created.version_id
    raises_conflict(vault.update_object, object_id=created.id, value="3", version_check=created.version_id)
    versions = vault.list_object_versions(object_id=created.id)
    same([v.current_version for v in versions], [True, False])
    same(versions[1].id, created.version_id)
    for i in range(11):
        made(f"old/many/{i}")
    page = vault.list_objects()
    same(len(page.data), 10)
    assert page.list_metadata.after and page.data[0].updated_at
    names = [o.name for o in page]
    assert "old/life" in names and len(names) == len(set(names)) > 11
    same(vault.delete_object(object_id=created.id), None)
    raises(exceptions.NotFoundException, 404, vault.read_object, object_id=created.id)


def raises_conflict(call, **kwargs):
    error = raises(exceptions.ConflictException, 409, call, **kwargs)
    assert error.request_id.startswith("req_")


def check_errors():
    """errors are the exceptions that their statuses stand for"""
    raises_conflict(lambda: (made("old/taken"), made("old/taken")))
    raises(exceptions.NotFoundException, 404, vault.read_object_by_name, name="old/absent")
    raises(exceptions.BadRequestException, 422, made, "n" * 201)
    for key, status, kind in [
        ("sk_unknown", 401, exceptions.AuthenticationException),
        (judge.READ_KEY, 403, exceptions.AuthorizationException),
    ]:
        other = workos.WorkOSClient(api_key=key, client_id="client_unused", base_url=judge.API).vault
        raises(kind, status, other.create_object, name="old/refused", value="v", key_context={"a": "b"})


def check_encryption():
    """data keys and local encryption, associated data included, with vaultfs key too"""
    pair = vault.create_data_key(key_context={"organization_id": "org_1"})
    same(pair.context.root, {"organization_id": "org_1"})
    same(vault.decrypt_data_key(keys=pair.encrypted_keys), pair.data_key)
    sealed = vault.encrypt(data="s3cr3t ü", key_context={"a": "b"}, associated_data="with")
    same(vault.decrypt(encrypted_data=sealed, associated_data="with"), "s3cr3t ü")
    same(judge.vaultfs("key", "decrypt", "--aad", "with", stdin=sealed.encode()).decode(), "s3cr3t ü")
    sealed = judge.vaultfs("key", "encrypt", "--aad", "with", stdin=b"from vaultfs").decode()
    same(vault.decrypt(encrypted_data=sealed, associated_data="with"), "from vaultfs")


def check_mounts():
    """what it wrote is read through a mount in each dialect, and the other way round"""
    for dialect, point in MOUNTS.items():
        path = f"{point}/old/{dialect}/a b#1?ü"
        created = made(f"old/{dialect}/a b#1?ü", "from the SDK\n")
        becomes(b"from the SDK\n", lambda: read(path))
        write(path, b"from the mount\n")
        same(vault.read_object_by_name(name=f"old/{dialect}/a b#1?ü").value, "from the mount\n")
        same(len(vault.list_object_versions(object_id=created.id)), 2)
        remove(path)


judge.run(globals())
