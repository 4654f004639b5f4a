"""The Python SDK 10 as a judge: every operation of the vault, its errors, its encryption, and mounts."""

import asyncio
import os
import time
from datetime import datetime, timedelta, timezone

import workos
from cryptography.exceptions import InvalidTag

import judge
from judge import MOUNTS, becomes, raises, read, remove, same, write

CONTEXT = {"organization_id": "org_1", "with space": "ä/?&"}
# A version that no object has.
ABSENT = "c3d4e5f6-7890-4bcd-af12-34567890abcd"

client = workos.WorkOSClient(api_key=judge.KEY, base_url=judge.API, max_retries=0)
vault = client.vault


def made(name, value="v", context=None):
    return vault.create_kv(name=name, value=value, key_context=context or {})


def version_of(id):
    return vault.list_kv_metadata(id).metadata.version_id


def check_create():
    """create answers with metadata, in the types the SDK promises"""
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    metadata = made("py/created", "s3cr3t", CONTEXT)
    same(metadata.context, CONTEXT)
    assert before < metadata.updated_at < datetime.now(timezone.utc) + timedelta(seconds=1)
    assert metadata.version_id and metadata.key_id and metadata.environment_id.startswith("environment_")
    assert metadata.updated_by.id and metadata.updated_by.name


def check_read():
    """read by id gives the value and the same metadata"""
    created = made("py/read", "first", CONTEXT)
    found = vault.get_kv(created.id)
    same((found.id, found.name, found.value), (created.id, "py/read", "first"))
    same(found.metadata.to_dict(), created.to_dict())


def check_by_name():
    """read by name, whatever is in the name"""
    for name in ["dir/a b#1?ü", "py/%41%2f%", "py/+&=;:@,\\", "py/\u2603\U0001f512/", "py//x", "n" * 200]:
        created = made(name, f"value of {name}")
        found = vault.get_name(name)
        same((found.id, found.name, found.value), (created.id, name, f"value of {name}"))


def check_values():
    """any text comes back as it was sent"""
    for i, value in enumerate(["", "\n", "\0", '"\\\u2028\u007f', "\U0001f512" * 1000, "x" * 500_000]):
        same(vault.get_kv(made(f"py/values/{i}", value).id).value, value)


def check_update():
    """update with the current version's id, with none, and with another one's"""
    created = made("py/updated", "1")
    second = vault.update_kv(created.id, value="2", version_check=created.version_id)
    same((second.id, second.name), (created.id, "py/updated"))
    assert second.metadata.version_id not in (None, created.version_id)
    assert second.metadata.updated_at >= created.updated_at
    third = vault.update_kv(created.id, value="3")
    vault.update_kv(created.id, value="4", version_check=None)
    for stale in [created.version_id, second.metadata.version_id, third.metadata.version_id, ABSENT, "no id"]:
        raises(workos.ConflictError, 409, vault.update_kv, created.id, value="lost", version_check=stale)
    same(vault.get_kv(created.id).value, "4")


def check_list_and_paging():
    """list pages forwards and backwards, in both orders, and the SDK follows the cursors"""
    names = [f"py/page/{i:02}" for i in range(25)]
    ids = [made(name).id for name in names]
    first = vault.list_kv(limit=10, search="py/page/")
    same([o.name for o in first.data], names[:10])
    same([o.id for o in first.auto_paging_iter()], ids)
    assert first.before is None and first.has_more() and first.data[0].updated_at
    second = vault.list_kv(limit=10, search="py/page/", after=first.after)
    same([o.name for o in second.data], names[10:20])
    same([o.name for o in vault.list_kv(limit=10, search="py/page/", before=second.before)], names[:10])
    last = vault.list_kv(limit=10, search="py/page/", after=second.after)
    same(([o.name for o in last.data], last.has_more()), (names[20:], False))
    down = vault.list_kv(limit=10, search="py/page/", order="desc")
    same([o.name for o in down.auto_paging_iter()], names[::-1])
    same(len(vault.list_kv().data), 10)
    same(len(vault.list_kv(limit=1000, search="py/page/").data), 25)


