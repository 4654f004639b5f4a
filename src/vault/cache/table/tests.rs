//! The table against a plain map, its count against a count, its memory against the allocator, its
//! lookups counted.

use std::collections::{BTreeMap, HashMap};

use super::*;
use crate::vault::{Content, Meta};

const ROOM: u64 = 1 << 40;

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

fn known(id: &str, version: Option<&str>, as_of: Instant) -> Known {
    let version = version.map(VersionTag::new);
    Known { id: ObjectId::new(id), version, updated_at: Some(SystemTime::UNIX_EPOCH), as_of }
}

fn object(name_: &str, id: &str, version: &str, bytes: impl Into<Vec<u8>>) -> Arc<Object> {
    let meta = Meta {
        id: ObjectId::new(id),
        name: name(name_),
        version: VersionTag::new(version),
        updated_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(1_234_567_891),
    };
    Arc::new(Object { meta, content: Content::plain(bytes) })
}

fn ulid(n: u64) -> String {
    format!("vault_obj_{}", ulid::Ulid::from_parts(n, 7))
}

/// Learns of an object and keeps its value, as the cache does with an answer.
fn learn(table: &mut Table, object: &Arc<Object>, as_of: Instant) {
    let Meta { id, name, version, updated_at } = object.meta.clone();
    table.insert(&name, &Known { id, version: Some(version), updated_at: Some(updated_at), as_of });
    table.put_value(object);
}

impl Table {
    fn get_value(&mut self, id: &str, version: &str) -> Option<Arc<Object>> {
        self.value(&ObjectId::new(id), &VersionTag::new(version))
    }

    /// Everything that must hold at any time.
    fn check(&self) {
        let costs = self.values.iter().map(|(VersionTexts(texts), value)| self.cost(texts, value));
        assert_eq!(self.bytes, costs.sum::<u64>());
        assert_eq!(self.names_from("").count(), self.len());
    }
}

#[test]
fn what_goes_in_comes_out() {
    let base = Instant::now();
    let mut table = Table::new(base, ROOM);
    let (before, after) = (base.checked_sub(Duration::from_nanos(3)).unwrap(), base + Duration::from_secs(3));
    let old = Known { updated_at: None, ..known("some id", None, before) };
    assert!(table.insert(&name("a"), &old));
    assert_eq!(table.get("a"), Some(old));
    let new = known(&ulid(1), Some("17"), after);
    assert!(!table.insert(&name("a"), &new));
    assert_eq!((table.get("a"), table.as_of("a")), (Some(new), Some(after)));
    let large = object("b", &ulid(2), "0b5a9cf2-8a3e-4a3b-9d6a-6f1d2f6b1c11", vec![1; 100_000]);
    learn(&mut table, &large, after);
    let found = table.value(&large.meta.id, &large.meta.version).unwrap();
    assert!(Arc::ptr_eq(&found, &large), "large values are not copied");
    let small = object("c", "x", "y", *b"z");
    learn(&mut table, &small, after);
    assert_eq!(table.value(&small.meta.id, &small.meta.version), Some(small));
    table.put_back(Duration::from_secs(2));
    assert_eq!(table.as_of("a"), Some(base + Duration::from_secs(1)));
    table.check();
}

#[test]
fn a_value_outlives_its_version_until_it_is_the_oldest() {
    let base = Instant::now();
    let mut table = Table::new(base, 3 * (100 + "a".len() + "id-a".len() + "1".len()) as u64 + 3 * OVERHEAD);
    let value = |n: &str, version: &str| object(n, &format!("id-{n}"), version, vec![b'v'; 100]);
    learn(&mut table, &value("a", "1"), base);
    learn(&mut table, &value("a", "2"), base);
    assert!(table.get_value("id-a", "1").is_some() && table.get_value("id-a", "2").is_some());
    table.insert(&name("a"), &known("id-a", None, base));
    assert!(table.get_value("id-a", "2").is_some(), "a listing that names no version drops no value");
    learn(&mut table, &value("a", "2"), base);
    assert!(table.remove("a"));
    assert!(!table.remove("a"));
    assert!(table.get("a").is_none() && table.get_value("id-a", "2").is_some());
    learn(&mut table, &value("b", "1"), base);
    learn(&mut table, &value("c", "1"), base);
    assert!(table.get_value("id-a", "1").is_none());
    assert!(table.get_value("id-a", "2").is_some());
    table.check();
    table.clear_values();
    assert_eq!((table.usage(), table.len()), ((0, 0), 2));
    table.check();
}

