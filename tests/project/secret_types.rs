//! Secrets travel in types that cannot be printed: read from the sources as text.
//!
//! 1. What derives `Debug` or `Serialize` holds no secret in a plain type: a field whose name says
//!    so (`key`, `value`, `password`, …) is no `String`, no `Vec<u8>`, and nothing else that would
//!    be shown.
//! 2. What derives `Serialize` or `Deserialize` holds no secret type either: keys travel beside
//!    JSON, not in it.
//! 3. What is exposed goes into no formatting macro; the exceptions are few, and listed here.
//! 4. The header with the key is marked sensitive, and the key leaves the environment before
//!    anything else.

use super::{files, read};

/// Names of fields that say "secret", whole or after an underscore.
const SECRET_NAMES: &[&str] = &[
    "key",
    "value",
    "secret",
    "data",
    "password",
    "token",
    "plaintext",
    "bytes",
    "body",
    "bearer",
    "credential",
];

/// Types that `Debug` shows. Wrapped ones (`Option<String>`, `Arc<[u8]>`) are found as well.
const PLAIN_TYPES: &[&str] = &["String", "str", "Vec<u8>", "[u8]", "Bytes", "Cow", "OsString", "CString"];

/// The types that hold secrets.
const SECRET_TYPES: &[&str] = &["SecretBytes", "SecretString", "Content", "ApiKey", "MasterKey", "Value"];

/// Fields that are no secrets, whatever their names say.
const HARMLESS: &[(&str, &str)] = &[
    // Sealed: opened only with the master key.
    ("server/store/mod.rs", "wrapped_key"),
    // Wrapped: opened only by the vault that made it.
    ("server/api/key.rs", "encrypted_key"),
    // The ids of API keys.
    ("server/instance/admission.rs", "by_key"),
    ("server/instance/admission.rs", "key"),
];

/// Formatting of what was exposed. One place: a new key is printed once, because it was asked for.
const PRINTED: &[(&str, &str)] = &[("cli/commands/serve_key.rs", "writeln!(out, \"{}\", key.expose())?;")];

const MACROS: &[&str] = &[
    "format!(",
    "print!(",
    "println!(",
    "eprint!(",
    "eprintln!(",
    "write!(",
    "writeln!(",
    "panic!(",
    "bail!(",
    "anyhow!(",
    "trace!(",
    "debug!(",
    "info!(",
    "warn!(",
    "error!(",
    "_span!(",
];

/// The code of a file without comments and without its tests.
fn code(source: &str) -> String {
    let tests = source.find("#[cfg(test)]\nmod tests {").unwrap_or(source.len());
    let strip = |line: &str| {
        let comment = line.match_indices("//").map(|(at, _)| at).find(|&at| !line[..at].ends_with(':'));
        line[..comment.unwrap_or(line.len())].trim_end().to_owned() + "\n"
    };
    source[..tests].lines().map(strip).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `text` has `word` between other things than letters.
fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let after = &text[at + word.len()..];
        !(text[..at].ends_with(is_word) || word.ends_with(is_word) && after.starts_with(is_word))
    })
}

/// Each type that derives something: what it derives, and the text of its body.
fn derived(code: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("#[derive(") {
        let rest = &code[at + 9..];
        let Some(end) = rest.find(')') else { continue };
        let after = &rest[end..];
        // The body ends with the first line that closes it at the derive's own indentation.
        let indent = code[..at].len() - code[..at].trim_end_matches(' ').len();
        let close = format!("\n{}}}", " ".repeat(indent));
        let (tuple, braces) = (after.find(";\n"), after.find(&close));
        let body = match (tuple, braces) {
            (Some(semi), Some(brace)) if !after[..semi].contains('{') => &after[..semi.min(brace)],
            (Some(semi), None) => &after[..semi],
            (_, Some(brace)) => &after[..brace],
            (None, None) => after,
        };
        found.push((&rest[..end], body));
    }
    found
}

/// Fields of a body, `name: type`.
fn fields(body: &str) -> Vec<(&str, &str)> {
    let parts =
        body.split(['\n', '{', ';']).flat_map(|line| line.trim().trim_end_matches(',').split_once(": "));
    let named = parts.map(|(name, kind)| (name.rsplit(' ').next().unwrap_or(name), kind));
    named.filter(|(name, _)| !name.is_empty() && name.chars().all(is_word)).collect()
}

fn says_secret(name: &str) -> bool {
    SECRET_NAMES.iter().any(|word| name == *word || name.ends_with(&format!("_{word}")))
}

