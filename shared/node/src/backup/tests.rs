//! Files altered, cut, lengthened, of another kind: each has one answer, and nothing is written.

use super::*;
use tempfile::TempDir;
use uuid::Uuid;

fn head() -> Manifest {
    Manifest {
        build: "1.2.3".into(),
        role: Role::Server,
        node: NodeId(Uuid::from_u128(7)),
        name: "hq".into(),
        tenants: vec!["acme".parse().unwrap()],
        term: 3,
        made_at: Millis(1_790_000_000_000),
        parts: Vec::new(),
    }
}

/// A backup of three parts, one of them empty.
fn written() -> (TempDir, PathBuf, Manifest) {
    let folder = tempfile::tempdir().unwrap();
    let (out, large) = (folder.path().join("a.backup"), folder.path().join("large"));
    fs::write(&large, vec![9; 100_000]).unwrap();
    let parts = vec![
        ("server.db".to_owned(), Source::File(large.clone())),
        ("tenants/acme/signing.key".to_owned(), Source::Bytes(b"secret".to_vec())),
        ("tokens/acme".to_owned(), Source::Bytes(Vec::new())),
    ];
    let manifest = write(&out, head(), parts).unwrap();
    fs::remove_file(large).unwrap();
    (folder, out, manifest)
}

fn code(found: Result<Manifest, BackupFault>) -> &'static str {
    match found {
        Ok(_) => "good",
        Err(BackupFault::Io { .. }) => "io",
        Err(BackupFault::Exists(_)) => "exists",
        Err(BackupFault::NotABackup(_)) => "no_backup",
        Err(BackupFault::NewerFormat { .. }) => "newer",
        Err(BackupFault::Damaged(_)) => "damaged",
    }
}

#[test]
fn ops_7_a_backup_comes_back_as_it_was_for_its_owners_eyes_only() {
    let (folder, out, manifest) = written();
    assert_eq!(verify(&out).unwrap(), manifest);
    let into = folder.path().join("state");
    assert_eq!(extract(&out, &into).unwrap(), manifest);
    assert_eq!(fs::read(into.join("server.db")).unwrap(), vec![9; 100_000]);
    assert_eq!(fs::read(into.join("tenants/acme/signing.key")).unwrap(), b"secret");
    assert_eq!(fs::read(into.join("tokens/acme")).unwrap(), b"");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!([mode(&out), mode(&into.join("server.db")), mode(&into.join("tenants"))], [0o600, 0o600, 0o700]);
    }
    // Nothing but the backup was left beside it, and it takes no other file's place.
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let before = fs::read(&out).unwrap();
    assert_eq!(code(write(&out, head(), vec![])), "exists");
    assert_eq!(fs::read(&out).unwrap(), before);
}

#[test]
fn ops_7_one_altered_byte_anywhere_is_found() {
    let (folder, out, _) = written();
    let whole = fs::read(&out).unwrap();
    let altered = folder.path().join("altered");
    let head_end = whole.len() - 100_006;
    // Every byte of the head, and some of each part.
    for place in (0..head_end).chain([head_end + 1, head_end + 50_000, whole.len() - 6, whole.len() - 1]) {
        let mut bytes = whole.clone();
        bytes[place] ^= 1;
        fs::write(&altered, bytes).unwrap();
        assert_ne!(code(verify(&altered)), "good", "byte {place}");
    }
}

#[test]
fn ops_7_a_cut_or_longer_file_is_damaged_and_another_kind_of_file_is_no_backup() {
    let (folder, out, _) = written();
    let whole = fs::read(&out).unwrap();
    let other = folder.path().join("other");
    let told = |bytes: &[u8]| {
        fs::write(&other, bytes).unwrap();
        code(verify(&other))
    };
    assert_eq!(told(&whole), "good");
    assert_eq!(told(&whole[..whole.len() - 1]), "damaged");
    assert_eq!(told(&[&whole[..], b"x"].concat()), "damaged");
    assert_eq!(told(&whole[..MAGIC.len() + 5]), "damaged");
    for none in [&b""[..], b"PK\x03\x04", b"branchline backup one\n", b"branchline backup 0\n", b"branchline backup "] {
        assert_eq!(told(none), "no_backup", "{none:?}");
    }
    assert_eq!(code(verify(&folder.path().join("missing"))), "io");
}

#[test]
fn ops_7_a_newer_format_is_told_as_such_whatever_follows() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("newer");
    for (format, answer) in [(FORMAT + 1, "newer"), (999_999_999, "newer"), (FORMAT, "damaged")] {
        fs::write(&file, format!("branchline backup {format}\n")).unwrap();
        assert_eq!(code(verify(&file)), answer, "{format}");
    }
}

/// Whoever can write a file can also write its digests: a path must not lead out of the folder all the same.
#[test]
fn ops_7_a_path_that_leads_out_of_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for path in ["../escaped", "/escaped", "a/../../escaped", "", ".", "tokens/./a"] {
        let out = folder.path().join("evil");
        let part = Part { path: path.into(), bytes: 1, hash: Hash::of(b"x") };
        let manifest = Manifest { parts: vec![part], ..head() };
        fs::write(&out, [header(&manifest), b"x".to_vec()].concat()).unwrap();
        let fine = path == "tokens/./a";
        assert_eq!(code(verify(&out)) == "good", fine, "{path:?}");
        assert_eq!(code(extract(&out, &folder.path().join("into"))) == "good", fine, "{path:?}");
        assert!(!folder.path().join("escaped").exists());
    }
    let twice = Part { path: "a".into(), bytes: 0, hash: Hash::of(b"") };
    let manifest = Manifest { parts: vec![twice.clone(), twice], ..head() };
    fs::write(folder.path().join("twice"), header(&manifest)).unwrap();
    assert_eq!(code(verify(&folder.path().join("twice"))), "damaged");
}
