//! Licences and bans, held also where cargo-deny is not installed.

use super::{built, read};
use std::collections::BTreeSet;

/// The lists of `deny.toml`: allowed licences, banned crates.
fn deny() -> (BTreeSet<String>, BTreeSet<String>) {
    let file: toml::Table = read("deny.toml").parse().expect("deny.toml is TOML");
    let strings = |value: &toml::Value, key: Option<&str>| -> BTreeSet<String> {
        let words = value.as_array().expect("a list").iter();
        words.map(|w| key.map_or(w, |k| &w[k]).as_str().expect("a word").to_string()).collect()
    };
    (strings(&file["licenses"]["allow"], None), strings(&file["bans"]["deny"], Some("crate")))
}

/// Whether an SPDX expression can be met with allowed licences alone. The old form `A/B` is a choice.
fn allowed(expression: &str, allow: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let met = either(&words, &mut at, allow);
    met && at == words.len()
}

fn either(words: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> bool {
    let mut met = both(words, at, allow);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= both(words, at, allow);
    }
    met
}

fn both(words: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> bool {
    let mut met = one(words, at, allow);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, allow);
    }
    met
}

fn one(words: &[&str], at: &mut usize, allow: &BTreeSet<String>) -> bool {
    if words.get(*at) == Some(&"(") {
        *at += 1;
        let met = either(words, at, allow);
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return met && closed;
    }
    let Some(name) = words.get(*at) else { return false };
    *at += 1;
    if words.get(*at) == Some(&"WITH") {
        let exception = words.get(*at + 1).copied().unwrap_or_default();
        *at += 2;
        return allow.contains(&format!("{name} WITH {exception}"));
    }
    allow.contains(*name)
}

#[test]
fn expressions_are_judged_as_they_are_meant() {
    let allow: BTreeSet<String> =
        ["MIT", "ISC", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(String::from).into();
    let good = [
        "MIT",
        "MIT/GPL-3.0",
        "MIT OR LGPL-2.1-or-later",
        "ISC AND (Apache-2.0 OR GPL-2.0)",
        "Apache-2.0 WITH LLVM-exception",
        "GPL-3.0 OR (MIT AND ISC)",
    ];
    let bad =
        ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND AGPL-3.0", "MIT WITH LLVM-exception", "(MIT", "MIT ISC"];
    for expression in good {
        assert!(allowed(expression, &allow), "{expression}");
    }
    for expression in bad {
        assert!(!allowed(expression, &allow), "{expression}");
    }
}

#[test]
fn every_licence_is_permissive() {
    let (allow, _) = deny();
    for word in &allow {
        assert!(!word.contains("GPL") && !word.contains("MPL"), "{word} binds what it is linked with");
    }
    let packages = built(&["--workspace"]);
    assert!(packages.len() > 200, "only {} packages: is this the whole tree?", packages.len());
    let wrong: Vec<_> = packages.iter().filter(|p| !allowed(&p.licence, &allow)).collect();
    assert!(wrong.is_empty(), "not allowed by deny.toml: {wrong:#?}");
    // What nobody bears any more is taken off the list, so that it does not let something else in later.
    let borne = |licence: &&String| packages.iter().any(|p| p.licence.contains(licence.as_str()));
    let unused: Vec<_> = allow.iter().filter(|l| !borne(l)).collect();
    assert!(unused.is_empty(), "allowed, and borne by no package: {unused:?}");
}

#[test]
fn there_is_one_crypto_library_and_one_sqlite() {
    let (_, banned) = deny();
    for word in ["ring", "openssl-sys", "native-tls"] {
        assert!(banned.contains(word), "deny.toml does not ban {word}");
    }
    let packages = built(&["--workspace"]);
    let found: Vec<_> = packages.iter().filter(|p| banned.contains(&p.name)).collect();
    assert!(found.is_empty(), "banned by deny.toml: {found:#?}");
    for name in ["rustls", "aws-lc-sys", "libsqlite3-sys"] {
        let versions = packages.iter().filter(|p| p.name == name).count();
        assert_eq!(versions, 1, "{name} is there {versions} times");
    }
}
