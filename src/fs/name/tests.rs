use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// The way to an object: where it is looked up and the file name, step by step.
fn walk(name: &str) -> Vec<(DirPrefix, String)> {
    let (mut steps, mut under) = (Vec::new(), DirPrefix::root());
    loop {
        let (component, rest) = split(name, &under).unwrap_or_else(|| panic!("{name:?} is not in {under:?}"));
        steps.push((under, component));
        match rest {
            Rest::File => return steps,
            Rest::Dir(dir) => under = dir,
        }
    }
}

/// The object that a path leads to when every component but the last is a directory.
fn resolve(path: &str) -> Result<ObjectName, Refused> {
    let mut under = DirPrefix::root();
    let mut components = path.split('/').peekable();
    while let Some(component) = components.next() {
        let Decoded::Entry { as_file, as_dir } = decode(component.as_bytes(), &under)? else {
            return Err(Refused::Spelling);
        };
        if components.peek().is_none() {
            return as_file.ok_or(Refused::Spelling);
        }
        under = as_dir.ok_or(Refused::Spelling)?;
    }
    Err(Refused::Spelling)
}

fn file_in(component: &str, under: &DirPrefix) -> Option<String> {
    match decode(component.as_bytes(), under) {
        Ok(Decoded::Entry { as_file, .. } | Decoded::Beside { as_file, .. }) => {
            Some(as_file?.as_str().into())
        }
        _ => None,
    }
}

fn assert_file_name(component: &str) {
    assert!((1..=255).contains(&component.len()), "{component:?}");
    assert!(!component.contains(['/', '\0']) && !matches!(component, "." | ".." | ".self"), "{component:?}");
}

#[test]
fn hostile_names_have_the_paths_of_the_design() {
    for (name, want) in [
        ("db/password", "db/password"),
        ("/etc/passwd", "%_/etc/passwd"),
        ("a//b", "a/%_/b"),
        ("a/", "a/%_"),
        ("/", "%_/%_"),
        ("//", "%_/%_/%_"),
        (".", "%2E"),
        ("..", "%2E."),
        ("...", "..."),
        ("../..", "%2E./%2E."),
        (".self", "%2Eself"),
        ("a/.self", "a/%2Eself"),
        (".versions", "%2Eversions"),
        (".vaultfs/x", "%2Evaultfs/x"),
        ("a/.versions", "a/.versions"),
        (".selfish", ".selfish"),
        ("%41", "%41"),
        ("100%", "100%"),
        ("%", "%"),
        ("%%25", "%%2525"),
        ("%2F", "%252F"),
        ("%2f", "%2f"),
        ("%1f", "%1f"),
        ("%1F", "%251F"),
        ("%_", "%25_"),
        ("x%+", "x%25+"),
        ("%2Eself", "%252Eself"),
        ("a\nb\0\x1f\x7f", "a%0Ab%00%1F\x7f"),
        ("%\x0125", "%%0125"),
        ("é/日本", "é/日本"),
    ] {
        assert_eq!(path(name), want, "{name:?}");
        assert_eq!(resolve(want).unwrap().as_str(), name, "{want:?}");
        assert_eq!(of_path(want.as_ref()).unwrap().unwrap().as_str(), name, "{want:?}");
    }
    assert_eq!(of_path("".as_ref()), Ok(None));
    assert_eq!(of_path("a/.self".as_ref()).unwrap(), ObjectName::new("a"));
    for refused in [".versions/a/1", ".vaultfs", "a/.self/b", "%25"] {
        assert_eq!(of_path(refused.as_ref()), Err(Refused::Spelling), "{refused:?}");
    }
}

