//! A server's state goes into one file and comes back whole, or not at all.

use super::*;
use crate::{
    domain::{InitWish, Office, raise_term},
    store::{Op, Store},
};
use branchline_node::{node::Ambient, random::SeededRandom, time::TestClock};
use bytes::Bytes;
use std::sync::Arc;
use tempfile::TempDir;

const NOW: Millis = Millis(1_790_000_000_000);

fn ambient() -> Ambient {
    Ambient { clock: TestClock::at(NOW), random: SeededRandom::shared(5), ..Ambient::system() }
}

/// A server's folder with its store open, as a running server has it.
async fn server() -> (TempDir, PathBuf, Arc<SqliteStore>, Office) {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    let store = SqliteStore::open(&state.join(DATABASE)).await.unwrap();
    let wish = InitWish {
        server_name: "hq".into(),
        api_hosts: vec![],
        tenants: vec![("acme".parse().unwrap(), vec!["osaka".into()])],
    };
    let office = Office::init(&state, store.clone(), ambient(), wish).await.unwrap();
    (folder, state, store, office)
}

fn code<T>(found: Result<T, ServerBackupFault>) -> &'static str {
    found.map_or_else(|fault| fault.code(), |_| "good")
}

/// Names of everything in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn ops_7_a_running_server_is_backed_up_and_comes_back_in_the_next_term() {
    let (folder, state, store, office) = server().await;
    store.commit(vec![Op::Meta("seen".into(), Bytes::from_static(b"before"))]).await.unwrap();
    let out = folder.path().join("hq.backup");
    let manifest = back_up(&state, &out, NOW).await.unwrap();
    assert_eq!((manifest.node, manifest.name.as_str(), manifest.term), (office.server_id(), "hq", 1));
    let tenants: Vec<String> = manifest.tenants.iter().map(ToString::to_string).collect();
    assert_eq!(tenants, ["acme", "system"]);
    // It goes on, and the backup does not know of it.
    store.commit(vec![Op::Meta("seen".into(), Bytes::from_static(b"after"))]).await.unwrap();
    assert_eq!(names(folder.path()), ["hq.backup", "state"], "nothing else is left");

    let new = folder.path().join("new");
    assert_eq!(restore(&out, &new, NOW.plus(5)).unwrap(), manifest);
    assert_eq!(mark(&new).unwrap(), Some(Mark { made_at: NOW, restored_at: NOW.plus(5) }));
    for file in ["tenants/acme/signing.key", "tenants/acme/ca/ca.pem", "tokens/acme", "server.id", "ca.pem"] {
        assert_eq!(fs::read(new.join(file)).unwrap(), fs::read(state.join(file)).unwrap(), "{file}");
    }
    let restored = SqliteStore::open(&new.join(DATABASE)).await.unwrap();
    assert_eq!(restored.meta("seen").await.unwrap(), Some(Bytes::from_static(b"before")));
    assert_eq!(raise_term(&*restored, mark(&new).unwrap().unwrap(), NOW.plus(9)).await.unwrap(), 2);
    unmark(&new).unwrap();
    assert_eq!(mark(&new).unwrap(), None);
    let back = Office::open(&new, restored.clone(), ambient()).await.unwrap();
    assert_eq!((back.server_id(), back.term()), (office.server_id(), 2));
    assert!(back.recovery().is_some(), "it listens first");
    // A restart while it listens raises nothing more.
    drop(back);
    restored.close().await;
    drop(restored);
    let restored = SqliteStore::open(&new.join(DATABASE)).await.unwrap();
    let back = Office::open(&new, restored.clone(), ambient()).await.unwrap();
    assert_eq!((back.term(), back.recovery().is_some()), (2, true));
    store.close().await;
    restored.close().await;
}

#[tokio::test]
async fn ops_7_a_stopped_server_is_backed_up_too() {
    let (folder, state, store, office) = server().await;
    let id = office.server_id();
    drop(office);
    store.close().await;
    let out = folder.path().join("a");
    assert_eq!(back_up(&state, &out, NOW).await.unwrap().node, id);
    assert_eq!(code(back_up(&state, &out, NOW).await), "already_exists");
    assert_eq!(code(back_up(folder.path(), &folder.path().join("b"), NOW).await), "no_server");
    assert_eq!(names(folder.path()), ["a", "state"]);
}

