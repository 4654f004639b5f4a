//! What the table cannot say: why a goal is missed (each from a profile), and how each row is measured.

/// Why the row of this id may miss its goal.
pub fn why(_id: &str) -> Option<&'static str> {
    None
}

/// How it is measured.
pub const METHOD: &str = "## How it is measured

- **The vault** of every group but the embedded one is made up by the benchmark itself: the kv API over loopback HTTP, objects
  that are generated as they are asked for, no rate limit, answers at once or after the delay that is named.
- **Warm** means that the kernel has names, attributes and pages: everything was read twice before. Sides are measured in
  parts of some 10 to 100 ms that alternate; the median of five parts is a round's time. `--refresh=1h`, so that nothing gets
  old meanwhile.
- **Other file systems** are over files on tmpfs: bindfs without options; sshfs over an sshd on loopback; `rclone mount
  --read-only --vfs-cache-mode off`.
- **Cold reads and saves** alternate one by one with bare requests of reqwest (HTTP/1.1, connection kept) to the same vault, each of
  whose answers takes 5 ms.
- **Freshness** is from the moment that the vault sends the first answer that shows the change to the end of the first
  open+read that has the new value, tried every millisecond.
- **Rotations**: 100 files change at once, again as soon as all of them have been moved into place; every byte tells object and version, and each
  reader checks all it reads, the size that fstat told, and that both are of one version.
- **Memory** is PSS from `/proc/PID/smaps_rollup`, summed over keeper, worker and helper. For the secrets, all are read by name, then
  the kernel is made to forget its inodes (`drop_caches`), then a minute passes.
- **The embedded vault** runs in the benchmark's process, like the handler that answers a constant of the same size; the client is
  reqwest on one thread. The bare transaction updates one row and inserts one of the same size, WAL and synchronous=FULL, in
  the same directory.
- **Scale**: three vaults and three mounts at once, all names listed before. Lookups are of names that do not exist, each asked for
  once. CPU is what all threads of the mount's processes used while nothing but one lookup each 100 ms was asked.
";