#[test]
fn the_count_is_true_and_bounded_whatever_is_done() {
    let base = Instant::now();
    let capacity = 60_000;
    let mut table = Table::new(base, capacity);
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut values: HashMap<(String, String), Arc<Object>> = HashMap::new();
    let mut noise: u64 = 1;
    let mut random = |below: u64| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (noise >> 33) % below
    };
    for step in 0..30_000 {
        let n = random(300);
        let text = format!("dir{}/{n}{}", n % 7, "x".repeat(n as usize % 50));
        let id = if n % 2 == 0 { ulid(n) } else { format!("odd id {n}") };
        match random(10) {
            0 => assert_eq!(table.remove(&text), names.remove(&text).is_some()),
            1 => {
                table.insert(&name(&text), &known(&id, None, base));
                names.insert(text, id);
            }
            2..=7 => {
                let version = format!("{}{}", ["", "v"][random(2) as usize], random(5));
                let len = [0, 30, 100, 3000, 4096, 4097, 9000][random(7) as usize];
                let value = object(&text, &id, &version, vec![n as u8; len]);
                learn(&mut table, &value, base);
                names.insert(text, id.clone());
                values.insert((id, version), value);
            }
            _ => {
                let version = format!("{}", random(5));
                if let Some(found) = table.get_value(&id, &version) {
                    assert_eq!(Some(&found), values.get(&(id, version)));
                }
            }
        }
        assert!(table.usage().1 <= capacity);
        if step % 500 == 0 {
            table.check();
        }
    }
    assert!(table.names_from("").map(|n| n.as_str().to_owned()).eq(names.keys().cloned()));
    assert!(table.usage().0 > 10, "it holds what it may");
    assert!(!table.retain(base + Duration::from_nanos(1)).is_empty());
    assert_eq!(table.len(), 0);
    table.clear_values();
    assert_eq!((table.arena(), table.usage()), (Usage::default(), (0, 0)), "nothing is kept for nothing");
}

#[test]
fn the_least_recently_used_leaves_first() {
    let base = Instant::now();
    let mut table = Table::new(base, 2 * (1000 + 3 + OVERHEAD));
    learn(&mut table, &object("a", "a", "1", vec![1; 1000]), base);
    learn(&mut table, &object("b", "b", "1", vec![1; 1000]), base);
    assert!(table.get_value("a", "1").is_some());
    learn(&mut table, &object("c", "c", "1", vec![1; 1000]), base);
    assert!(table.get_value("b", "1").is_none() && table.get_value("a", "1").is_some());
    learn(&mut table, &object("a", "a", "1", vec![1; 10]), base);
    assert_eq!(table.usage(), (2, 1010 + 2 * (3 + OVERHEAD)));
    learn(&mut table, &object("d", "d", "1", vec![1; 100_000]), base);
    assert_eq!(table.usage().0, 1, "the newest stays, whatever its size");
}

#[test]
fn versions_and_names_are_told_apart_where_their_texts_join() {
    let base = Instant::now();
    let mut table = Table::new(base, ROOM);
    for (n, (id, version)) in [("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc")].into_iter().enumerate() {
        learn(&mut table, &object(&format!("n{n}"), id, version, vec![n as u8]), base);
    }
    assert!(table.insert(&name("none"), &known("abc", None, base)));
    for (n, (id, version)) in [("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc")].into_iter().enumerate() {
        assert_eq!(table.get_value(id, version).unwrap().content.bytes.expose(), [n as u8]);
        assert_eq!(table.get(&format!("n{n}")).unwrap().version, Some(VersionTag::new(version)));
    }
    assert_eq!(table.get("none").unwrap().version, None);
}

#[test]
fn a_version_that_comes_with_another_time_has_lost_its_value() {
    let base = Instant::now();
    for len in [10, 10_000] {
        let mut table = Table::new(base, ROOM);
        let value = object("a", "a", "1", vec![1; len]);
        learn(&mut table, &value, base);
        let of = |updated_at| Known { updated_at, ..known("a", Some("1"), base) };
        for same in [Some(value.meta.updated_at), None] {
            table.insert(&name("a"), &of(same));
            assert!(table.get_value("a", "1").is_some());
        }
        table.insert(&name("a"), &of(Some(SystemTime::UNIX_EPOCH)));
        assert!(table.get_value("a", "1").is_none());
        assert_eq!(table.usage(), (0, 0));
    }
}