#[test]
fn other_spellings_are_refused() {
    for path in [
        "",
        "/a",
        "a/",
        "a//b",
        "./a",
        "a/..",
        "%2Ea",
        "a%2E",
        "%2Eversion",
        "a/%2Eversions",
        ".versions",
        ".vaultfs",
        ".self",
        "%2541%25",
        "a%25",
        "%25",
        "%2541",
        "%0a\n",
        "\n",
        "a\tb",
        "%_a",
        "a%_",
        "%_%_",
        "a%+",
        "%+",
        "%+/a",
        "a%+/b",
        "%00\0",
        "a%2Fb",
        "%2F",
        "%2E%2E",
        ".%2E",
        "%252f",
    ] {
        assert_eq!(resolve(path), Err(Refused::Spelling), "{path:?}");
    }
    assert_eq!(decode(b"a\xff", &DirPrefix::root()), Err(Refused::Spelling));
}

#[test]
fn self_is_the_object_of_the_directory() {
    let dir = |prefix| DirPrefix::new(prefix).unwrap();
    let name = |name| Ok(Decoded::SelfFile(ObjectName::new(name).unwrap()));
    assert_eq!(decode(b".self", &dir("a/")), name("a"));
    assert_eq!(decode(b".self", &dir("a/b//")), name("a/b/"));
    assert_eq!(decode(b".self", &dir("")), Err(Refused::Spelling));
    assert_eq!(decode(b".self", &dir("/")), Err(Refused::Spelling), "no object has the empty name");
    assert_eq!(DirPrefix::new("a"), None);
}

#[test]
fn beside_a_file_slashes_are_escaped() {
    let (root, x) = (DirPrefix::root(), DirPrefix::new("x/").unwrap());
    for (name, under, want) in [
        ("a/b/c", &root, "a%2Fb%2Fc"),
        ("x//b", &x, "%2Fb"),
        ("x/a//", &x, "a%2F%2F"),
        (".self/.", &root, ".self%2F."),
    ] {
        assert_eq!(split_beside(name, under), Some((want.to_owned(), Rest::File)));
        let object = ObjectName::new(name);
        assert_eq!(decode(want.as_bytes(), under), Ok(Decoded::Beside { as_file: object, as_dir: None }));
    }
    assert_eq!(split_beside("a/b", &x), None);
}

#[test]
fn long_components_become_directories() {
    let long = "a".repeat(256);
    assert_eq!(path(&long), format!("{}%+/{}", "a".repeat(250), "a".repeat(6)));
    assert_eq!(path(&"a".repeat(255)), "a".repeat(255));
    assert_eq!(path(&format!("{}.", "a".repeat(255))), format!("{}%+/{}.", "a".repeat(250), "a".repeat(5)));
    // A last piece that would read as something else.
    assert_eq!(
        path(&format!("{}/b", "\0".repeat(86))),
        format!("{}%+/{}/b", "%00".repeat(83), "%00".repeat(3))
    );
    let dots = format!("{}{}.self", "\0".repeat(83), "😀");
    assert!(path(&dots).ends_with("%+/😀.self"));
    let only = format!("{}{}.self", "a".repeat(246), "%25");
    assert!(path(&only).ends_with("%+/%2525.self"), "{}", path(&only));
    // 200 characters of four bytes.
    let wide = "😀".repeat(200);
    let parts: Vec<String> = path(&wide).split('/').map(str::to_owned).collect();
    assert_eq!(parts.iter().map(String::len).collect::<Vec<_>>(), [250, 250, 250, 56]);
    // No cut between an escaped `%` and what made it need escaping, nor after a cut that could have
    // been later.
    for fill in 244..256 {
        for tail in ["%25xxxxxxxx", "%%%%_______", "%1%1Fxxxxxx", "\x01\x01\x01\x01\x01", ".........."] {
            let name = format!("{}{tail}", "a".repeat(fill));
            assert_eq!(resolve(&path(&name)).unwrap().as_str(), name);
        }
    }
    for (chunk, rest) in [
        (format!("{}%25%+", "a".repeat(247)), "25xxxxxxxx"),
        (format!("{}%252%+", "a".repeat(246)), "5xxxxxxxxxx"),
        (format!("{}%%+", "a".repeat(249)), "25xxxxxxxx"),
        (format!("{}%+", "a".repeat(249)), "aaaaaaaaaaaaa"),
        (format!("{}%+", "a".repeat(245)), "%2525aaaaaaaaaaaaa"),
        (format!("{}%+", "a".repeat(251)), "aaaaaaaaaaaaa"),
        (format!("{}%+", "a".repeat(250)), "aaaaa"),
        (format!("{}%+", "a".repeat(250)), "%_"),
    ] {
        assert_eq!(resolve(&format!("{chunk}/{rest}")), Err(Refused::Spelling), "{chunk}/{rest}");
    }
}

