//! The store by itself, on ciphertext that is none: paging with conditions, time, cursors. Version
//! checks and keys have their tests in `tests/server_kv.rs` and `tests/server_keys.rs`.

use super::sqlite::SqliteStore;
use super::*;

struct Vault {
    store: SqliteStore,
    _dir: tempfile::TempDir,
}

fn vault() -> Vault {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("vault.db"), VaultId([7; 16])).unwrap();
    Vault { store, _dir: dir }
}

fn value() -> SealedValue {
    SealedValue { form: StoredForm::Kv, size: 3, etag: Etag([1; 16]), sealed: b"xyz".to_vec() }
}

fn stamp(at: i64) -> Stamp {
    Stamp { api_key_id: "key_test".into(), at: Millis(at), uid: VersionUid(Ulid::new().to_bytes()) }
}

impl Vault {
    async fn create(&self, name: &str, at: i64) -> Result<ObjectRow, StoreError> {
        let new = NewObject {
            id: Ulid::new(),
            name: ObjectName::new(name).unwrap(),
            key_context: "{}".into(),
            wrapped_key: vec![1, 2],
            value: value(),
            idempotency: None,
        };
        self.store.create(new, stamp(at)).await
    }

    async fn update(&self, id: Ulid, check: Option<VersionUid>, at: i64) -> Result<ObjectRow, StoreError> {
        self.store.update(id, check, stamp(at), Box::new(|_, _, _| Ok(value())), None).await
    }

    async fn names(&self, request: ListRequest) -> Vec<String> {
        self.store.list(request).await.unwrap().objects.into_iter().map(|o| o.name).collect()
    }
}

fn all() -> ListRequest {
    ListRequest {
        from: PageFrom::Start,
        order: Order::Ascending,
        limit: 100,
        search: None,
        updated_after: None,
    }
}

#[tokio::test]
async fn pages_with_conditions() {
    let v = vault();
    let mut ids = Vec::new();
    for (n, name) in ["app/a", "b\0app", "100%", "c", "APP", "app/z"].into_iter().enumerate() {
        ids.push(v.create(name, 100 + n as i64).await.unwrap().id);
    }
    let search = |part: &str| ListRequest { search: Some(part.into()), ..all() };
    assert_eq!(v.names(search("app")).await, ["app/a", "b\0app", "app/z"]);
    assert_eq!(v.names(search("%")).await, ["100%"]);
    assert_eq!(v.names(search("_")).await, [""; 0]);

    v.update(ids[0], None, 200).await.unwrap();
    let since = |at| ListRequest { updated_after: Some(Millis(at)), ..all() };
    assert_eq!(v.names(since(103)).await, ["app/a", "APP", "app/z"]);
    assert_eq!(v.names(ListRequest { search: Some("app".into()), ..since(103) }).await, ["app/a", "app/z"]);
    let page = v.store.list(ListRequest { limit: 1, ..since(103) }).await.unwrap();
    assert_eq!((page.before, page.after), (None, Some(ids[0])));
    let page =
        v.store.list(ListRequest { from: PageFrom::After(ids[0]), limit: 1, ..since(103) }).await.unwrap();
    assert_eq!((page.before, page.after), (Some(ids[4]), Some(ids[4])));
}

#[tokio::test]
async fn many_changes_are_listed_like_few() {
    let v = vault();
    for n in 0..1200 {
        v.create(&format!("n{n:04}"), n).await.unwrap();
    }
    // One side of the limit and the other: the same rows in the same order.
    for after in [100, 300, 1190] {
        let page = v.names(ListRequest { updated_after: Some(Millis(after)), limit: 5, ..all() }).await;
        let expected: Vec<_> = (after + 1..after + 6).map(|n| format!("n{n:04}")).collect();
        assert_eq!(page, expected);
    }
}

