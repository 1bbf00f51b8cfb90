//! The files themselves: the map is complete, examples are readable, nothing names the machine it was written on.

use super::{files, read, root};
use branchline::topology;
use std::collections::BTreeMap;

/// A file that is longer asks whether it has a second responsibility.
const LINES_MAX: usize = 500;

fn rust_files() -> Vec<String> {
    let files = files().into_iter().map(|p| p.to_str().expect("UTF-8").to_string());
    let files: Vec<String> = files.filter(|p| p.ends_with(".rs")).collect();
    assert!(files.len() > 100, "only {} files: is this the whole tree?", files.len());
    files
}

/// Whether the page has this word, whole: `store` is not named by `restored`.
fn names(page: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    page.match_indices(word).any(|(at, _)| {
        let before = page[..at].chars().next_back();
        let after = page[at + word.len()..].chars().next();
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

#[test]
fn a_word_is_named_only_whole() {
    for (page, named) in [("`store`:", true), ("restored", false), ("a store", true), ("store_id, stores", false)] {
        assert_eq!(names(page, "store"), named, "{page}");
    }
}

#[test]
fn every_module_is_named_in_the_architecture() {
    let page = read("ARCHITECTURE.md");
    let mut modules: BTreeMap<String, String> = BTreeMap::new();
    for file in rust_files() {
        let Some((package, inner)) = file.split_once("/src/") else { continue };
        let name = inner.split('/').next().unwrap_or_default().trim_end_matches(".rs");
        // Entry points are named as files; a module's own tests belong to it; `bin` holds entry points.
        if !["main", "lib", "bin"].contains(&name) && !name.ends_with("_tests") {
            modules.insert(format!("{package}: {name}"), name.to_string());
        }
    }
    assert!(modules.len() > 40, "{modules:?}");
    let missing: Vec<_> = modules.iter().filter(|(_, name)| !names(&page, name)).map(|(m, _)| m).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md does not name these modules: {missing:#?}");
}

#[test]
fn top_23_every_example_is_a_topology() {
    let folder = root().join("topology-examples");
    let entries = std::fs::read_dir(&folder).expect("topology-examples").map(|e| e.unwrap().path());
    let examples: Vec<_> = entries.filter(|p| p.is_dir() && !p.ends_with("invalid")).collect();
    assert!(!examples.is_empty());
    for example in &examples {
        let name = example.file_name().and_then(|n| n.to_str()).unwrap();
        let plan = topology::load(example).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(plan.name, name, "an example bears its folder's name");
        for file in ["README.md", "expected.json"] {
            assert!(example.join(file).is_file(), "{name} has no {file}");
        }
    }
    let index = read("topology-examples/README.md");
    let unlisted: Vec<_> =
        examples.iter().filter(|e| !index.contains(e.file_name().unwrap().to_str().unwrap())).collect();
    assert!(unlisted.is_empty(), "not in topology-examples/README.md: {unlisted:?}");
}

#[test]
fn top_23_a_wrong_example_is_refused_by_name() {
    let invalid = root().join("topology-examples/invalid");
    let mut seen = 0;
    for entry in std::fs::read_dir(invalid).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        let told = topology::load(&path).expect_err(&path.display().to_string()).to_string();
        let expected = std::fs::read_to_string(path.with_extension("expected")).unwrap();
        for line in expected.lines() {
            assert!(told.contains(line), "{}: {told}\nlacks: {line}", path.display());
        }
        seen += 1;
    }
    assert!(seen >= 2, "at the least an unknown key and a dangling parent");
}

#[test]
fn no_file_names_the_machine_it_was_written_on() {
    // Put together here, so that this file does not name them either.
    let banned = [["/wo", "rk/"].concat(), ["/tmp/", "brief"].concat(), ["/root/.", "cargo"].concat()];
    let mut found = Vec::new();
    for file in files() {
        let bytes = std::fs::read(root().join(&file)).expect("a file of the tree");
        let content = String::from_utf8_lossy(&bytes);
        for (number, line) in content.lines().enumerate() {
            if banned.iter().any(|b| starts_a_path(line, b)) {
                found.push(format!("{}:{}: {line}", file.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "paths of one machine: {found:#?}");
}

/// Whether an absolute path begins with this; `src/work/` does not.
fn starts_a_path(line: &str, path: &str) -> bool {
    let inner = |c: char| c.is_alphanumeric() || "._-~$}*/".contains(c);
    line.match_indices(path).any(|(at, _)| !line[..at].chars().next_back().is_some_and(inner))
}

#[test]
fn no_file_is_long() {
    let files = rust_files().into_iter().map(|file| (read(&file).lines().count(), file));
    let long: Vec<_> = files.filter(|(lines, _)| *lines > LINES_MAX).collect();
    assert!(long.is_empty(), "over {LINES_MAX} lines; look for the second responsibility: {long:#?}");
}