#[test]
fn a_continuation_holds_only_what_is_cut_there() {
    let cut = format!("{}%+", "a".repeat(250));
    let dir = DirPrefix { prefix: "a".repeat(250).into(), start: 0 };
    let Ok(Decoded::Entry { as_dir, as_file: None }) = decode(cut.as_bytes(), &DirPrefix::root()) else {
        panic!()
    };
    assert_eq!(as_dir.as_ref(), Some(&dir));
    assert!(dir.is_continuation() && dir.self_name().is_none());
    assert_eq!(decode(b".self", &dir), Err(Refused::Spelling));
    let name = format!("{}......", "a".repeat(250));
    assert_eq!(split(&name, &dir), Some(("......".to_owned(), Rest::File)));
    assert_eq!(split(&"a".repeat(255), &dir), None, "fits a file name, so it is not in there");
    let beside = format!("{}/b/c", "a".repeat(250));
    assert_eq!(split(&beside, &dir), None);
    assert_eq!(split_beside(&beside, &dir), Some(("%2Fb%2Fc".to_owned(), Rest::File)));
}

#[test]
fn the_longest_names() {
    let dir = DirPrefix::new(&format!("{}/", "d".repeat(1020))).unwrap();
    assert!(matches!(decode(b"abc", &dir), Ok(Decoded::Entry { as_file: Some(_), as_dir: None })));
    assert_eq!(decode(b"abcd", &dir), Err(Refused::TooLong));
    assert_eq!(decode("a".repeat(256).as_bytes(), &DirPrefix::root()), Err(Refused::TooLong));
    assert!(matches!(decode(b"ab", &dir), Ok(Decoded::Entry { as_file: Some(_), as_dir: Some(_) })));
}

