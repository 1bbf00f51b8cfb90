//! `load`: what a tree does under load, measured on real processes.
//!
//! ```text
//! topology ──► up's Sequence: server, gateway, relay ──► host: one process, many whole agents ──► fanout | links
//!                                                                                                   │
//!              processes (/proc) and nodes' own figures (/metrics) before and after ──► Snapshot ───┴──► Figures
//! ```
//!
//! Agents differ from real ones only in their platform: keys, TLS, verification and journal are theirs.

mod bench;
mod control;
mod fanout;
mod figures;
pub mod host;
mod links;
mod process;
mod snapshot;

use crate::{
    answer::Answer,
    context::STATES_FOLDER,
    failure::{Failure, exit_code},
    topology::{self, Plan},
    up::{Interrupt, fleet::Fleet, say, sequence::Sequence, state::State},
    verbs::load::{Args, Mode},
};
use bench::Bench;
use branchline_node::{config::SLOTS_DEFAULT, time::SystemClock};
use figures::Figures;
use std::{
    path::{Path, PathBuf},
    rc::Rc,
};

/// Carries the measurement out in processes that end with it.
pub fn run(args: &Args, exe: &Path) -> Result<Answer, Failure> {
    check(args)?;
    let (folder, kept) = folder(args)?;
    let plan: Rc<Plan> = Rc::new(topology::read(&text(args).parse().expect("a literal topology"))?);
    // Its own folder stands for the folder of states, so that a living `up` stays the current one.
    let state = Rc::new(State::open(&folder, &folder)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::ended("no_runtime", format!("cannot start: {e}")))?;
    let local = tokio::task::LocalSet::new();
    let outcome = runtime.block_on(local.run_until(live(args, plan, state, exe)));
    runtime.shutdown_background();
    let figures = outcome.inspect_err(|_| say::line(&format!("logs are in {}", folder.join("logs").display())))?;
    if !kept && let Err(e) = std::fs::remove_dir_all(&folder) {
        say::line(&format!("{} stays: {e}", folder.display()));
    }
    let exit = if figures.missing == 0 { exit_code::DONE } else { exit_code::ENDED_BADLY };
    Ok(Answer { json: figures.json(), text: figures.text(), exit })
}

/// What this build cannot measure is told before anything is started.
fn check(args: &Args) -> Result<(), Failure> {
    if args.relays != 1 {
        let message = format!("--relays {}: this build measures a tree with one relay; say --relays 1", args.relays);
        return Err(Failure::wrong("not_possible", message).field("relays"));
    }
    if !(1..=u32::from(SLOTS_DEFAULT)).contains(&args.agents) {
        let message = format!("--agents {}: a relay holds 1 to {SLOTS_DEFAULT} persistent links", args.agents);
        return Err(Failure::wrong("out_of_range", message).field("agents"));
    }
    Ok(())
}

/// The state folder, and whether it stays. A used one would hold devices that are not there now.
fn folder(args: &Args) -> Result<(PathBuf, bool), Failure> {
    let (folder, kept) = match &args.state {
        Some(folder) => (folder.clone(), true),
        None => (Path::new(STATES_FOLDER).join(format!("load-{}", std::process::id())), false),
    };
    match std::fs::read_dir(&folder).map(|mut entries| entries.next().is_some()) {
        Ok(true) => {
            let message = format!("{} is not empty: each measurement starts from nothing", folder.display());
            Err(Failure::wrong("state_not_empty", message).field("state"))
        }
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            let message = format!("cannot use the state folder {}: {e}", folder.display());
            Err(Failure::wrong("bad_state", message).field("state"))
        }
        _ => std::path::absolute(&folder).map(|folder| (folder, kept)).map_err(|e| {
            Failure::wrong("bad_state", format!("cannot use the state folder {}: {e}", folder.display())).field("state")
        }),
    }
}

/// The measured tree. A relay's agents show what a link costs the relay; agents that dial the gateway, what one costs
/// gateway and server.
fn text(args: &Args) -> String {
    let agents = |prefix: &str, site: &str, parent: &str| {
        let count = args.agents;
        format!("[[agents]]\nprefix = '{prefix}'\ncount = {count}\nsite = '{site}'\nparent = '{parent}'\n")
    };
    let roaming = match args.mode {
        Mode::Fanout => String::new(),
        Mode::Links => agents("roam", "roaming", "dmz"),
    };
    "[topology]\nname = 'load'\n[[tenant]]\nname = 'main'\nsites = ['branch', 'roaming']\n\
     [server]\nname = 'hq'\naccept_from = 'gateway'\n[[gateway]]\nname = 'dmz'\n\
     [[relay]]\nname = 'branch'\nsite = 'branch'\nparent = 'dmz'\n"
        .to_string()
        + &agents("pc", "branch", "branch")
        + &roaming
        + "[job]\nargv = ['true']\n"
}

async fn live(args: &Args, plan: Rc<Plan>, state: Rc<State>, exe: &Path) -> Result<Figures, Failure> {
    let fleet = Fleet::new(plan.clone());
    let mut end = Interrupt::listen()?;
    let clock = SystemClock::shared();
    let sequence = Sequence::new(plan.clone(), state.clone(), fleet.clone(), exe, clock, args.timeout);
    let measured = async {
        let mut bench = Bench::start(plan, state, fleet.clone(), sequence, exe, args.spared()).await?;
        let figures = match args.mode {
            Mode::Fanout => fanout::measure(&mut bench, args).await?,
            Mode::Links => links::measure(&mut bench, args).await?,
        };
        bench.still_the_same()?;
        Ok(figures)
    };
    let outcome = tokio::select! {
        outcome = measured => outcome,
        () = end.wait() => Err(Failure::ended("interrupted", "ended by the operator before it was measured")),
    };
    fleet.stop_all().await;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Verb};
    use branchline_protocol::id::Role;
    use clap::Parser;

    fn args(more: &[&str]) -> Args {
        let line = ["branchline", "load", "--mode"].into_iter().chain(more.iter().copied());
        match Cli::try_parse_from(line).unwrap().verb {
            Verb::Load(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_measured_trees_are_topologies() {
        for (mode, agents) in [("fanout", 300), ("links", 600)] {
            let plan = topology::read(&text(&args(&[mode])).parse().unwrap()).unwrap();
            assert_eq!(plan.of(Role::Agent).count(), agents, "{mode}");
            assert_eq!(plan.node("pc-300").unwrap().path, ["dmz", "branch"]);
        }
    }

    #[test]
    fn agents_at_the_bounds_pass_and_one_past_them_do_not() {
        for (agents, good) in [("0", false), ("1", true), ("300", true), ("301", false)] {
            let checked = check(&args(&["links", "--agents", agents]));
            assert_eq!(checked.is_ok(), good, "{agents}");
        }
        let failure = check(&args(&["fanout", "--relays", "2"])).unwrap_err();
        assert_eq!((failure.exit, failure.field.as_deref()), (2, Some("relays")));
    }

    #[test]
    fn a_used_state_folder_is_refused() {
        let used = tempfile::tempdir().unwrap();
        let state = used.path().to_str().unwrap();
        assert!(folder(&args(&["links", "--state", state])).is_ok());
        std::fs::write(used.path().join("x"), "").unwrap();
        assert_eq!(folder(&args(&["links", "--state", state])).unwrap_err().code, "state_not_empty");
    }
}
