//! The server's database on a disk that fails: writes and syncs that come back with an error, and a disk that is full.

use super::*;
use branchline_node::node::exit_code;
use branchline_tests::{
    chaos::{Ordered, Work, rest},
    office::until,
};
use std::{
    collections::BTreeMap,
    process::{Command, Output, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

/// The nth write or sync fails, for each n up to this.
const NTH_MAX: u64 = 200;
/// Records that a run settles: enough for more than [`NTH_MAX`] writes and for [`NTH_MAX`] syncs with the opening's.
const RECORDS: u64 = 230;
/// Records that come after the failure, the one that was not acknowledged first.
const AGAIN: u64 = 5;
const STORE_FAILED: i32 = exit_code::STORE;
const STATE: i32 = exit_code::STATE;

/// The shim, compiled for this run by the C compiler that the workspace needs anyway.
static SHIM: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder for the shim");
    let (source, object) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("shim/fail.c"), folder.path().join("fail.so"));
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]).arg(&object).arg(source).arg("-ldl");
    let built = cc.output().expect("cc is installed: the workspace is built with it");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    (folder, object)
});

fn failing(nth: u64, what: &str, how: &str) -> Vec<(String, String)> {
    let shim = SHIM.1.to_str().expect("a UTF-8 path");
    let pairs = [
        ("LD_PRELOAD", shim),
        ("BRANCHLINE_FAIL_PATH", "server.db"),
        ("BRANCHLINE_FAIL_NTH", &nth.to_string()),
        ("BRANCHLINE_FAIL_WHAT", what),
        ("BRANCHLINE_FAIL_HOW", how),
    ];
    pairs.map(|(name, value)| (name.to_string(), value.to_string())).to_vec()
}

fn settle(file: &Path, count: u64, env: Vec<(String, String)>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sqlite-under-fault"));
    command.arg(file).arg(count.to_string()).envs(env).stdin(Stdio::null());
    command.output().expect("the store's process starts")
}

/// The last number that a run said after `word`.
fn last(output: &Output, word: &str) -> u64 {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter_map(|line| line.strip_prefix(word)?.trim().parse().ok()).next_back().unwrap_or(0)
}

#[test]
fn whichever_write_or_sync_of_the_database_fails_nothing_settled_is_lost_and_what_comes_again_counts_once() {
    let folder = tempfile::tempdir().unwrap();
    let next = AtomicUsize::new(0);
    // What, how, and which of the n: each one once, and every fourth in the other ways.
    let kinds =
        [("write", "once", 1), ("sync", "once", 1), ("write", "torn", 4), ("write", "since", 4), ("sync", "since", 4)];
    let all = kinds.iter().flat_map(|(what, how, each)| (1..=NTH_MAX / each).map(move |n| (n * each, *what, *how)));
    let all: Vec<(u64, &str, &str)> = all.collect();
    let outcomes: Vec<BTreeMap<&str, u64>> = std::thread::scope(|scope| {
        let work = || {
            let mut outcomes = BTreeMap::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some((nth, what, how)) = all.get(n) else { return outcomes };
                let outcome = one_failure(folder.path(), *nth, what, how);
                *outcomes.entry(outcome).or_default() += 1;
            }
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("every failure is handled")).collect()
    });
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    outcomes.iter().flatten().for_each(|(outcome, n)| *sums.entry(outcome).or_default() += n);
    println!("sqlite under failing writes and syncs: {sums:?}");
    let done: u64 = sums.values().sum();
    let hit = done - sums.get("survived").copied().unwrap_or(0);
    // A failed truncation or a failed fold of the log into the file is no failed commit.
    assert!(done == all.len() as u64 && hit * 10 >= done * 9, "{sums:?}");
}

/// One file, one failure, then the same without it.
fn one_failure(folder: &Path, nth: u64, what: &str, how: &str) -> &'static str {
    let place = folder.join(format!("{what}-{how}-{nth}"));
    std::fs::create_dir(&place).unwrap();
    let file = place.join("server.db");
    let failed = settle(&file, RECORDS, failing(nth, what, how));
    let told = || format!("the {nth}th {what} fails {how}: {failed:?}");
    let settled = last(&failed, "settled ");
    let outcome = match (failed.status.code(), settled) {
        (Some(0), RECORDS) => "survived",
        (Some(STORE_FAILED), 0) => "refused to open",
        (Some(STORE_FAILED), _) => "stopped",
        _ => panic!("{}", told()),
    };
    // Nothing: the file holds what was acknowledged at least, and each of it once.
    let after = settle(&file, 0, vec![]);
    assert!(after.status.success() && last(&after, "holds ") >= settled, "{}\nthen {after:?}", told());
    // What was not acknowledged comes again and counts once.
    let upto = last(&after, "holds ") + AGAIN;
    let again = settle(&file, upto, vec![]);
    assert!(again.status.success() && last(&again, "holds ") == upto, "{}\nthen {again:?}", told());
    std::fs::remove_dir_all(place).unwrap();
    outcome
}

/// A small branch whose server is disturbed.
struct Disturbed {
    plant: Plant,
    effects: PathBuf,
    done: Done,
}

