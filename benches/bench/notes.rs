//! What the table cannot say: why a goal is missed (each from a profile), and how each row is
//! measured.

/// Why the row of this id may miss its goal.
pub fn why(id: &str) -> Option<&'static str> {
    match id {
        "warm-1" | "warm-4" | "warm-1000" | "warm-stat" | "list-stat-1000" | "list-stat-10000" => {
            Some(KERNEL)
        }
        "paging" => Some(PAGING),
        "embedded-update" => Some(UPDATE),
        "burst" => Some(
            "Of some 19 MB more, 14 MB are pieces of memory that are free between others in use, 4 kB each on average \
             (`malloc_info` before and after): few whole pages are free, so `malloc_trim` cannot \
             return them to the system. 3 MB are the mount's state, which is shared memory and is tidied up when it has grown again.",
        ),
        "rw-peers" => Some(
            "A read is one request that is waited for, OPEN: two changes between processes, which took 25 µs in the \
             best round seen and 65 µs where six other programs wanted the processors. How long they take is the scheduler's to \
             say, for the others as well.",
        ),
        _ => None,
    }
}

const KERNEL: &str = "No request reaches the daemon (counted in the same group), so this is the kernel's own way through \
    a FUSE mount. In a profile of three million warm stats 13 % of the time is spent in `fuse_permission` (5.7 %), \
    `fuse_dentry_revalidate` (3.3 %), `fuse_update_get_attr` (1.9 %) and `fuse_getattr` (1.8 %), which look at each step \
    whether what is known is still valid; tmpfs spends 3.2 % in `shmem_getattr` instead. Undisturbed, the \
    ratio of a stat is 1.15; beside other programs 1.16 to 1.35 was seen.";

const PAGING: &str = "The vault, the client, the kernel and the reader share two processors, and \
    both are busy throughout. vaultfs reads a page while the next one is on its way, so processor \
    time is the limit. Of the client's, \
    in a profile of sixteen listings, 29 % is the kernel's (sockets, replies, page faults), 15 % memory allocation, 10 % \
    hashing of names and 3 % the wiping of answers. Each name enters the index, its order and the \
    listing. At the end all names are compared with those created here in the meantime. Bare \
    paging does none of that.";

const UPDATE: &str = "Both sides wait for the disk once. A commit puts six pages into the write-ahead log where the bare \
    transaction puts three (12.6 and 6.2 writes a commit, counted with strace over the row's creations and updates together): the index by which changes are found \
    loses an entry and gets one, and the new version has an index of its own. The rest is HTTP, and handing the work to \
    a thread that may wait for the disk.";

/// How it is measured.
pub const METHOD: &str = "## How it is measured

- **The vault** of every group except the embedded one is part of the benchmark: the kv API over loopback HTTP, objects
  generated on request, no rate limit, answers at once or after the named delay.
- **Warm** means that the kernel has names, attributes and pages: everything was read twice before. The sides alternate
  in parts of 10 to 100 ms; the median of five parts is a round's time. `--refresh=1h`, so that nothing expires during the
  run.
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
- **Under attack**: `vaultfs serve` is a process of its own, with its default limits but `--rate-limit 0`. 2,000 connections send
  nothing; 100 with a key that may only write send as much of a body of 8 MiB as is taken, and then nothing. What the server
  ends is opened again within a second. The client reads values of 100 bytes, one after another, ten on a connection; a
  round measures it alone and then among them. Memory is `VmHWM`.
";