#[tokio::test]
async fn time_does_not_run_backwards() {
    let v = vault();
    let a = v.create("a", 1000).await.unwrap();
    let b = v.create("b", 400).await.unwrap();
    assert_eq!((b.created_at, b.updated_at), (Millis(1001), Millis(1001)));
    let a = v.update(a.id, None, 500).await.unwrap();
    assert_eq!((a.created_at, a.updated_at, a.version), (Millis(1000), Millis(1002), 2));
    assert_eq!(v.create("c", 2000).await.unwrap().updated_at, Millis(2000));
    let waited = v.create("d", 1990).await.unwrap();
    assert_eq!(waited.updated_at, Millis(2000), "a change that waits is not ahead of the clock");
    let history = v.store.versions(a.id, None).await.unwrap();
    assert_eq!(
        history.iter().map(|row| (row.number, row.current)).collect::<Vec<_>>(),
        [(2, true), (1, false)]
    );
    assert_eq!(history[0].created_at, Millis(1002));
}

#[tokio::test]
async fn a_failed_seal_changes_nothing() {
    let v = vault();
    let made = v.create("a", 1).await.unwrap();
    let failing: SealFn = Box::new(|_, number, wrapped| {
        assert_eq!((number, wrapped), (2, &[1, 2][..]));
        Err(SealError::NotAuthentic)
    });
    assert!(matches!(v.store.update(made.id, None, stamp(2), failing, None).await, Err(StoreError::Seal(_))));
    assert_eq!(v.store.metadata(made.id).await.unwrap(), made);
    // A panic in there is an error here, and the store goes on.
    let panicking: SealFn = Box::new(|_, _, _| panic!("made for a test"));
    assert!(matches!(
        v.store.update(made.id, None, stamp(2), panicking, None).await,
        Err(StoreError::Backend(_))
    ));
    assert_eq!(v.update(made.id, None, 3).await.unwrap().version, 2);
}

#[tokio::test]
async fn a_full_disk_is_called_so_and_changes_nothing() {
    let v = vault();
    let made = v.create("a", 1).await.unwrap();
    v.store.allow_no_more_pages().await;
    let big: SealFn = Box::new(|_, _, _| Ok(SealedValue { sealed: vec![0; 1 << 20], ..value() }));
    assert!(matches!(v.store.update(made.id, None, stamp(2), big, None).await, Err(StoreError::Full)));
    assert_eq!(v.store.metadata(made.id).await.unwrap(), made);
}

#[tokio::test]
async fn cursors_are_known_or_refused() {
    let v = vault();
    let made = v.create("a", 1).await.unwrap();
    let from = |id| ListRequest { from: PageFrom::After(id), ..all() };
    assert!(matches!(v.store.list(from(Ulid::new())).await, Err(StoreError::UnknownCursor)));
    v.store.delete(made.id, None).await.unwrap();
    let next = v.create("a", 1).await.unwrap();
    // The place of what was deleted is not given away again.
    assert_eq!(v.store.list(from(made.id)).await.unwrap().objects, [next]);
}

#[tokio::test]
async fn a_database_knows_its_vault_and_its_program() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vault.db");
    let store = SqliteStore::open(&path, VaultId([1; 16])).unwrap();
    assert!(store.recognise([5; 32]).await.unwrap());
    assert!(!store.recognise([6; 32]).await.unwrap());
    drop(store);
    let store = SqliteStore::open(&path, VaultId([2; 16])).unwrap();
    assert_eq!(store.vault_id(), VaultId([1; 16]));
    assert!(store.recognise([5; 32]).await.unwrap());
    drop(store);
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 1000).unwrap();
    drop(newer);
    let refused = SqliteStore::open(&path, VaultId([2; 16])).map(drop);
    assert!(matches!(refused, Err(StoreError::Backend(e)) if e.contains("newer")));
    let other = dir.path().join("other.db");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE letters (text TEXT)").unwrap();
    let refused = SqliteStore::open(&other, VaultId([2; 16])).map(drop);
    assert!(matches!(refused, Err(StoreError::Backend(e)) if e.contains("not a vault")));
    std::fs::write(&path, "this is no database at all, and long enough to be taken for one").unwrap();
    assert!(matches!(SqliteStore::open(&path, VaultId([2; 16])).map(drop), Err(StoreError::Backend(_))));
}