def check_search():
    """search finds part of a name and nothing else"""
    for name in ["py/needle", "py/a needle/x", "py/haystack"]:
        made(name)
    same([o.name for o in vault.list_kv(search="needle").data], ["py/needle", "py/a needle/x"])
    same(vault.list_kv(search="%needle").data, [])


def check_updated_after():
    """updated_after finds what changed since, as a datetime and as text"""
    old, new = made("py/since/old"), made("py/since/new")
    # Times are kept to the millisecond: the next change has to be in a later one.
    until = datetime.now(timezone.utc) + timedelta(milliseconds=2)
    while datetime.now(timezone.utc) <= until:
        time.sleep(0.001)
    changed = vault.update_kv(new.id, value="changed").metadata.updated_at
    assert changed > old.updated_at
    since = changed - timedelta(milliseconds=1)
    for moment in [since, since.isoformat(), since.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat()]:
        found = [o.name for o in vault.list_kv(updated_after=moment, search="py/since/").data]
        same(found, ["py/since/new"])
    same(vault.list_kv(updated_after=datetime.now(timezone.utc) + timedelta(days=1)).data, [])


def check_metadata():
    """describe tells of an object and not its value"""
    created = made("py/described", "unseen", CONTEXT)
    found = vault.list_kv_metadata(created.id)
    same((found.id, found.name, found.metadata.to_dict()), (created.id, "py/described", created.to_dict()))
    assert not hasattr(found, "value")


def check_versions():
    """versions are listed newest first, one of them current, with sizes and etags"""
    created = made("py/versions", "1")
    for value in ["22", "1", "4444"]:
        vault.update_kv(created.id, value=value)
    versions = vault.list_kv_versions(created.id).data
    same([v.size for v in versions], [4, 1, 2, 1])
    same([v.current_version for v in versions], [True, False, False, False])
    same(versions[0].id, version_of(created.id))
    same(versions[3].id, created.version_id)
    assert len({v.id for v in versions}) == 4 and all(v.etag for v in versions)
    same(sorted(v.created_at for v in versions), [v.created_at for v in versions][::-1])


def check_delete():
    """delete without a check, with a good one, and not with a bad one"""
    plain, checked = made("py/deleted/plain"), made("py/deleted/checked")
    same(vault.delete_kv(plain.id), None)
    raises(workos.ConflictError, 409, vault.delete_kv, checked.id, version_check=ABSENT)
    raises(workos.ConflictError, 409, vault.delete_kv, checked.id, version_check="no id")
    same(vault.get_kv(checked.id).value, "v")
    vault.delete_kv(checked.id, version_check=checked.version_id)
    same(vault.list_kv(search="py/deleted/").data, [])
    # The name is free again, and what it names is another object.
    assert made("py/deleted/plain").id != plain.id


def check_idempotency():
    """a create that is sent twice with one key is done once"""
    options = {"idempotency_key": "py-once"}
    arguments = {"name": "py/once", "value": "v", "key_context": {}}
    first, again = (vault.create_kv(**arguments, request_options=options) for _ in range(2))
    same(again.id, first.id)
    same(len(vault.list_kv_versions(first.id).data), 1)
    other = dict(arguments, value="another")
    raises(workos.UnprocessableEntityError, 422, vault.create_kv, **other, request_options=options)


def check_encrypt():
    """what encrypt made, decrypt opens: with its associated data and with no other"""
    for text in ["", "s3cr3t \u2603", "x" * 100_000]:
        same(vault.decrypt(encrypted_data=vault.encrypt(data=text, key_context=CONTEXT)), text)
    sealed = vault.encrypt(data="s3cr3t", key_context={}, associated_data="für ü")
    same(vault.decrypt(encrypted_data=sealed, associated_data="für ü"), "s3cr3t")
    for other in [None, "for u"]:
        try:
            vault.decrypt(encrypted_data=sealed, associated_data=other)
        except InvalidTag:
            continue
        raise AssertionError("opened without its associated data")