/// Text from an alphabet where everything collides.
fn hostile(len: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = String> {
    let token = prop_oneof![
        4 => prop::sample::select(vec!["/", ".", "%", "_", "+", "2", "F", "E", "a", "é", "\0", "\x1f", "5"]),
        1 => prop::sample::select(vec![".self", ".versions", ".vaultfs", "..", "%2F", "%25", "%+", "%_", "😀", "//"]),
    ];
    prop::collection::vec(token, len).prop_map(|tokens| tokens.concat())
}

/// Hostile names of every length, many of them near the places where components are cut.
fn name() -> impl Strategy<Value = String> {
    let long = (hostile(0..6), "[a%é😀.]", 230usize..262, hostile(0..30), hostile(0..4));
    let longs = prop::collection::vec(
        long.prop_map(|(a, c, n, b, d)| format!("{a}{}{b}{d}", c.repeat(n / c.len()))),
        1..4,
    );
    let any = prop_oneof![
        4 => hostile(1..8),
        1 => any::<String>(),
        2 => hostile(300..700),
        4 => longs.prop_map(|parts| parts.concat()),
        1 => "[😀日é]{200}",
    ];
    any.prop_map(|mut name| {
        while name.len() > MAX_NAME_BYTES {
            name.pop();
        }
        name
    })
    .prop_filter("names have a length", |name| !name.is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn names_and_paths_are_a_bijection(name in name()) {
        let steps = walk(&name);
        for (i, (under, component)) in steps.iter().enumerate() {
            assert_file_name(component);
            let Ok(Decoded::Entry { as_file, as_dir }) = decode(component.as_bytes(), under) else {
                panic!("{component:?} in {under:?}");
            };
            match steps.get(i + 1) {
                Some((next, _)) => prop_assert_eq!(as_dir.as_ref(), Some(next)),
                None => prop_assert_eq!(as_file, ObjectName::new(&name)),
            }
        }
        let path = path(&name);
        prop_assert_eq!(resolve(&path).ok(), ObjectName::new(&name));
    }

    #[test]
    fn beside_is_one_too(name in name(), levels in 0usize..3) {
        // From a directory on the way down that is no continuation.
        let dirs: Vec<DirPrefix> = walk(&name).into_iter().map(|(under, _)| under).filter(|d| !d.is_continuation()).collect();
        let mut under = dirs[levels.min(dirs.len() - 1)].clone();
        loop {
            let (component, rest) = split_beside(&name, &under).unwrap();
            assert_file_name(&component);
            let decoded = decode(component.as_bytes(), &under);
            match rest {
                Rest::File => {
                    prop_assert_eq!(file_in(&component, &under), Some(name));
                    break;
                }
                Rest::Dir(dir) => {
                    let (Ok(Decoded::Entry { as_dir, .. }) | Ok(Decoded::Beside { as_dir, .. })) = decoded else { panic!() };
                    prop_assert_eq!(as_dir, Some(dir.clone()));
                    // `split` finds it in there too, once a slash is part of the component.
                    if dir.so_far().contains('/') {
                        prop_assert_eq!(split(&name, &dir), split_beside(&name, &dir));
                    }
                    under = dir;
                }
            }
        }
    }

    #[test]
    fn what_is_accepted_is_how_its_name_is_spelt(parts in prop::collection::vec(name(), 1..4), cut in 240usize..256) {
        let mut spelling = parts.join("/");
        if parts.len() > 1 && parts[0].len() > cut && parts[0].is_char_boundary(cut) {
            spelling = format!("{}%+/{}", &parts[0][..cut], parts.concat());
        }
        if let Ok(name) = resolve(&spelling) {
            prop_assert_eq!(path(name.as_str()), spelling);
        }
    }

    #[test]
    fn decoding_never_panics(file_name in prop::collection::vec(any::<u8>(), 0..300), name in name()) {
        for (under, _) in walk(&name) {
            let _ = decode(&file_name, &under);
            let _ = split(&String::from_utf8_lossy(&file_name), &under);
        }
    }

    #[test]
    fn an_entry_is_a_directory_or_an_object_of_its_own(names in prop::collection::vec(name(), 1..20)) {
        // Whatever is in a vault, one file name in one directory never stands for two different
        // things.
        let mut seen: HashMap<(DirPrefix, String), (Option<String>, Option<DirPrefix>)> = HashMap::new();
        for name in &names {
            let steps = walk(name);
            for (i, step) in steps.iter().enumerate() {
                let (file, dir) = seen.entry(step.clone()).or_default();
                match steps.get(i + 1) {
                    Some((next, _)) => prop_assert_eq!(dir.get_or_insert_with(|| next.clone()), next),
                    None => prop_assert_eq!(file.get_or_insert_with(|| name.clone()), name),
                }
            }
        }
    }
}

/// Names that a vault lists, as paths and back; and paths that are not made from names.
#[test]
#[ignore = "ten minutes of made-up names: run by scripts/test --all"]
fn names_for_ten_minutes() {
    let made = (name(), prop_oneof![name(), any::<String>()], prop::collection::vec(any::<u8>(), 0..300));
    crate::vault::testing::fuzz::for_ten_minutes("names", &made, |(name, spelling, bytes)| {
        let steps = walk(&name);
        for (under, component) in &steps {
            assert_file_name(component);
            let _ = decode(&bytes, under);
            let _ = split_beside(&name, under);
        }
        prop_assert_eq!(resolve(&path(&name)).ok(), ObjectName::new(&name));
        if let Ok(name) = resolve(&spelling) {
            prop_assert_eq!(path(name.as_str()), spelling);
        }
        Ok(())
    });
}
