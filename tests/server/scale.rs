//! A vault of a million objects: a read by name, a page, and the changes since a moment take at
//! most twice as long as in a vault of a thousand. (That the work does not grow at all is counted
//! beside the store.)

use std::time::{Duration, Instant};

use crate::support::vault_server::{MAX_VALUE, Server, id};

const FEW: i64 = 1_000;
const MANY: i64 = 1_000_000;
/// Bytes of a value, sealed.
const SEALED: u32 = 130;

/// Fills the vault up to `n` objects, behind the server's back: of most of them only the row
/// matters.
fn fill(s: &Server, n: i64) {
    let mut database = rusqlite::Connection::open(s.dir.path().join("vault.db")).unwrap();
    database.busy_timeout(Duration::from_secs(60)).unwrap();
    let tx = database.transaction().unwrap();
    let last: i64 = tx.query_row("SELECT max(seq) FROM objects", [], |row| row.get(0)).unwrap();
    let k = "WITH RECURSIVE k(n) AS (SELECT ?1 + 1 UNION ALL SELECT n + 1 FROM k WHERE n < ?2)";
    tx.execute(
        &format!(
            "{k} INSERT INTO objects SELECT n, randomblob(16), 'team-' || (n % 97) || '/service-' || n || '/password',
             '{{}}', randomblob(61), 1, randomblob(16), 1700000000000 + n, 1700000000000 + n, 'key_made_for_a_test' FROM k"
        ),
        [last, n],
    )
    .unwrap();
    tx.execute(
        &format!(
            "{k} INSERT INTO versions SELECT n, 1, randomblob(16), 1700000000000 + n, 'key_made_for_a_test', 2, 100,
             randomblob(16), randomblob({SEALED}) FROM k"
        ),
        [last, n],
    )
    .unwrap();
    tx.commit().unwrap();
}

/// The median time of a request that is answered with 200.
async fn median(s: &Server, path: &str) -> Duration {
    let mut times = Vec::new();
    for _ in 0..300 {
        let begun = Instant::now();
        let answer = s.get(path).await;
        times.push(begun.elapsed());
        answer.ok();
    }
    times.sort_unstable();
    times[times.len() / 2]
}

#[tokio::test]
#[ignore = "makes a vault of a million objects, half a gigabyte: run by scripts/test --all"]
async fn a_million_objects_are_as_quick_as_a_thousand() {
    let s = Server::start_in(tempfile::tempdir().unwrap(), MAX_VALUE).await;
    let cursor = id(&s.kv_create("real/first", "value").await.made());
    let mut paths = Vec::new();
    let mut times: Vec<Vec<Duration>> = Vec::new();
    for n in [FEW, MANY] {
        fill(&s, n);
        let object = id(&s.kv_create(&format!("real/{n}"), "value").await.made());
        let before = s.kv_get(&object).await.ok()["metadata"]["updated_at"].as_str().unwrap().to_owned();
        s.kv_update(&cursor, "changed").await.made();
        paths = vec![
            "/vault/v1/kv/name/real%2Ffirst".to_owned(),
            "/vault/object/get-by-name?name=real%2Ffirst".to_owned(),
            "/vault/v1/kv?limit=100".to_owned(),
            format!("/vault/v1/kv?limit=100&after={cursor}"),
            format!("/vault/v1/kv?limit=100&order=desc&after={object}"),
            "/vault/object/list?limit=100".to_owned(),
            format!("/vault/v1/kv?limit=100&updatedAfter={before}"),
        ];
        let mut row = Vec::new();
        for path in &paths {
            // The best of three: what else the machine does only makes it slower.
            let mut best = median(&s, path).await;
            for _ in 0..2 {
                best = best.min(median(&s, path).await);
            }
            row.push(best);
        }
        times.push(row);
    }
    let size = std::fs::metadata(s.dir.path().join("vault.db")).unwrap().len();
    println!("a million objects with values of 100 bytes: {} MB", size / 1_000_000);
    for (n, path) in paths.iter().enumerate() {
        let (few, many) = (times[0][n], times[1][n]);
        println!("{path}: {few:?}, then {many:?}");
        assert!(many <= few * 2, "{path}: {few:?} at {FEW}, {many:?} at {MANY}");
    }
}