def check_encrypt_here_decrypt_there():
    """vaultfs key decrypt opens what the SDK encrypted, and the other way round"""
    for aad in [None, "associated ü"]:
        option = ["--aad", aad] if aad else []
        sealed = vault.encrypt(data="from the SDK\n", key_context=CONTEXT, associated_data=aad)
        same(judge.vaultfs("key", "decrypt", *option, stdin=sealed.encode()), b"from the SDK\n")
        sealed = judge.vaultfs("key", "encrypt", "--context", "a=b", *option, stdin=b"from vaultfs\n")
        same(vault.decrypt(encrypted_data=sealed.decode(), associated_data=aad), "from vaultfs\n")


def check_data_keys():
    """a data key is unwrapped again, and rewrapped under another context"""
    issued = vault.create_data_key(context=CONTEXT)
    same(issued.context, CONTEXT)
    opened = vault.create_decrypt(keys=issued.encrypted_keys)
    same((opened.id, opened.data_key), (issued.id, issued.data_key))
    assert vault.create_data_key(context=CONTEXT).data_key != issued.data_key
    rewrapped = vault.create_rekey(context={"other": "context"}, encrypted_keys=issued.encrypted_keys)
    same((rewrapped.data_key, rewrapped.context), (issued.data_key, {"other": "context"}))
    assert rewrapped.encrypted_keys != issued.encrypted_keys
    same(vault.create_decrypt(keys=rewrapped.encrypted_keys).data_key, issued.data_key)
    for foreign in ["", "AAAA", "no base64", issued.encrypted_keys[:-8]]:
        raises(workos.BadRequestError, 400, vault.create_decrypt, keys=foreign)
        raises(workos.BadRequestError, 400, vault.create_rekey, context={}, encrypted_keys=foreign)


def check_error_details():
    """an error carries the vault's sentence, its code, and the id of the request"""
    error = raises(workos.NotFoundError, 404, vault.get_name, "py/absent")
    assert "list the objects" in error.message, error.message
    same((error.code, error.request_id[:4]), ("not_found", "req_"))


def check_bad_request():
    """BadRequestError: a cursor that was never given out"""
    same(raises(workos.BadRequestError, 400, vault.list_kv, after="absent").code, "invalid_request")


def check_authentication():
    """AuthenticationError: a key that is not known"""
    unknown = workos.WorkOSClient(api_key="sk_unknown", base_url=judge.API, max_retries=0).vault
    calls = [unknown.list_kv, lambda: unknown.get_name("x"), lambda: unknown.create_data_key(context={})]
    for call in calls:
        same(raises(workos.AuthenticationError, 401, call).code, "unauthorized")


def check_authorization():
    """AuthorizationError: a key that may only read"""
    created = made("py/readable", "r")
    reader = workos.WorkOSClient(api_key=judge.READ_KEY, base_url=judge.API, max_retries=0).vault
    same(reader.get_kv(created.id).value, "r")
    calls = [
        lambda: reader.create_kv(name="py/refused", value="v", key_context={}),
        lambda: reader.update_kv(created.id, value="w"),
        lambda: reader.delete_kv(created.id),
        lambda: reader.create_data_key(context={}),
        lambda: reader.create_decrypt(keys="AAAA"),
        lambda: reader.create_rekey(context={}, encrypted_keys="AAAA"),
    ]
    for call in calls:
        error = raises(workos.AuthorizationError, 403, call)
        same(error.code, "forbidden")
        assert "permission" in error.message, error.message
    same(vault.get_kv(created.id).value, "r")


def check_not_found():
    """NotFoundError: whatever is asked of an object that is gone"""
    gone = made("py/gone").id
    vault.delete_kv(gone)
    for id in [gone, ABSENT, "name"]:
        for call in [vault.get_kv, vault.list_kv_metadata, vault.list_kv_versions, vault.delete_kv]:
            raises(workos.NotFoundError, 404, call, id)
        raises(workos.NotFoundError, 404, vault.update_kv, id, value="v")
    raises(workos.NotFoundError, 404, vault.get_name, "py/gone")


