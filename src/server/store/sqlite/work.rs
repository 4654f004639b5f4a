//! What an operation costs the database, counted and not timed: the steps that SQLite's machine
//! takes must not grow with the number of objects, and no table may be read from end to end.

use std::ffi::CStr;
use std::ptr::null_mut;

use rusqlite::ffi;

use super::*;
use crate::server::store::sqlite::list::list;

const FEW: u64 = 1_000;
const MANY: u64 = 20_000;

/// A vault with `n` objects; object `k` has the id and sequence number `k` and changed at `k`.
fn vault(n: u64) -> Connection {
    let mut conn = Connection::open_in_memory().unwrap();
    conn.set_prepared_statement_cache_capacity(64);
    schema::migrate(&mut conn).unwrap();
    let count = "WITH RECURSIVE k(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM k LIMIT ?1)";
    let id = "unhex(format('%032x', n))";
    for sql in [
        format!(
            "{count} INSERT INTO objects
             SELECT n, {id}, 'app/' || n, '{{}}', x'00', 1, {id}, n, n, 'key_1' FROM k"
        ),
        format!("{count} INSERT INTO versions SELECT n, 1, {id}, n, 'key_1', 2, 3, {id}, x'00' FROM k"),
        format!("{count} INSERT INTO idempotency SELECT {id}, {id}, {id}, n FROM k"),
        format!("{count} INSERT INTO api_keys SELECT 'key_' || n, {id}, 'n', 15, n FROM k"),
    ] {
        conn.execute(&sql, [n as i64]).unwrap();
    }
    conn
}

/// Steps, and steps of scans from end to end, of all statements that are prepared, since the last
/// time.
fn counters(conn: &Connection) -> (i32, i32, Vec<String>) {
    let (mut steps, mut scans, mut texts) = (0, 0, Vec::new());
    // SAFETY: the handle is the open connection's own, used on this thread only while `conn` is
    // borrowed; each statement comes from SQLite's own list and is looked at before anything could
    // finalise it.
    unsafe {
        let handle = conn.handle();
        let mut statement = ffi::sqlite3_next_stmt(handle, null_mut());
        while !statement.is_null() {
            steps += ffi::sqlite3_stmt_status(statement, ffi::SQLITE_STMTSTATUS_VM_STEP, 1);
            let scanned = ffi::sqlite3_stmt_status(statement, ffi::SQLITE_STMTSTATUS_FULLSCAN_STEP, 1);
            scans += scanned;
            if scanned > 0 {
                texts.push(CStr::from_ptr(ffi::sqlite3_sql(statement)).to_string_lossy().into_owned());
            }
            statement = ffi::sqlite3_next_stmt(handle, statement);
        }
    }
    (steps, scans, texts)
}

type Work = fn(&Transaction<'_>, u64);

fn id(k: u64) -> Ulid {
    Ulid::from(u128::from(k))
}

fn page(from: PageFrom, order: Order, since: Option<u64>) -> ListRequest {
    let updated_after = since.map(|at| Millis(at as i64));
    ListRequest { from, order, limit: 100, search: None, updated_after }
}

fn stamp(n: u64) -> Stamp {
    Stamp { api_key_id: "key_1".into(), at: Millis(n as i64), uid: VersionUid([9; 16]) }
}

fn sealed() -> SealedValue {
    SealedValue { form: StoredForm::Kv, size: 3, etag: Etag([1; 16]), sealed: b"xyz".to_vec() }
}

fn creation(tx: &Transaction<'_>, n: u64) {
    let idempotency = IdempotencyRecord { scope: [7; 32], request: [7; 32] };
    let name = ObjectName::new("new").unwrap();
    let new = NewObject {
        id: id(n + 1),
        name,
        key_context: "{}".into(),
        wrapped_key: vec![1],
        value: sealed(),
        idempotency: Some(idempotency),
    };
    create(tx, &new, stamp(n)).unwrap();
}

/// Each operation on a vault of `n` objects, at its middle where that could matter.
const OPERATIONS: &[(&str, Work)] = &[
    ("get by name", |tx, n| drop(get(tx, &Lookup::Name(format!("app/{}", n / 2))).unwrap())),
    ("get by id", |tx, n| drop(get(tx, &Lookup::Id(id(n / 2))).unwrap())),
    ("one version", |tx, n| drop(version(tx, id(n / 2), 1).unwrap())),
    ("history", |tx, n| drop(versions(tx, id(n / 2), None).unwrap())),
    ("first page", |tx, _| {
        assert_eq!(list(tx, &page(PageFrom::Start, Order::Ascending, None)).unwrap().objects.len(), 100);
    }),
    ("last page", |tx, _| {
        assert_eq!(list(tx, &page(PageFrom::Start, Order::Descending, None)).unwrap().objects.len(), 100);
    }),
    ("middle page", |tx, n| {
        let request = page(PageFrom::After(id(n / 2)), Order::Ascending, None);
        assert_eq!(list(tx, &request).unwrap().objects.len(), 100);
    }),
    ("page before", |tx, n| {
        let request = page(PageFrom::Before(id(n / 2)), Order::Descending, None);
        assert_eq!(list(tx, &request).unwrap().objects.len(), 100);
    }),
    ("few changes", |tx, n| {
        let request = page(PageFrom::Start, Order::Ascending, Some(n - 5));
        assert_eq!(list(tx, &request).unwrap().objects.len(), 5);
    }),
    ("no changes", |tx, n| {
        let request = page(PageFrom::Start, Order::Ascending, Some(n));
        assert_eq!(list(tx, &request).unwrap().objects.len(), 0);
    }),
    ("create", creation),
    ("update", |tx, n| {
        let once = IdempotencyRecord { scope: [8; 32], request: [8; 32] };
        drop(update(tx, id(n / 2), None, stamp(n), Box::new(|_, _, _| Ok(sealed())), Some(once)).unwrap())
    }),
];

#[test]
fn no_operation_costs_more_in_a_larger_vault() {
    let (mut few, mut many) = (vault(FEW), vault(MANY));
    for (what, work) in OPERATIONS {
        let cost = |conn: &mut Connection, n: u64| {
            counters(conn);
            let tx = conn.transaction().unwrap();
            work(&tx, n);
            let (steps, scans, texts) = counters(&tx);
            tx.rollback().unwrap();
            assert!(steps > 0, "{what}: nothing was counted");
            // A page is walked from its cursor to its limit, which SQLite counts as a scan.
            assert!(scans <= 101, "{what} at {n}: {scans} steps of a scan in {texts:?}");
            steps
        };
        let (at_few, at_many) = (cost(&mut few, FEW), cost(&mut many, MANY));
        assert!(at_many <= at_few + at_few / 10, "{what}: {at_few} steps at {FEW}, {at_many} at {MANY}");
    }
}

#[test]
fn the_count_sees_a_scan() {
    let conn = vault(FEW);
    counters(&conn);
    let sql = "SELECT count(*) FROM objects WHERE updated_by = 'nobody'";
    let none: i64 = conn.prepare_cached(sql).unwrap().query_row([], |row| row.get(0)).unwrap();
    let (steps, scans, texts) = counters(&conn);
    assert_eq!((none, texts), (0, vec![sql.to_owned()]));
    assert!(steps > 1000 && scans >= 999, "{steps} steps, {scans} of a scan");
}
