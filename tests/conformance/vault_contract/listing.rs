//! The part of the contract that is about listings.

use std::time::{Duration, Instant};

use super::{assert_empty, assert_fails, call, create, list_all, remove, rest_of};
use vaultfs::vault::{Content, DynVault, ErrorKind, ListQuery, ObjectName};

/// Pages of any size give every object once, oldest first; an update does not move one.
pub async fn listing_pages_in_creation_order(vault: &DynVault) {
    let mut metas = Vec::new();
    for n in (0..23).rev() {
        metas.push(create(vault, &format!("page/{n:02}"), "x").await);
    }
    vault.update(&call(), &metas[3].id, &Content::plain("y"), None).await.expect("update");
    let expected: Vec<_> = metas.iter().map(|m| m.name.clone()).collect();
    for limit in [1, 7, 22, 23, 24, 100] {
        let listed: Vec<_> = list_all(vault, limit).await.into_iter().map(|s| s.name).collect();
        assert_eq!(listed, expected, "pages of {limit}");
    }
    for meta in &metas {
        remove(vault, &meta.id).await;
    }
    assert_empty(vault).await;
}

/// A listing goes on where it was although the object that the cursor stands on is gone.
pub async fn cursor_outlives_its_row(vault: &DynVault) {
    let mut metas = Vec::new();
    for n in 0..6 {
        metas.push(create(vault, &format!("cursor/{n}"), "x").await);
    }
    // A vault that shows a part of another may answer with short or empty pages.
    let mut query = ListQuery { limit: 2, ..ListQuery::default() };
    let mut shown: Vec<ObjectName> = Vec::new();
    while shown.is_empty() {
        let page = vault.list(&call(), &query).await.expect("list");
        shown.extend(page.items.into_iter().map(|s| s.name));
        query = query.next(page.next.expect("six objects do not fit into two"));
    }
    let cursor = metas.iter().position(|m| Some(&m.name) == shown.last()).expect("what is listed was made");
    for meta in [&metas[cursor], &metas[cursor + 1]] {
        remove(vault, &meta.id).await;
    }
    let late = create(vault, "cursor/late", "x").await;
    let rest = rest_of(vault, query).await.into_iter().map(|s| s.name);
    let expected = metas[cursor + 2..].iter().chain([&late]).map(|m| m.name.clone());
    assert_eq!(rest.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "what came later is at the end");
    for meta in metas[..cursor].iter().chain(&metas[cursor + 2..]).chain([&late]) {
        remove(vault, &meta.id).await;
    }
    assert_empty(vault).await;
}

/// A cursor that the vault never gave is refused, not ignored.
pub async fn bad_cursor_is_refused(vault: &DynVault) {
    let made = create(vault, "one", "x").await;
    for cursor in ["not a cursor", "vault_obj_zzz", "'", "%00"] {
        let query = ListQuery::first().next(cursor.to_owned());
        assert_fails(vault.list(&call(), &query).await, ErrorKind::Invalid, cursor);
    }
    remove(vault, &made.id).await;
    assert_empty(vault).await;
}

/// Where offered, `search` narrows by name and `updated_after` to what changed.
pub async fn search_and_changes_since(vault: &DynVault) {
    let mut metas = Vec::new();
    for text in ["find/me", "leave/me", "find/100%_too"] {
        metas.push(create(vault, text, "x").await);
    }
    let search = |text: &str| ListQuery { search: Some(text.to_owned()), ..ListQuery::first() };
    let names = |page: vaultfs::vault::Page| page.items.into_iter().map(|s| s.name).collect::<Vec<_>>();
    if vault.capabilities().search {
        let found = names(vault.list(&call(), &search("find/")).await.expect("list"));
        assert_eq!(found, [metas[0].name.clone(), metas[2].name.clone()]);
        let found = names(vault.list(&call(), &search("0%_t")).await.expect("list"));
        assert_eq!(found, [metas[2].name.clone()], "search takes no patterns");
        let last = vault.metadata(&call(), &metas[2].id).await.expect("metadata").updated_at;
        // Times are whole milliseconds: the change must fall into a later one.
        let started = Instant::now();
        loop {
            let changed =
                vault.update(&call(), &metas[1].id, &Content::plain("y"), None).await.expect("update");
            if changed.updated_at > last {
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(10), "the vault's clock moves");
        }
        let query = ListQuery { updated_after: Some(last), ..ListQuery::first() };
        let found = names(vault.list(&call(), &query).await.expect("list"));
        assert_eq!(found, [metas[1].name.clone()]);
    } else {
        let all = names(vault.list(&call(), &search("find/")).await.expect("list"));
        assert_eq!(all.len(), 3, "what is not offered is ignored");
    }
    for meta in &metas {
        remove(vault, &meta.id).await;
    }
    assert_empty(vault).await;
}
