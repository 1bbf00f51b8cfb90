//! What no compiler checks: which crate may know which, what the licences allow, and that the map of the code is true.

mod defects;
mod dependencies;
mod licences;
mod tree;

use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace").to_path_buf()
}

fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What a cargo command prints.
fn cargo(args: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(args).arg("--locked").current_dir(root()).output().expect("cargo runs");
    assert!(output.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}

/// Every package of the lock file, with the workspace's.
fn metadata() -> &'static Value {
    static METADATA: OnceLock<Value> = OnceLock::new();
    METADATA.get_or_init(|| {
        serde_json::from_str(&cargo(&["metadata", "--format-version", "1"])).expect("cargo metadata is JSON")
    })
}

/// The workspace's packages.
fn members() -> Vec<&'static Value> {
    let ids = metadata()["workspace_members"].as_array().expect("members");
    let packages = metadata()["packages"].as_array().expect("packages");
    packages.iter().filter(|p| ids.contains(&p["id"])).collect()
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} in {value}"))
}

/// A package that is really built for the workspace, on whatever platform.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Built {
    name: String,
    version: String,
    licence: String,
}

/// Every package that is built for these, on whatever platform. Cargo's metadata also names packages that only a
/// feature nobody switched on would bring; its tree does not.
fn built(of: &[&str]) -> Vec<Built> {
    let args = ["tree", "--target", "all", "--edges", "normal,build,dev", "--prefix", "none", "--format", "{p}\t{l}"];
    let mut packages: Vec<Built> = cargo(&[&args, of].concat())
        .lines()
        .filter_map(|line| {
            let (package, licence) = line.split_once('\t')?;
            let mut words = package.split(' ');
            let (name, version) = (words.next()?.to_string(), words.next()?.to_string());
            Some(Built { name, version, licence: licence.trim_end_matches("(*)").trim().to_string() })
        })
        .collect();
    packages.sort();
    packages.dedup();
    packages
}

/// Every file of the tree that is not built or ignored, relative to the root.
fn files() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder of the tree") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            // Built, kept by git, or the state of a running installation.
            if ["target", ".git", ".branchline"].contains(&name) {
                continue;
            }
            if path.is_symlink() {
                continue;
            }
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let (root, mut found) = (root(), Vec::new());
    walk(&root, &mut found);
    found.iter().map(|path| path.strip_prefix(&root).expect("below the root").to_path_buf()).collect()
}