#[tokio::test]
async fn ops_7_what_cannot_be_restored_has_one_answer_and_writes_nothing() {
    let (folder, state, store, _office) = server().await;
    let out = folder.path().join("a");
    back_up(&state, &out, NOW).await.unwrap();
    // Onto a server that runs, onto one that does not, onto something else.
    assert_eq!(code(restore(&out, &state, NOW)), "state_in_use");
    store.close().await;
    assert_eq!(code(restore(&out, &state, NOW)), "state_not_empty");
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("notes.txt"), "mine").unwrap();
    assert_eq!(code(restore(&out, &other, NOW)), "state_not_empty");
    assert_eq!(code(restore(&out, &other.join("notes.txt"), NOW)), "unreadable");
    assert_eq!(names(&other), ["notes.txt"]);
    // Of a backup that is not as it was written.
    let whole = fs::read(&out).unwrap();
    let (bad, new) = (folder.path().join("bad"), folder.path().join("new"));
    let (head, middle, last) = (40, whole.len() / 2, whole.len() - 1);
    for place in [head, middle, last] {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x10;
        fs::write(&bad, bytes).unwrap();
        assert_eq!(code(restore(&bad, &new, NOW)), "damaged", "byte {place}");
    }
    fs::write(&bad, &whole[..last]).unwrap();
    assert_eq!(code(restore(&bad, &new, NOW)), "damaged");
    fs::write(&bad, b"branchline backup 2\nfrom the future").unwrap();
    assert_eq!(code(restore(&bad, &new, NOW)), "newer_format");
    fs::write(&bad, b"not at all").unwrap();
    assert_eq!(code(restore(&bad, &new, NOW)), "no_backup");
    assert_eq!(code(restore(&folder.path().join("missing"), &new, NOW)), "unreadable");
    // Of another role's.
    let head = Manifest { role: Role::Relay, parts: Vec::new(), ..backup::verify(&out).unwrap() };
    fs::remove_file(&bad).unwrap();
    backup::write(&bad, head, vec![]).unwrap();
    assert_eq!(code(restore(&bad, &new, NOW)), "other_role");
    // While another restore is under way.
    let under_way = folder.path().join("new.restoring");
    fs::create_dir(&under_way).unwrap();
    assert_eq!(code(restore(&out, &new, NOW)), "restore_under_way");
    assert!(!new.exists());
    fs::remove_dir(&under_way).unwrap();
    // An empty folder is as good as none.
    fs::create_dir(&new).unwrap();
    assert_eq!(code(restore(&out, &new, NOW)), "good");
    assert_eq!(names(folder.path()), ["a", "bad", "new", "other", "state"]);
}

#[tokio::test]
async fn ops_7_a_later_restore_reaches_back_to_an_earlier_one_while_results_are_kept() {
    let (_folder, _state, store, _office) = server().await;
    let from = |made_at: i64| Mark { made_at: Millis(made_at), restored_at: Millis(made_at) };
    let day = 86_400_000;
    let statement = async |store: &SqliteStore| {
        let bytes = store.meta("restored_from").await.unwrap().unwrap();
        rmp_serde::from_slice::<Millis>(&bytes).unwrap().0
    };
    raise_term(&*store, from(NOW.0), NOW.plus(day)).await.unwrap();
    assert_eq!(statement(&store).await, NOW.0);
    // A device that was away all the time is still asked for what the first restore lost.
    raise_term(&*store, from(NOW.0 + 2 * day), NOW.plus(3 * day)).await.unwrap();
    assert_eq!(statement(&store).await, NOW.0);
    raise_term(&*store, from(NOW.0 + 6 * day), NOW.plus(7 * day)).await.unwrap();
    assert_eq!(statement(&store).await, NOW.0 + 6 * day, "nobody keeps results for so long");
    assert_eq!(store.meta("term").await.unwrap(), Some(Bytes::from_static(b"4")));
    store.close().await;
}
