// The Node SDK as a judge: `vault.mjs 8` for what the old one offers, `vault.mjs 11` for the whole of the new one.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';

import { becomes, bytesAndValues, env, mounts, raises, remove, replace, run, vaultfs } from './judge.mjs';

const version = process.argv[2];
const eleven = version === '11';
const require = createRequire(`${env.SDK_HOME}/node/`);
const { WorkOS } = require(`workos-${version}`);

const client = (api, key) =>
  new WorkOS(key, { apiHostname: '127.0.0.1', https: false, port: Number(new URL(api).port), maxRetries: 0 });
const vault = client(env.VAULT_API, env.WORKOS_API_KEY).vault;

const context = { organization_id: 'org_1', 'with space': 'ä/?&' };
// A version that no object has.
const absent = 'c3d4e5f6-7890-4bcd-af12-34567890abcd';
const top = `node${version}`;
const made = (name, value = 'v', context = {}) => vault.createObject({ name, value, context });
const names = (list) => list.data.map((object) => object.name);

const checks = {
  async 'create and read: the value and its metadata'() {
    const before = Date.now() - 1000;
    const created = await made(`${top}/read`, 'first', context);
    assert.deepEqual(created.context, context);
    assert.ok(before < created.updatedAt.getTime() && created.updatedAt.getTime() < Date.now() + 1000);
    assert.ok(created.versionId && created.keyId && created.environmentId.startsWith('environment_'));
    assert.ok(created.updatedBy.id && created.updatedBy.name);
    const found = await vault.readObject({ id: created.id });
    assert.deepEqual(found, { id: created.id, name: `${top}/read`, value: 'first', metadata: created });
  },

  async 'read by name, whatever is in the name'() {
    for (const end of ['dir/a b#1?ü', '%41%2f%', '+&=;:@,\\', '\u2603\u{1f512}/', '/x']) {
      const name = `${top}/${end}`;
      const created = await made(name, `value of ${name}`);
      const found = await vault.readObjectByName(name);
      assert.deepEqual([found.id, found.name, found.value], [created.id, name, `value of ${name}`]);
    }
  },

  async 'any text comes back as it was sent'() {
    for (const value of ['', '\n', '\0', '"\\\u2028\u007f', '\u{1f512}'.repeat(1000), 'x'.repeat(500_000)]) {
      const { id } = await made(`${top}/value`, value);
      assert.equal((await vault.readObject({ id })).value, value);
      await vault.deleteObject({ id });
    }
  },

  async 'update with the current version, with none, and with another one'() {
    const created = await made(`${top}/updated`, '1');
    const { id } = created;
    const second = await vault.updateObject({ id, value: '2', versionCheck: created.versionId });
    assert.deepEqual([second.id, second.name], [id, `${top}/updated`]);
    assert.notEqual(second.metadata.versionId, created.versionId);
    await vault.updateObject({ id, value: '3' });
    for (const versionCheck of [created.versionId, second.metadata.versionId, absent, 'no id']) {
      await raises('ConflictException', 409, () => vault.updateObject({ id, value: 'lost', versionCheck }));
    }
    assert.equal((await vault.readObject({ id })).value, '3');
  },

  async 'describe tells of an object and not its value'() {
    const created = await made(`${top}/described`, 'unseen', context);
    const found = await vault.describeObject({ id: created.id });
    assert.deepEqual([found.id, found.name, found.value], [created.id, `${top}/described`, undefined]);
    assert.deepEqual(found.metadata, created);
  },

  async 'versions are listed newest first, one of them current'() {
    const { id, versionId } = await made(`${top}/versions`, '1');
    for (const value of ['22', '333']) await vault.updateObject({ id, value });
    const versions = await vault.listObjectVersions({ id });
    assert.deepEqual(versions.map((v) => v.currentVersion), [true, false, false]);
    assert.equal(versions[0].id, (await vault.describeObject({ id })).metadata.versionId);
    assert.equal(versions[2].id, versionId);
    assert.ok(versions[0].createdAt >= versions[2].createdAt);
    if (eleven) {
      assert.deepEqual(versions.map((v) => v.size), [3, 2, 1]);
      assert.ok(versions.every((v) => v.etag));
    }
  },

  async 'list pages forwards and backwards'() {
    for (let i = 0; i < 12; i += 1) await made(`${top}/page/${i}`);
    const first = await vault.listObjects({ limit: 5, order: 'asc' });
    const second = await vault.listObjects({ limit: 5, order: 'asc', after: first.listMetadata.after });
    const back = await vault.listObjects({ limit: 5, order: 'asc', before: second.listMetadata.before });
    assert.deepEqual([first.data.length, second.data.length], [5, 5]);
    assert.ok(!names(second).some((name) => names(first).includes(name)));
    assert.deepEqual(names(back), names(first));
    assert.ok(first.data[0].updatedAt instanceof Date);
    const newest = await vault.listObjects({ limit: 12, order: 'desc' });
    const wanted = Array.from({ length: 12 }, (_, i) => `${top}/page/${11 - i}`);
    assert.deepEqual(names(newest), wanted);
    // With no limit it is ten, and oldest first unless the SDK asks for another order.
    assert.equal((await vault.listObjects()).data.length, 10);
  },

  async 'delete: the object is gone and its name is free'() {
    const { id } = await made(`${top}/deleted`);
    await vault.deleteObject({ id });
    await raises('NotFoundException', 404, () => vault.readObject({ id }));
    assert.notEqual((await made(`${top}/deleted`)).id, id);
  },

  async 'what encrypt made, decrypt opens: with its associated data and with no other'() {
    for (const text of ['', 's3cr3t \u2603', 'x'.repeat(10_000)]) {
      assert.equal(await vault.decrypt(await vault.encrypt(text, context)), text);
    }
    const sealed = await vault.encrypt('s3cr3t', {}, 'für ü');
    assert.equal(await vault.decrypt(sealed, 'für ü'), 's3cr3t');
    await assert.rejects(vault.decrypt(sealed, 'for u'));
    await assert.rejects(vault.decrypt(sealed));
  },

  async 'vaultfs key decrypt opens what the SDK encrypted, and the other way round'() {
    for (const aad of [undefined, 'associated ü']) {
      const option = aad ? ['--aad', aad] : [];
      const sealed = await vault.encrypt('from the SDK\n', context, aad);
      assert.equal(vaultfs(['key', 'decrypt', ...option], sealed), 'from the SDK\n');
      const ours = vaultfs(['key', 'encrypt', '--context', 'a=b', ...option], 'from vaultfs\n');
      assert.equal(await vault.decrypt(ours.trim(), aad), 'from vaultfs\n');
    }
  },

  async 'a data key is unwrapped again'() {
    const issued = await vault.createDataKey({ context });
    assert.deepEqual(issued.context, context);
    assert.deepEqual(await vault.decryptDataKey({ keys: issued.encryptedKeys }), issued.dataKey);
    assert.notEqual((await vault.createDataKey({ context })).dataKey.key, issued.dataKey.key);
    // The SDK knows no other exception for a 400 with a sentence in `error`.
    await raises('OauthException', 400, () => vault.decryptDataKey({ keys: 'AAAA' }));
  },

  async 'errors are the exceptions that their statuses stand for'() {
    const unknown = client(env.VAULT_API, 'sk_unknown').vault;
    await raises('UnauthorizedException', 401, () => unknown.listObjects());
    const reader = client(env.VAULT_API, env.READ_KEY).vault;
    const refused = { name: `${top}/refused`, value: 'v', context: {} };
    const forbidden = await raises('GenericServerException', 403, () => reader.createObject(refused));
    assert.match(forbidden.message, /permission/);
    const missing = await raises('NotFoundException', 404, () => vault.readObjectByName(`${top}/absent`));
    assert.deepEqual([missing.code, missing.message.includes('list the objects')], ['not_found', true]);
    await raises('NotFoundException', 404, () => vault.updateObject({ id: absent, value: 'v' }));
    await raises('NotFoundException', 404, () => vault.deleteObject({ id: absent }));
    await made(`${top}/taken`);
    assert.match((await raises('ConflictException', 409, () => made(`${top}/taken`))).message, /exists already/);
    const long = await raises('UnprocessableEntityException', 422, () => made('n'.repeat(201)));
    assert.equal(long.code, 'unprocessable_entity');
    // The old SDK looks for the request's id where fetch has none.
    if (eleven) assert.match(missing.requestID, /^req_/);
  },

  async 'the rate limit is an exception that says how long to wait'() {
    const limited = client(env.LIMITED_API, env.LIMITED_KEY).vault;
    for (let i = 0; i < 3; i += 1) await limited.listObjects();
    const error = await raises('RateLimitExceededException', 429, () => limited.listObjects());
    assert.ok(error.retryAfter >= 1 && error.retryAfter <= 60, `${error.retryAfter}`);
  },

  async 'what the SDK wrote is read through a mount in each dialect'() {
    for (const [i, [bytes, value]] of bytesAndValues.entries()) {
      const name = `${top}/to mounts/a b#1?ü ${i}`;
      const { id } = await made(name, value);
      for (const point of Object.values(mounts)) await becomes(bytes, () => fs.readFileSync(`${point}/${name}`));
      await vault.updateObject({ id, value: `updated ${i}` });
      for (const point of Object.values(mounts)) {
        await becomes(`updated ${i}`, () => fs.readFileSync(`${point}/${name}`, 'utf8'));
      }
      await vault.deleteObject({ id });
      for (const point of Object.values(mounts)) await becomes(false, () => fs.existsSync(`${point}/${name}`));
    }
  },

  async 'what a mount in each dialect wrote, the SDK reads: at once, and one version a save'() {
    for (const [dialect, point] of Object.entries(mounts)) {
      for (const [i, [bytes, value]] of bytesAndValues.entries()) {
        const name = `${top}/from ${dialect}/a b#1?ü ${i}`;
        const path = `${point}/${name}`;
        fs.mkdirSync(dirname(path), { recursive: true });
        fs.writeFileSync(path, 'first');
        fs.writeFileSync(path, bytes);
        // A file that is truncated and not written to is stored just after it is closed.
        if (bytes.length === 0) await becomes(value, async () => (await vault.readObjectByName(name)).value);
        const { id, value: found } = await vault.readObjectByName(name);
        assert.equal(found, value);
        replace(path, 'third');
        assert.equal((await vault.readObject({ id })).value, 'third');
        assert.equal((await vault.listObjectVersions({ id })).length, 3);
        remove(path);
        await raises('NotFoundException', 404, () => vault.readObject({ id }));
      }
    }
  },
};

