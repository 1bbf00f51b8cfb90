//! Real processes under faults. `./test.sh --long` sets `BRANCHLINE_LONG`, which makes the runs ten times as long.

mod crash_points;
mod datagrams;
mod disk;
mod laptop;
mod measured;
mod mix;
mod slots;

use branchline_tests::chaos::{Accounts, Done, Plant};
use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

fn exe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_branchline-under-test"))
}

/// How many times as much is done as in an ordinary run.
fn times() -> u64 {
    if std::env::var_os("BRANCHLINE_LONG").is_some() { 10 } else { 1 }
}

/// One plant at a time: side by side they would measure the machine.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server, a gateway, relays (name, parent) and agents (prefix, count, parent), links accepted from gateways only. Each
/// agent's site bears the name of its parent, so that it has no other one.
fn topology(relays: &[(&str, &str)], agents: &[(&str, usize, &str)]) -> String {
    let sites: Vec<String> = agents.iter().map(|(_, _, parent)| format!("'{parent}'")).collect();
    let mut text = format!(
        "[topology]\nname = 'chaos'\n[[tenant]]\nname = 'main'\nsites = ['relays', {}]\n\
         [server]\nname = 'hq'\naccept_from = 'gateway'\n[[gateway]]\nname = 'dmz'\n",
        sites.join(", ")
    );
    for (name, parent) in relays {
        text += &format!("[[relay]]\nname = '{name}'\nsite = 'relays'\nparent = '{parent}'\n");
    }
    for (prefix, count, parent) in agents {
        text += &format!("[[agents]]\nprefix = '{prefix}'\ncount = {count}\nsite = '{parent}'\nparent = '{parent}'\n");
    }
    text + "[job]\nargv = ['true']\n"
}

/// A folder for the lines that jobs leave.
fn effects(plant: &Plant) -> PathBuf {
    let folder = plant.folder().join("effects");
    std::fs::create_dir_all(&folder).expect("a folder for effects");
    folder
}

/// Ends the processes and reads what everybody has. Panics, with everything that is known, unless all of it agrees.
fn accounts(plant: &mut Plant, done: &Done, effects: &Path, more: &str) -> Accounts {
    let unordered = plant.unordered_ends();
    plant.stop();
    let found = branchline_tests::chaos::accounts::read(plant, done, effects);
    let Accounts { pairs, lost, doubled, wrong, .. } = &found;
    let agree = lost.is_empty() && doubled.is_empty() && wrong.is_empty() && unordered.is_empty();
    assert!(
        agree,
        "{more}\nof {} pairs: lost {lost:#?}\ndoubled {doubled:#?}\nwrong {wrong:#?}\nended by themselves {unordered:#?}",
        pairs.len()
    );
    found
}
