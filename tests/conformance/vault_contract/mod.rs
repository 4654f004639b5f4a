//! What every vault must do: one suite, run by each implementation's tests.
//!
//! It depends on the trait alone. Each check is a function of its own, so that a failure names what
//! broke; each expects an empty vault and leaves one behind. Where a vault's `Capabilities` leave
//! something out, the check asserts the refusal instead.

mod listing;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use vaultfs::secret::SecretBytes;
use vaultfs::vault::{
    Call, Content, DynVault, ErrorKind, Form, IdempotencyKey, ListQuery, Meta, NameLimit, Object, ObjectId,
    ObjectName, Result, Summary, VersionInfo, VersionTag,
};

use listing::{
    bad_cursor_is_refused, cursor_outlives_its_row, listing_pages_in_creation_order, search_and_changes_since,
};

use crate::support::hostile_names::HOSTILE_NAMES;

/// Runs every check.
pub async fn run(vault: DynVault) {
    expired_deadline_changes_nothing(&vault).await;
    create_then_read_each_way(&vault).await;
    names_are_taken_once(&vault).await;
    a_creation_that_comes_again_makes_nothing(&vault).await;
    an_update_that_comes_again_makes_nothing(&vault).await;
    update_makes_versions(&vault).await;
    version_check_guards(&vault).await;
    delete_is_for_good(&vault).await;
    unknown_things_are_not_found(&vault).await;
    contents_come_back(&vault).await;
    structured_content_stays_structured(&vault).await;
    hostile_names_are_just_names(&vault).await;
    name_limits_hold(&vault).await;
    listing_pages_in_creation_order(&vault).await;
    cursor_outlives_its_row(&vault).await;
    bad_cursor_is_refused(&vault).await;
    search_and_changes_since(&vault).await;
    racing_creates_have_one_winner(&vault).await;
    racing_updates_all_count(&vault).await;
}

fn call() -> Call {
    Call::foreground(Instant::now() + Duration::from_secs(30))
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).expect("the suite's names are valid")
}

async fn create(vault: &DynVault, text: &str, value: &str) -> Meta {
    vault.create(&call(), &name(text), &Content::plain(value)).await.expect("create")
}

async fn remove(vault: &DynVault, id: &ObjectId) {
    vault.delete(&call(), id, None).await.expect("delete");
}

/// Every name by paging through the listing, `limit` at a time.
pub async fn list_all(vault: &DynVault, limit: u32) -> Vec<Summary> {
    rest_of(vault, ListQuery { limit, ..ListQuery::default() }).await
}

async fn rest_of(vault: &DynVault, mut query: ListQuery) -> Vec<Summary> {
    let mut all = Vec::new();
    loop {
        let page = vault.list(&call(), &query).await.expect("list");
        assert!(page.items.len() <= query.limit as usize, "a page holds at most what was asked for");
        all.extend(page.items);
        match page.next {
            Some(cursor) => query = query.next(cursor),
            None => return all,
        }
    }
}

async fn assert_empty(vault: &DynVault) {
    assert_eq!(list_all(vault, 100).await, [], "the check leaves nothing behind");
}

#[track_caller]
fn assert_fails<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, what: &str) {
    match result {
        Err(e) => {
            assert_eq!(e.kind, kind, "{what}: {e}");
            assert!(!e.maybe_applied, "{what}: a plain refusal leaves nothing in doubt");
            assert!(!e.message.is_empty(), "{what}: an error is a sentence");
        }
        Ok(value) => panic!("{what}: expected {kind:?}, got {value:?}"),
    }
}

/// A call without time left fails, and does nothing.
pub async fn expired_deadline_changes_nothing(vault: &DynVault) {
    let late = Call::foreground(Instant::now() - Duration::from_millis(1));
    let made = vault.create(&late, &name("late"), &Content::plain("x")).await;
    assert_fails(made, ErrorKind::Deadline, "create without time");
    assert_fails(vault.list(&late, &ListQuery::first()).await, ErrorKind::Deadline, "list without time");
    assert_empty(vault).await;
}