const newChecks = {
  async 'list: search, and the SDK follows the cursors'() {
    const pages = await vault.listObjects({ search: `${top}/page/` });
    assert.equal(pages.data.length, 10);
    assert.equal((await pages.autoPagination()).length, 12);
    for (let i = 0; i < 110; i += 1) await made(`${top}/hundred/${i}`);
    const all = await (await vault.listObjects({ search: `${top}/hundred/` })).autoPagination();
    assert.equal(new Set(all.map((object) => object.id)).size, 110);
  },

  async 'list: updatedAfter, as the SDK writes it'() {
    await made(`${top}/since/old`);
    const { id, updatedAt } = await made(`${top}/since/new`);
    // The SDK sends a Date as whole seconds: the change has to be in a later one.
    const since = new Date(Math.ceil((updatedAt.getTime() + 1) / 1000) * 1000);
    await becomes(true, () => Date.now() > since.getTime());
    await vault.updateObject({ id, value: 'changed' });
    for (const updatedAfter of [since, since.toISOString()]) {
      const found = await vault.listObjects({ search: `${top}/since/`, updatedAfter });
      assert.deepEqual(names(found), [`${top}/since/new`]);
      assert.equal((await found.autoPagination()).length, 1);
    }
  },

  async 'delete with a good check and a bad one'() {
    const { id, versionId } = await made(`${top}/checked`);
    await raises('ConflictException', 409, () => vault.deleteObject({ id, versionCheck: absent }));
    assert.equal((await vault.readObject({ id })).value, 'v');
    await vault.deleteObject({ id, versionCheck: versionId });
    await raises('NotFoundException', 404, () => vault.readObject({ id }));
  },

  async 'a data key is rewrapped under another context'() {
    const issued = await vault.createDataKey({ context });
    const again = await vault.createRekey({ context: { other: 'context' }, encryptedKeys: issued.encryptedKeys });
    assert.deepEqual([again.dataKey, again.context], [issued.dataKey.key, { other: 'context' }]);
    assert.equal((await vault.decryptDataKey({ keys: again.encryptedKeys })).key, issued.dataKey.key);
  },

  async 'read by name as an option'() {
    await made(`${top}/optional`);
    assert.equal((await vault.readObjectByName({ name: `${top}/optional` })).value, 'v');
  },

  async 'too large a key context'() {
    const call = () => vault.createDataKey({ context: { key: 'v'.repeat(501) } });
    await raises('UnprocessableEntityException', 422, call);
  },
};

await run(Object.entries(eleven ? { ...checks, ...newChecks } : checks));