impl Disturbed {
    fn start() -> Disturbed {
        let plant = Plant::start(exe(), &topology(&[("branch", "dmz")], &[("pc", 4, "branch")]));
        let effects = effects(&plant);
        Disturbed { plant, effects, done: Done::default() }
    }

    fn order(&mut self, work: Work) {
        let told = self.plant.tell("/jobs", &work.body(&self.effects)).ok();
        let id = told.and_then(|(_, job)| job["id"].as_str().map(String::from));
        self.done.ordered.push(Ordered { key: work.key, id });
    }

    /// The server starts so, and jobs are ordered until it has ended with its own code, or for a while.
    fn until_the_server_ends(&mut self, env: Vec<(String, String)>, jobs: u64, work: impl Fn(u64) -> Work) -> bool {
        let server = self.plant.process("hq");
        server.hold_down();
        let before = server.history().1.len();
        server.let_start(env);
        for n in 0..jobs {
            self.order(work(n));
            if let Some(end) = self.plant.process("hq").end(before, 0) {
                // It stops, or it refuses to start.
                let known = [Some(STORE_FAILED), Some(STATE)].contains(&end.code);
                assert!(known && !end.ours, "{end:?}");
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        false
    }

    /// Without the disturbance everything comes to its end, once.
    fn then_all_is_well(&mut self, what: &str) {
        self.plant.process("hq").hold_down();
        self.plant.process("hq").let_start(vec![]);
        rest(&self.plant, &self.done, 240);
        self.plant.all_online(240);
        println!("{what}: {} jobs ordered, {} answered", self.done.ordered.len(), self.answered());
    }

    fn answered(&self) -> usize {
        self.done.ordered.iter().filter(|o| o.id.is_some()).count()
    }

    /// The accounts of all of it. The server ended by itself, as it had to.
    fn accounts_agree(&mut self, what: &str) {
        self.plant.stop();
        let found = branchline_tests::chaos::accounts::read(&self.plant, &self.done, &self.effects);
        assert!(found.lost.is_empty() && found.doubled.is_empty() && found.wrong.is_empty(), "{what}: {found:#?}");
        println!("{what}: {} pairs, 0 lost, 0 doubled", found.pairs.len());
    }
}

#[test]
fn a_server_whose_database_fails_stops_and_after_its_restart_nothing_is_lost() {
    let _alone = alone();
    let mut branch = Disturbed::start();
    let mut stops = 0;
    let faults = [
        (1, "write", "once"),
        (20, "write", "torn"),
        (60, "write", "since"),
        (3, "sync", "once"),
        (25, "sync", "since"),
    ];
    for (round, (nth, what, how)) in faults.into_iter().enumerate() {
        let work = |n: u64| Work::plain(&format!("fault-{round}-{n}"), "all", 50, 50);
        let stopped = branch.until_the_server_ends(failing(nth, what, how), 100, work);
        let told = format!("the server under its {nth}th {what} failing {how}");
        assert!(stopped, "{told}: it never stopped");
        stops += 1;
        branch.then_all_is_well(&told);
    }
    assert_eq!(stops, faults.len());
    branch.accounts_agree("the server under failing writes and syncs");
}

/// A file system of 4 MB, for as long as the value lives. Mounting needs root: without it the test fails.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(folder: &Path) -> SmallDisk {
        std::fs::create_dir_all(folder).expect("a mount point");
        let disk = SmallDisk(folder.to_path_buf());
        disk.mount(&["-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs"]);
        disk
    }

    /// More room, as an administrator would make it.
    fn grow(&self) {
        self.mount(&["-o", "remount,size=256m"]);
    }

    fn mount(&self, args: &[&str]) {
        let mounted = Command::new("mount").args(args).arg(&self.0).output().expect("mount is there");
        let why = String::from_utf8_lossy(&mounted.stderr).into_owned();
        assert!(mounted.status.success(), "a full disk can only be made by root: {why}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_server_on_a_full_disk_stops_or_refuses_and_with_room_again_nothing_is_lost() {
    let _alone = alone();
    let mut branch = Disturbed::start();
    branch.plant.process("hq").hold_down();
    // The server's whole folder moves onto the small disk, under its own name.
    let home = branch.plant.node_state("hq");
    let aside = home.with_extension("aside");
    std::fs::rename(&home, &aside).expect("the server's folder");
    let disk = SmallDisk::at(&home);
    let copied = Command::new("cp").arg("-a").arg(aside.join(".")).arg(&home).status().expect("cp is there");
    assert!(copied.success());
    // Some 60 kB from each device: the disk is full after a few jobs.
    let work = |n: u64| Work {
        then: "head -c 60000 /dev/zero | tr '\\0' x".into(),
        ..Work::plain(&format!("fills-{n}"), "all", 0, 0)
    };
    let stopped = branch.until_the_server_ends(vec![], 150, work);
    let refused = branch.done.ordered.len() - branch.answered();
    assert!(stopped || refused > 0, "4 MB were never full\n{}", branch.plant.logs());
    until("it says why", 60, || {
        let lines = branch.plant.log_lines("hq", &["full"]);
        if lines.is_empty() { Err(branch.plant.logs()) } else { Ok(()) }
    });
    disk.grow();
    branch.then_all_is_well("the server on 4 MB");
    branch.accounts_agree("the server on 4 MB");
    drop(disk);
}