/// Whether a file of the database holds `text`.
fn is_on_disk(v: &Vault, text: &[u8]) -> bool {
    let files = std::fs::read_dir(v._dir.path()).unwrap().flatten();
    files.into_iter().any(|file| {
        let bytes = std::fs::read(file.path()).unwrap_or_default();
        bytes.windows(text.len()).any(|window| window == text)
    })
}

/// Waits until no file of the database holds `text`; how many seconds that took.
async fn until_gone(v: &Vault, text: &[u8]) -> f64 {
    let begun = std::time::Instant::now();
    while is_on_disk(v, text) {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "deleted half a minute ago, and still on the disk"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    begun.elapsed().as_secs_f64()
}

const MARK: &str = "a-name-that-is-deleted";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_leaves_every_file_though_others_read_and_write() {
    let v = std::sync::Arc::new(vault());
    let id = v.create(MARK, 1).await.unwrap().id;
    v.update(id, None, 2).await.unwrap();
    assert!(is_on_disk(&v, MARK.as_bytes()));
    let others = std::sync::Arc::clone(&v);
    let busy = tokio::spawn(async move {
        for n in 0.. {
            others.create(&format!("n{n}"), n + 3).await.unwrap();
            others.store.list(all()).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    v.store.delete(id, None).await.unwrap();
    until_gone(&v, MARK.as_bytes()).await;
    busy.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_leaves_every_file_once_the_last_older_read_ends() {
    let v = vault();
    let id = v.create(MARK, 1).await.unwrap().id;
    let reader = rusqlite::Connection::open(v._dir.path().join("vault.db")).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    reader.query_row("SELECT count(*) FROM objects", [], |row| row.get::<_, i64>(0)).unwrap();
    v.store.delete(id, None).await.unwrap();
    let second = v.create("meanwhile others write", 3).await.unwrap();
    v.update(second.id, None, 4).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(is_on_disk(&v, MARK.as_bytes()), "a read from before needs it");
    reader.execute_batch("COMMIT").unwrap();
    until_gone(&v, MARK.as_bytes()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deleted_before_a_death_is_gone_when_the_database_is_opened_again() {
    let v = vault();
    let path = v._dir.path().join("vault.db");
    let id = v.create(MARK, 1).await.unwrap().id;
    // As a killed process leaves it: the deletion is in the log.
    let dead = rusqlite::Connection::open(&path).unwrap();
    dead.pragma_update(None, "secure_delete", "ON").unwrap();
    dead.execute("DELETE FROM objects WHERE id = ?1", [id.to_bytes()]).unwrap();
    let copy = tempfile::tempdir().unwrap();
    for name in ["vault.db", "vault.db-wal"] {
        std::fs::copy(v._dir.path().join(name), copy.path().join(name)).unwrap();
    }
    let store = SqliteStore::open(&copy.path().join("vault.db"), VaultId([7; 16])).unwrap();
    let v = Vault { store, _dir: copy };
    assert!(!is_on_disk(&v, MARK.as_bytes()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_that_ends_leaves_one_file_whatever_goes_on_behind_its_answers() {
    for round in 0..20 {
        let v = vault();
        let id = v.create(MARK, 1).await.unwrap().id;
        // The purge begins, and may be anywhere.
        v.store.delete(id, None).await.unwrap();
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        v.store.close().await;
        // Nothing is dropped: a server's end does not wait for what outlives its drain.
        assert!(!v._dir.path().join("vault.db-wal").exists(), "round {round}");
        assert!(!is_on_disk(&v, MARK.as_bytes()));
        assert!(v.store.list(all()).await.is_err() && v.create("late", 2).await.is_err());
    }
}
