// What the judges in Node share: checks that are counted, the mounts, and the vaultfs command.
// Where everything is comes from the environment that `scripts/sdks` sets.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

export const env = process.env;
export const mounts = { object: env.MOUNT_OBJECT, kv: env.MOUNT_KV };

// What a file holds and what the SDK calls it: text is the value itself, other bytes travel as a data URL.
export const bytesAndValues = [
  ['plain', 'plain'],
  ['a line\n', 'a line\n'],
  ['snow \u2603, \u{1f512}\r\n\ttab', 'snow \u2603, \u{1f512}\r\n\ttab'],
  ['{"json": [1.0, 2]}', '{"json": [1.0, 2]}'],
  ['', ''],
  [[0x00, 0xff], 'data:application/octet-stream;base64,AP8='],
].map(([bytes, value]) => [Buffer.from(bytes), value]);

// Makes every check, in order; the exit code is 0 only if none failed.
export async function run(checks) {
  let [passed, failed] = [0, 0];
  for (const [title, check] of checks) {
    try {
      await check();
      passed += 1;
      console.log(`ok      ${title}`);
    } catch (error) {
      failed += 1;
      console.log(error);
      console.log(`FAILED  ${title}`);
    }
  }
  console.log(`${passed} passed, ${failed} failed`);
  process.exitCode = failed === 0 ? 0 : 1;
}

// Calls, and returns the exception: of exactly this class, with this status.
export async function raises(name, status, call) {
  const error = await Promise.resolve().then(call).then(
    (result) => assert.fail(`${name} was not thrown: ${JSON.stringify(result)}`),
    (error) => error,
  );
  assert.deepEqual([error.constructor.name, error.status], [name, status], error);
  return error;
}

// Deletes for good before it returns: an unlink by a program that is not known to remove is carried out a second later,
// or at the fsync of the directory.
export function remove(path) {
  fs.unlinkSync(path);
  const directory = fs.openSync(dirname(path), 'r');
  try {
    fs.fsyncSync(directory);
  } finally {
    fs.closeSync(directory);
  }
}

// Looks until it is so, for 20 seconds at most.
export async function becomes(wanted, look) {
  const end = Date.now() + 20_000;
  for (;;) {
    let found;
    try {
      found = await look();
      if (Buffer.isBuffer(wanted) ? wanted.equals(found) : found === wanted) return;
    } catch (error) {
      found = error;
    }
    assert.ok(Date.now() < end, `still ${found} instead of ${wanted}`);
    await sleep(20);
  }
}

// Runs the command with this vault, in the kv dialect.
export function vaultfs(args, input) {
  const ran = spawnSync(env.VAULTFS, [...args, '--api-url', env.VAULT_API, '--api', 'kv'], { input, timeout: 20_000 });
  assert.equal(ran.status, 0, `${ran.stderr}`);
  return ran.stdout.toString();
}

// Writes as editors do: a temporary file, renamed over the old one.
export function replace(path, bytes) {
  fs.writeFileSync(`${path}.tmp`, bytes, { flag: 'wx' });
  fs.renameSync(`${path}.tmp`, path);
}