def check_conflict():
    """ConflictError: a name that is taken"""
    made("py/taken")
    error = raises(workos.ConflictError, 409, made, "py/taken")
    same(error.code, "conflict")


def check_unprocessable():
    """UnprocessableEntityError: names and key contexts over their limits"""
    same(raises(workos.UnprocessableEntityError, 422, made, "n" * 201).code, "unprocessable_entity")
    for over in [{str(i): "v" for i in range(11)}, {"k": "v" * 501}]:
        raises(workos.UnprocessableEntityError, 422, made, "py/over", "v", over)
        raises(workos.UnprocessableEntityError, 422, vault.create_data_key, context=over)


def check_rate_limit():
    """RateLimitExceededError: it says how long to wait"""
    limited = workos.WorkOSClient(api_key=judge.LIMITED_KEY, base_url=judge.LIMITED_API, max_retries=0).vault
    for _ in range(3):
        limited.list_kv()
    error = raises(workos.RateLimitExceededError, 429, limited.list_kv)
    same(error.code, "rate_limit_exceeded")
    assert 1 <= error.retry_after <= 60, error.retry_after


def check_async():
    """the asynchronous client does the same"""

    async def session():
        async with workos.AsyncWorkOSClient(api_key=judge.KEY, base_url=judge.API) as asynchronous:
            there = asynchronous.vault
            created = await there.create_kv(name="py/async", value="1", key_context={})
            await there.update_kv(created.id, value="2", version_check=created.version_id)
            same((await there.get_name("py/async")).value, "2")
            found = [o.name async for o in (await there.list_kv(search="py/page/")).auto_paging_iter()]
            same(len(found), 25)
            sealed = await there.encrypt(data="s", key_context={}, associated_data="a")
            same(await there.decrypt(encrypted_data=sealed, associated_data="a"), "s")
            await there.delete_kv(created.id)

    asyncio.run(session())


def check_written_here_read_in_mounts():
    """what the SDK wrote is read through a mount in each dialect"""
    for i, (content, value) in enumerate(judge.BYTES_AND_VALUES):
        name = f"py/to mounts/a b#1?ü {i}"
        id = made(name, value).id
        for point in MOUNTS.values():
            becomes(content, lambda: read(f"{point}/{name}"))
        vault.update_kv(id, value=f"updated {i}")
        for point in MOUNTS.values():
            becomes(f"updated {i}".encode(), lambda: read(f"{point}/{name}"))
        vault.delete_kv(id)
        for point in MOUNTS.values():
            becomes(False, lambda: os.path.exists(f"{point}/{name}"))


def check_written_in_mounts_read_here():
    """what a mount in each dialect wrote, the SDK reads: at once, and one version a save"""
    for dialect, point in MOUNTS.items():
        for i, (content, value) in enumerate(judge.BYTES_AND_VALUES):
            name = f"py/from {dialect}/a b#1?ü {i}"
            path = f"{point}/{name}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write(path, b"first")
            write(path, content)
            # A file that is truncated and not written to is stored just after it is closed.
            if not content:
                becomes(value, lambda: vault.get_name(name).value)
            found = vault.get_name(name)
            same(found.value, value)
            # As editors do it: a temporary file, renamed over the old one.
            with open(f"{path}.tmp", "xb") as file:
                file.write(b"third")
            os.rename(f"{path}.tmp", path)
            same(vault.get_kv(found.id).value, "third")
            same([v.size for v in vault.list_kv_versions(found.id).data], [5, len(content), 5])
            remove(path)
            raises(workos.NotFoundError, 404, vault.get_kv, found.id)
        same(vault.list_kv(search=f"py/from {dialect}/").data, [])


def check_structured_objects():
    """an object that the other dialect holds as JSON is its text here"""
    path = f"{MOUNTS['object']}/py-structured.json"
    write(path, b'{\n  "user": "u",\n  "port": 5432\n}\n')
    same(vault.get_name("py-structured.json").value, '{\n  "user": "u",\n  "port": 5432\n}\n')
    remove(path)


judge.run(globals())