/// What is wrong in one file.
fn violations(file: &str, source: &str) -> Vec<String> {
    let code = code(source);
    let mut wrong = Vec::new();
    for (derives, body) in derived(&code) {
        let shows = has_word(derives, "Debug") || has_word(derives, "Serialize");
        for (name, kind) in fields(body) {
            let plain = PLAIN_TYPES.iter().any(|plain| has_word(kind, plain));
            if shows && plain && says_secret(name) && !HARMLESS.contains(&(file, name)) {
                wrong.push(format!("{file}: {name}: {kind} can be shown: use SecretString or SecretBytes"));
            }
        }
        let travels = has_word(derives, "Serialize") || has_word(derives, "Deserialize");
        for secret in SECRET_TYPES.iter().filter(|secret| travels && has_word(body, secret)) {
            // JSON's own type has the same name as the server's.
            if *secret != "Value" || !body.contains("serde_json::Value") {
                wrong.push(format!("{file}: a type that travels as text holds {secret}"));
            }
        }
    }
    for (start, _) in MACROS.iter().flat_map(|name| code.match_indices(name)) {
        let call = &code[start..code[start..].find(";\n").map_or(code.len(), |end| start + end + 1)];
        let line = call.replace('\n', " ");
        if call.contains(".expose()") && call.len() < 400 && !PRINTED.contains(&(file, &line)) {
            wrong.push(format!("{file}: an exposed secret is formatted: {line}"));
        }
    }
    if code.contains(".insert(AUTHORIZATION") && !code.contains("set_sensitive(true)") {
        wrong.push(format!("{file}: the header with the key is not marked sensitive"));
    }
    let reads_key = code.contains("\"WORKOS_API_KEY\"") && code.contains("env::var");
    if reads_key && code.contains("env::var(\"WORKOS_API_KEY\"") {
        wrong.push(format!("{file}: the key comes from hardening::take_env only"));
    }
    wrong
}

#[test]
fn secrets_have_types_that_cannot_be_shown() {
    let mut wrong = Vec::new();
    let mut types = 0;
    for (name, source) in files("src", "rs").iter().filter(|(name, _)| !name.ends_with("/tests.rs")) {
        types += derived(&code(source)).len();
        wrong.extend(violations(name, source));
    }
    assert!(types > 100, "only {types} types were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The secret types themselves show nothing.
#[test]
fn secret_types_are_neither_shown_nor_serialised() {
    let source = read("src/secret.rs");
    let code = code(&source);
    let types = derived(&code);
    assert_eq!(types.len(), 2, "SecretBytes and SecretString");
    for (derives, _) in types {
        assert!(has_word(derives, "ZeroizeOnDrop"), "{derives}");
        assert!(!has_word(derives, "Debug") && !has_word(derives, "Serialize"), "{derives}");
    }
    for shown in ["Display for", "Serialize for", "Deref for", "AsRef<"] {
        assert!(!code.contains(shown), "{shown} Secret…");
    }
}

/// Before anything else: the order in `main` is what keeps the key out of the environment.
#[test]
fn the_process_is_hardened_first() {
    let first = |source: &str| {
        let code = code(source);
        let body = code.split_once("fn main() -> ").unwrap().1.split_once('{').unwrap().1.trim().to_owned();
        body.lines().next().unwrap().to_owned()
    };
    assert_eq!(first(&read("src/main.rs")), "vaultfs::sys::hardening::process();");
    assert_eq!(first(&read("src/cli/mod.rs")), "log::quiet_panics();");
}

#[test]
fn the_check_sees_what_it_should() {
    for (source, count) in [
        ("#[derive(Debug)]\npub struct A {\n    pub key: String,\n}\n", 1),
        ("#[derive(Debug)]\npub struct A {\n    pub key: SecretString,\n}\n", 0),
        ("#[derive(Clone)]\npub struct A {\n    pub key: String,\n}\n", 0),
        (
            "#[derive(Debug, Clone)]\n/// Doc: text\npub(super) struct A<'a> {\n    api_key: Option<&'a str>,\n}\n",
            1,
        ),
        ("#[derive(Serialize)]\nstruct A {\n    monkey: String,\n    value: Vec<u8>,\n}\n", 1),
        ("#[derive(Debug)]\nenum A {\n    B { data: Arc<[u8]>, size: u64 },\n    C(u8),\n}\n", 1),
        ("#[derive(Debug)]\nstruct A {\n    size: u64,\n}\nfn f(key: String) {}\n", 0),
        ("#[derive(Debug)]\nstruct A(u8);\nstruct B {\n    key: String,\n}\n", 0),
        ("#[derive(Clone, Serialize)]\nstruct A {\n    it: SecretString,\n}\n", 1),
        ("#[derive(Deserialize)]\nstruct A(SecretBytes);\n", 1),
        ("fn f() {\n    tracing::info!(\"{}\", key.expose());\n}\n", 1),
        ("fn f() {\n    let a = format!(\n        \"{}\",\n        key.expose()\n    );\n}\n", 1),
        ("fn f() {\n    info!(\"x\");\n    g(key.expose());\n}\n", 0),
        ("fn f() {\n    h.insert(AUTHORIZATION, v);\n}\n", 1),
        ("fn f() {\n    v.set_sensitive(true);\n    h.insert(AUTHORIZATION, v);\n}\n", 0),
        ("fn f() {\n    std::env::var(\"WORKOS_API_KEY\");\n}\n", 1),
        (
            "// #[derive(Debug)]\n#[cfg(test)]\nmod tests {\n    #[derive(Debug)]\n    struct A {\n        key: String,\n    }\n}\n",
            0,
        ),
    ] {
        assert_eq!(violations("a.rs", source).len(), count, "{source}{:?}", violations("a.rs", source));
    }
}