/// By name, by id, its metadata, its listing and its only version all tell the same.
pub async fn create_then_read_each_way(vault: &DynVault) {
    let made = create(vault, "dir/one", "value one").await;
    assert_eq!(made.name, name("dir/one"));
    let by_name = vault.get_by_name(&call(), &name("dir/one")).await.expect("get_by_name");
    assert_eq!(by_name, Object { meta: made.clone(), content: Content::plain("value one") });
    assert_eq!(vault.get(&call(), &made.id).await.expect("get"), by_name);
    assert_eq!(vault.metadata(&call(), &made.id).await.expect("metadata"), made);
    let listed = list_all(vault, 100).await;
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0].id, &listed[0].name), (&made.id, &made.name));
    assert!(listed[0].version.as_ref().is_none_or(|v| *v == made.version));
    assert!(listed[0].updated_at.is_none_or(|t| t == made.updated_at));
    assert_fails(
        vault.get_by_name(&call(), &name("dir")).await,
        ErrorKind::NotFound,
        "a directory is no object",
    );
    assert!(!vault.status().endpoint.is_empty());
    remove(vault, &made.id).await;
    assert_empty(vault).await;
}

/// A second create of a name fails and changes nothing; case and composition tell names apart.
pub async fn names_are_taken_once(vault: &DynVault) {
    let first = create(vault, "taken", "first").await;
    let again = vault.create(&call(), &name("taken"), &Content::plain("second")).await;
    assert_fails(again, ErrorKind::AlreadyExists, "create of a taken name");
    let read = vault.get(&call(), &first.id).await.expect("get");
    assert_eq!(read, Object { meta: first.clone(), content: Content::plain("first") });
    let upper = create(vault, "TAKEN", "other").await;
    assert_ne!(first.id, upper.id);
    remove(vault, &first.id).await;
    let anew = create(vault, "taken", "third").await;
    assert_ne!(anew.id, first.id, "an id is never given twice");
    remove(vault, &anew.id).await;
    remove(vault, &upper.id).await;
    assert_empty(vault).await;
}

/// A creation with a key has the first one's answer when it comes again, and makes nothing even
/// where its object is gone.
pub async fn a_creation_that_comes_again_makes_nothing(vault: &DynVault) {
    let (text, content) = (name("made once"), Content::plain("first"));
    let keyed = || Call { idempotency_key: IdempotencyKey::new(SystemTime::now()), ..call() };
    let call_once = keyed();
    let made = vault.create(&call_once, &text, &content).await.expect("create");
    assert_eq!(vault.create(&call_once, &text, &content).await.expect("again"), made);
    vault.update(&call(), &made.id, &Content::plain("second"), None).await.expect("update");
    assert_eq!(vault.create(&call_once, &text, &content).await.expect("again"), made, "as it was at first");
    let other = vault.create(&keyed(), &text, &content).await;
    assert_fails(other, ErrorKind::AlreadyExists, "another creation of that name");
    remove(vault, &made.id).await;
    let again = vault.create(&call_once, &text, &content).await;
    assert_fails(again, ErrorKind::MadeAndDeleted, "a creation whose object was deleted since");
    assert_empty(vault).await;
    let anew = vault.create(&keyed(), &text, &content).await.expect("create");
    let again = vault.create(&call_once, &text, &content).await;
    assert_fails(again, ErrorKind::MadeAndDeleted, "the same, where the name is another's");
    remove(vault, &anew.id).await;
    assert_empty(vault).await;
}

/// An update with a key has the first one's answer when it comes again, whatever it is to follow by
/// then, and makes nothing.
pub async fn an_update_that_comes_again_makes_nothing(vault: &DynVault) {
    let content = Content::plain("second");
    let keyed = || Call { idempotency_key: IdempotencyKey::new(SystemTime::now()), ..call() };
    let first = create(vault, "updated once", "first").await;
    let other = create(vault, "another", "first").await;
    let once = keyed();
    let made = vault.update(&once, &first.id, &content, Some(&first.version)).await.expect("update");
    vault.update(&keyed(), &first.id, &Content::plain("third"), None).await.expect("update");
    for check in [Some(&first.version), None, Some(&made.version)] {
        let again = vault.update(&once, &first.id, &content, check).await.expect("again");
        assert_eq!(again, made, "as it was at first");
    }
    assert_eq!(vault.versions(&call(), &first.id, None).await.expect("versions").len(), 3);
    assert_eq!(vault.get(&call(), &first.id).await.expect("get").content, Content::plain("third"));
    vault.update(&keyed(), &other.id, &content, None).await.expect("update of another");
    // What was refused made nothing, and may come again.
    let refused = keyed();
    if vault.capabilities().version_check {
        let stale = vault.update(&refused, &other.id, &content, Some(&other.version)).await;
        assert_fails(stale, ErrorKind::VersionMismatch, "update on an old version");
    }
    let made = vault.update(&refused, &other.id, &Content::plain("later"), None).await;
    assert_ne!(made.expect("update").version, other.version);
    remove(vault, &first.id).await;
    let again = vault.update(&once, &first.id, &content, None).await;
    assert_fails(again, ErrorKind::NotFound, "update of a deleted object");
    remove(vault, &other.id).await;
    assert_empty(vault).await;
}

/// Each update is one version, numbered from 1, oldest first, the last one current.
pub async fn update_makes_versions(vault: &DynVault) {
    let values = ["one", "two!", "three"];
    let mut tags: Vec<VersionTag> = Vec::new();
    let made = create(vault, "versions", values[0]).await;
    tags.push(made.version.clone());
    for value in &values[1..] {
        let meta = vault.update(&call(), &made.id, &Content::plain(*value), None).await.expect("update");
        assert_eq!((&meta.id, &meta.name), (&made.id, &made.name));
        assert!(meta.updated_at >= made.updated_at);
        tags.push(meta.version);
    }
    let history = vault.versions(&call(), &made.id, None).await.expect("versions");
    assert_eq!(history.iter().map(|v| v.number).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(history.iter().map(|v| v.tag.clone()).collect::<Vec<_>>(), tags);
    assert_eq!(history.iter().map(|v| v.current).collect::<Vec<_>>(), [false, false, true]);
    assert!(history.is_sorted_by_key(|v| v.created_at));
    for (info, value) in history.iter().zip(values) {
        assert!(info.size.is_none_or(|size| size == value.len() as u64), "size is that of the file");
        let read = vault.version(&call(), &made.id, info).await;
        if info.current || vault.capabilities().old_values {
            let read = read.expect("version");
            assert_eq!(read.content, Content::plain(value));
            assert_eq!((&read.meta.id, &read.meta.version), (&made.id, &info.tag));
        } else {
            assert_fails(read, ErrorKind::Unsupported, "value of an old version");
        }
    }
    for since in &tags {
        let some = vault.versions(&call(), &made.id, Some(since)).await.expect("versions since");
        let some: Vec<_> = some.into_iter().map(|v| v.tag).collect();
        assert!(some.contains(since) && tags.ends_with(&some), "since {since}: {some:?}");
    }
    let unknown = vault.versions(&call(), &made.id, Some(&VersionTag::new("99"))).await.expect("versions");
    assert_eq!(unknown.len(), 3, "what is not there leaves nothing out");
    let now = vault.get_by_name(&call(), &made.name).await.expect("get_by_name");
    assert_eq!((&now.meta.version, now.content), (&tags[2], Content::plain("three")));
    remove(vault, &made.id).await;
    assert_empty(vault).await;
}

/// With a check, update and delete work on that version alone; without the capability it is
/// ignored.
pub async fn version_check_guards(vault: &DynVault) {
    let made = create(vault, "guarded", "1").await;
    let two = vault.update(&call(), &made.id, &Content::plain("2"), Some(&made.version)).await;
    let two = two.expect("the check holds");
    let stale = vault.update(&call(), &made.id, &Content::plain("3"), Some(&made.version)).await;
    if vault.capabilities().version_check {
        assert_fails(stale, ErrorKind::VersionMismatch, "update on an old version");
        let deleted = vault.delete(&call(), &made.id, Some(&made.version)).await;
        assert_fails(deleted, ErrorKind::VersionMismatch, "delete on an old version");
        let read = vault.get(&call(), &made.id).await.expect("get");
        assert_eq!((read.meta.version, read.content), (two.version.clone(), Content::plain("2")));
        vault.delete(&call(), &made.id, Some(&two.version)).await.expect("the check holds");
    } else {
        stale.expect("no check is made");
        vault.delete(&call(), &made.id, Some(&made.version)).await.expect("no check is made");
    }
    assert_empty(vault).await;
}

/// After a delete there is neither object nor history, and the name is free.
pub async fn delete_is_for_good(vault: &DynVault) {
    let made = create(vault, "gone", "old").await;
    vault.update(&call(), &made.id, &Content::plain("newer"), None).await.expect("update");
    remove(vault, &made.id).await;
    assert_gone(vault, &made).await;
    let anew = create(vault, "gone", "again").await;
    let history = vault.versions(&call(), &anew.id, None).await.expect("versions");
    assert_eq!(history.len(), 1, "a new object begins a new history");
    remove(vault, &anew.id).await;
    assert_empty(vault).await;
}

async fn assert_gone(vault: &DynVault, meta: &Meta) {
    let id = &meta.id;
    let not_found = ErrorKind::NotFound;
    let first = VersionInfo {
        number: 1,
        tag: meta.version.clone(),
        created_at: meta.updated_at,
        size: None,
        current: true,
    };
    assert_fails(vault.get_by_name(&call(), &meta.name).await, not_found, "get_by_name");
    assert_fails(vault.get(&call(), id).await, not_found, "get");
    assert_fails(vault.metadata(&call(), id).await, not_found, "metadata");
    assert_fails(vault.update(&call(), id, &Content::plain("x"), None).await, not_found, "update");
    assert_fails(vault.delete(&call(), id, None).await, not_found, "delete");
    assert_fails(vault.versions(&call(), id, None).await, not_found, "versions");
    assert_fails(vault.version(&call(), id, &first).await, not_found, "version");
}

/// Ids of any shape are looked up, not trusted.
pub async fn unknown_things_are_not_found(vault: &DynVault) {
    let ids = ["vault_obj_01ARZ3NDEKTSV4RRFFQ69G5FAV", "no such id", "../kv", "a\0b", "'", "%41"];
    for id in ids.map(ObjectId::new) {
        assert_fails(vault.get(&call(), &id).await, ErrorKind::NotFound, id.as_str());
        assert_fails(vault.delete(&call(), &id, None).await, ErrorKind::NotFound, id.as_str());
    }
    let made = create(vault, "known", "x").await;
    let mut info = vault.versions(&call(), &made.id, None).await.expect("versions").remove(0);
    info.number = 7;
    info.tag = VersionTag::new("7");
    assert_fails(vault.version(&call(), &made.id, &info).await, ErrorKind::NotFound, "version 7");
    remove(vault, &made.id).await;
    assert_empty(vault).await;
}

/// Bytes come back as they went in, whatever they are.
pub async fn contents_come_back(vault: &DynVault) {
    let every_byte: Vec<u8> = (0..=255).collect();
    let contents: &[&[u8]] = &[
        b"",
        b"\n",
        b"no newline",
        b"line\n",
        b"\r\n\r\n",
        b"\0",
        b"nul\0inside",
        &every_byte,
        b"\xff\xfe",
        b"\xed\xa0\x80",
        "ünïcödé 🔑\n".as_bytes(),
        b"{\"value\":\"x\"}",
        b"{\"value\": \"eA==\", \"encoding\": \"base64\"}",
        b"{ \"a\": 1 }",
        b"{\"a\":1,\"a\":2}",
        b"[1, 2]",
        b"null",
        b"\"\\ud800\"",
        b"data:application/octet-stream;base64,eA==",
        b"data:application/octet-stream;base64,?",
        &[b'x'; 300_000],
        &[0xf5; 100_000],
    ];
    let made = create(vault, "bytes", "first").await;
    for bytes in contents {
        let content = Content::plain(*bytes);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
        vault.update(&call(), &made.id, &content, None).await.expect(&shown);
        let read = vault.get(&call(), &made.id).await.expect(&shown);
        assert!(read.content.bytes.expose() == *bytes, "{shown:?} comes back");
        let history = vault.versions(&call(), &made.id, None).await.expect(&shown);
        let last = history.last().expect("there is a version");
        assert!(last.size.is_none_or(|size| size == bytes.len() as u64), "{shown:?} has its size");
        let other = vault.create(&call(), &name("bytes too"), &content).await.expect(&shown);
        let read = vault.get_by_name(&call(), &other.name).await.expect(&shown);
        assert!(read.content.bytes.expose() == *bytes, "{shown:?} comes back when created");
        remove(vault, &other.id).await;
    }
    remove(vault, &made.id).await;
    assert_empty(vault).await;
}

/// A JSON object comes back as the same canonical text, still structured where the dialect knows of
/// it.
pub async fn structured_content_stays_structured(vault: &DynVault) {
    let text = "{\n  \"user\": \"bob\",\n  \"n\": [\n    1.0,\n    1e400,\n    -0\n  ],\n  \"none\": {}\n}\n";
    let content = Content { bytes: Arc::new(SecretBytes::from(text.as_bytes())), form: Form::Structured };
    let made = vault.create(&call(), &name("structured"), &content).await.expect("create");
    let read = vault.get(&call(), &made.id).await.expect("get");
    assert_eq!(String::from_utf8_lossy(read.content.bytes.expose()), text);
    if vault.capabilities().dialect == vaultfs::vault::Dialect::Object {
        assert_eq!(read.content.form, Form::Structured);
    }
    vault.update(&call(), &made.id, &Content::plain("plain now"), None).await.expect("update");
    assert_eq!(vault.get(&call(), &made.id).await.expect("get").content, Content::plain("plain now"));
    remove(vault, &made.id).await;
    assert_empty(vault).await;
}

/// Every name is one object, found by name and in the listing, and no two are taken for one.
pub async fn hostile_names_are_just_names(vault: &DynVault) {
    let long = match vault.capabilities().max_name {
        NameLimit::Bytes(_) => "é".repeat(200),
        NameLimit::Chars(max) => "é".repeat(max.min(200)),
    };
    let mut metas = Vec::new();
    for text in HOSTILE_NAMES.iter().copied().chain([long.as_str()]) {
        let meta = vault.create(&call(), &name(text), &Content::plain(text)).await;
        metas.push(meta.unwrap_or_else(|e| panic!("create {text:?}: {e}")));
    }
    for meta in &metas {
        let read = vault.get_by_name(&call(), &meta.name).await;
        let read = read.unwrap_or_else(|e| panic!("get_by_name {:?}: {e}", meta.name));
        assert_eq!((&read.meta, read.content), (meta, Content::plain(meta.name.as_str())));
    }
    let listed: Vec<_> = list_all(vault, 7).await.into_iter().map(|s| s.name).collect();
    assert_eq!(listed, metas.iter().map(|m| m.name.clone()).collect::<Vec<_>>());
    for meta in &metas {
        remove(vault, &meta.id).await;
    }
    assert_empty(vault).await;
}

/// The longest name works; one more is refused before anything is sent.
pub async fn name_limits_hold(vault: &DynVault) {
    let limit = vault.capabilities().max_name;
    let (longest, too_long) = match limit {
        NameLimit::Bytes(max) => ("a".repeat(max), format!("{}é", "a".repeat(max - 1))),
        NameLimit::Chars(max) => ("é".repeat(max), "é".repeat(max + 1)),
    };
    assert!(limit.allows(&longest) && !limit.allows(&too_long));
    let made = create(vault, &longest, "x").await;
    let read = vault.get_by_name(&call(), &made.name).await.expect("get_by_name");
    assert_eq!(read.meta, made);
    remove(vault, &made.id).await;
    if let Some(too_long) = ObjectName::new(&too_long) {
        let refused = vault.create(&call(), &too_long, &Content::plain("x")).await;
        assert_fails(refused, ErrorKind::NameTooLong, "create of a name that is too long");
    }
    assert_empty(vault).await;
}

/// Of many creates of one name at once, exactly one is told that it made it.
pub async fn racing_creates_have_one_winner(vault: &DynVault) {
    let tasks = (0..8).map(|n| {
        let vault = vault.clone();
        async move {
            let content = Content::plain(n.to_string());
            vault.create(&call(), &name("race"), &content).await.map(|meta| (meta, content))
        }
    });
    let results = futures_util::future::join_all(tasks).await;
    let mut winner = None;
    for result in results {
        match result {
            Ok(won) => assert!(winner.replace(won).is_none(), "two creates of one name succeeded"),
            Err(e) => assert_eq!(e.kind, ErrorKind::AlreadyExists, "{e}"),
        }
    }
    let (meta, content) = winner.expect("one create succeeds");
    let read = vault.get_by_name(&call(), &meta.name).await.expect("get_by_name");
    assert_eq!(read, Object { meta: meta.clone(), content });
    remove(vault, &meta.id).await;
    assert_empty(vault).await;
}

/// Of many updates at once each is a version of its own.
pub async fn racing_updates_all_count(vault: &DynVault) {
    let made = create(vault, "counter", "start").await;
    let tasks = (0..8).map(|n| {
        let (vault, id) = (vault.clone(), made.id.clone());
        async move { vault.update(&call(), &id, &Content::plain(n.to_string()), None).await }
    });
    let mut tags = vec![made.version.clone()];
    for result in futures_util::future::join_all(tasks).await {
        tags.push(result.expect("update").version);
    }
    tags.sort();
    tags.dedup();
    assert_eq!(tags.len(), 9, "every version has a tag of its own");
    let history = vault.versions(&call(), &made.id, None).await.expect("versions");
    assert_eq!(history.len(), 9);
    remove(vault, &made.id).await;
    assert_empty(vault).await;
}
