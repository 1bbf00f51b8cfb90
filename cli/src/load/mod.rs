//! `load`: what a tree does under load, measured on real processes.
//!
//! ```text
//! topology ──► up's Sequence: server, gateway, relay ──► host: one process, many whole agents ──► fanout | links | storm | inventory
//!              or, with several relays: branches ──► branch: one process, a relay and its agents ─────┤
//!                                                                                                   │
//!              processes (/proc) and nodes' own figures (/metrics) before and after ──► Snapshot ───┴──► Figures
//! ```
//!
//! Agents differ from real ones only in their platform: keys, TLS, verification and journal are theirs.

mod bench;
mod branch;
mod branches;
mod control;
mod drill;
mod fanout;
mod figures;
pub mod host;
mod inventory;
mod leader;
pub(crate) mod line;
mod links;
mod process;
mod reference;
mod reuse;
mod snapshot;
mod storm;

pub use drill::RATE_MAX;

use crate::{
    answer::Answer,
    context::STATES_FOLDER,
    failure::{Failure, exit_code},
    topology::{self, Plan},
    up::{Interrupt, fleet::Fleet, say, sequence::Sequence, state::State},
    verbs::load::{Args, Below, Mode},
};
use bench::Bench;
use branches::EACH_MAX;
use branchline_node::time::SystemClock;
use branchline_protocol::id::Role;
use figures::Figures;
use reference::Reference;
use reuse::Made;
use std::{
    path::{Path, PathBuf},
    rc::Rc,
};

/// Threads of a process in which a relay lives with agents, as many as may wait for its disk included.
const THREADS_PER_RELAY: u64 = 32;
/// Agents that one entry of a topology may stand for.
const ENTRY_MAX: u32 = 1_000;
/// Threads of everything else.
const THREADS: u64 = 2_000;

/// Carries the measurement out in processes that end with it.
pub fn run(args: &Args, exe: &Path) -> Result<Answer, Failure> {
    check(args, threads_max())?;
    let (folder, kept) = folder(args)?;
    let plan = Rc::new(plan(args)?);
    // Its own folder stands for the folder of states, so that a living `up` stays the current one.
    let state = Rc::new(State::open(&folder, &folder)?);
    let (name, made) = Made::of(args).mark();
    state.write(&folder.join(name), &made)?;
    let reference = args.reference.then(|| Reference::measure(args, &folder)).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::ended("no_runtime", format!("cannot start: {e}")))?;
    let local = tokio::task::LocalSet::new();
    let outcome = runtime.block_on(local.run_until(live(args, plan, state, exe)));
    runtime.shutdown_background();
    let figures = outcome.inspect_err(|_| say::line(&format!("logs are in {}", folder.join("logs").display())))?;
    if !kept && let Err(e) = std::fs::remove_dir_all(&folder) {
        say::line(&format!("{} stays: {e}", folder.display()));
    }
    let exit = if figures.is_whole() { exit_code::DONE } else { exit_code::ENDED_BADLY };
    let (mut json, mut text) = (figures.json(), figures.text());
    if args.line().is_some() {
        json["branch_line"] = args.line().json();
        text = args.line().text() + &text;
    }
    if let Some(reference) = reference {
        text += &reference.text(args.mode, &json);
        reference.put(args.mode, &mut json);
    }
    Ok(Answer { json, text, exit })
}

/// What cannot be measured is told before anything is started.
fn check(args: &Args, threads_max: u64) -> Result<(), Failure> {
    let agents_max = agents_max(args.mode);
    for (field, number, max) in [("relays", args.relays, EACH_MAX), ("agents", args.agents, agents_max)] {
        if !(1..=max).contains(&number) {
            let message =
                format!("--{field} {number}: a tree has 1 to {EACH_MAX} relays with 1 to {agents_max} agents each");
            return Err(Failure::wrong("out_of_range", message).field(field));
        }
    }
    for (field, told) in [("rate", args.rate.is_some()), ("below", args.below.is_some())] {
        if told && args.mode != Mode::Storm {
            return Err(Failure::wrong("not_possible", format!("--{field} is for storm only")).field(field));
        }
    }
    if args.line().is_some() && args.state.is_some() {
        let message = "--state with --branch-line or --late: the nodes would look for that line again when it is gone";
        return Err(Failure::wrong("not_possible", message).field("state"));
    }
    if args.relays != 1 && args.mode != Mode::Fanout {
        let message = format!("--relays {}: only fanout measures a tree with several relays", args.relays);
        return Err(Failure::wrong("not_possible", message).field("relays"));
    }
    if args.reference && args.relays != 1 {
        let message =
            "--reference with several relays: that many bare connections are more than one process has files for";
        return Err(Failure::wrong("not_possible", message).field("reference"));
    }
    let threads = THREADS + THREADS_PER_RELAY * u64::from(args.relays);
    let threads = threads + if args.volatile_agents { 0 } else { u64::from(args.devices()) };
    if threads > threads_max {
        let message = format!(
            "--relays {} --agents {}: each agent's journal takes a thread, {threads} threads in all, and this system allows \
             {threads_max} (kernel.pid_max); raise that, or say --volatile-agents",
            args.relays, args.agents
        );
        return Err(Failure::wrong("not_possible", message).field("agents"));
    }
    Ok(())
}

/// Agents below one parent: as many as it holds by itself, and more where a measurement asks for its slots to be raised.
fn agents_max(mode: Mode) -> u32 {
    match mode {
        Mode::Fanout => EACH_MAX,
        Mode::Links => links::AGENTS_MAX,
        Mode::Storm => storm::AGENTS_MAX,
        Mode::Inventory => inventory::AGENTS_MAX,
    }
}

/// Threads of all processes; a system that tells nothing is not asked for less.
fn threads_max() -> u64 {
    let told = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|text| text.trim().parse().ok());
    told.unwrap_or(u64::MAX)
}

/// The state folder, and whether it stays.
fn folder(args: &Args) -> Result<(PathBuf, bool), Failure> {
    let (folder, kept) = match &args.state {
        Some(folder) => (folder.clone(), true),
        None => (Path::new(STATES_FOLDER).join(format!("load-{}", std::process::id())), false),
    };
    Made::of(args).fits(&folder).map(|folder| (folder, kept))
}

/// The plan of the measured tree. The agents of several relays are not in it: they are no processes.
fn plan(args: &Args) -> Result<Plan, Failure> {
    let mut plan = topology::read(&text(args).parse().expect("a literal topology"))?;
    if args.relays > 1 {
        plan.nodes.retain(|node| node.role != Role::Agent);
    }
    Ok(plan)
}

/// The measured tree. A relay's agents show what a link costs the relay; agents that dial the gateway, what one costs
/// gateway and server.
fn text(args: &Args) -> String {
    let some = |prefix: &str, count: u32, site: &str, parent: &str| {
        format!("[[agents]]\nprefix = '{prefix}'\ncount = {count}\nsite = '{site}'\nparent = '{parent}'\n")
    };
    let agents = |prefix: &str, site: &str, parent: &str| match args.agents {
        count @ ..=ENTRY_MAX => some(prefix, count, site, parent),
        count => (0..count.div_ceil(ENTRY_MAX))
            .map(|n| some(&format!("{prefix}{n}"), ENTRY_MAX.min(count - n * ENTRY_MAX), site, parent))
            .collect(),
    };
    let pcs = |names: &[String]| agents("pc", &names[0], &names[0]);
    let roaming = || agents("roam", "roaming", "dmz");
    let [of_server, of_relay] = [Role::Server, Role::Relay].map(|role| parent_keys(args, role));
    // A site each: agents may go to any relay of theirs.
    let relay = |name: &str| format!("[[relay]]\nname = '{name}'\nsite = '{name}'\nparent = 'dmz'\n{of_relay}");
    let names: Vec<String> = match args.relays {
        1 => vec!["branch".into()],
        relays => (1..=relays).map(|n| format!("branch-{n}")).collect(),
    };
    let devices = match (args.mode, args.below) {
        (Mode::Links, _) => pcs(&names) + &roaming(),
        (Mode::Storm, Some(Below::Gateway)) => roaming(),
        _ => pcs(&names),
    };
    let sites: String = names.iter().map(|name| format!("'{name}', ")).collect();
    format!("[topology]\nname = 'load'\n[[tenant]]\nname = 'main'\nsites = [{sites}'roaming']\n")
        + "[server]\nname = 'hq'\naccept_from = 'gateway'\n"
        + &of_server
        + "[[gateway]]\nname = 'dmz'\n"
        + &names.iter().map(|name| relay(name)).collect::<String>()
        + &devices
        + "[job]\nargv = ['true']\n"
}

/// Keys for a parent that is measured beyond its usual bounds, as an administrator raises them: room for more than 300
/// links, and no bound to how many come a second.
fn parent_keys(args: &Args, of: Role) -> String {
    let measured = match (args.mode, args.below) {
        (Mode::Fanout, _) => false,
        (Mode::Links, _) => args.agents > EACH_MAX,
        (Mode::Storm | Mode::Inventory, Some(Below::Gateway)) => of == Role::Server,
        (Mode::Storm | Mode::Inventory, _) => of == Role::Relay,
    };
    if !measured {
        return String::new();
    }
    let slots = match args.agents {
        ..=EACH_MAX => String::new(),
        more => format!("slots = {more}\nallow_above_300 = true\n"),
    };
    slots + "links_per_second = 100000\nlinks_burst = 1000000\n"
}

async fn live(args: &Args, plan: Rc<Plan>, state: Rc<State>, exe: &Path) -> Result<Figures, Failure> {
    let fleet = Fleet::new(plan.clone());
    let mut end = Interrupt::listen()?;
    let clock = SystemClock::shared();
    let sequence = Sequence::new(plan.clone(), state.clone(), fleet.clone(), exe, clock, args.limit());
    let sequence = sequence.by_line(args.line());
    let measured = async {
        let mut bench = Bench::start(plan.clone(), state, fleet.clone(), sequence, exe, args.spared()).await?;
        let figures = match args.mode {
            Mode::Fanout => fanout::measure(&mut bench, args).await?,
            Mode::Links => links::measure(&mut bench, args).await?,
            Mode::Storm => storm::measure(&mut bench, args).await?,
            Mode::Inventory => inventory::measure(&mut bench, args).await?,
        };
        bench.still_the_same()?;
        Ok(figures)
    };
    let outcome = tokio::select! {
        outcome = measured => outcome,
        () = end.wait() => Err(Failure::ended("interrupted", "ended by the operator before it was measured")),
    };
    if args.relays > 1 {
        branches::stop(&plan, &fleet).await;
    }
    fleet.stop_all().await;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Verb};
    use clap::Parser;
    use std::collections::BTreeSet;

    fn args(more: &[&str]) -> Args {
        let line = ["branchline", "load", "--mode"].into_iter().chain(more.iter().copied());
        match Cli::try_parse_from(line).unwrap().verb {
            Verb::Load(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_line_is_for_one_run_alone() {
        for (more, good) in [(&["--late", "5%:50ms"][..], true), (&["--branch-line", "10mbit", "--state", "x"], false)]
        {
            let args = args(&[&["fanout"], more].concat());
            assert_eq!(check(&args, u64::MAX).is_ok(), good, "{more:?}");
        }
        let spared = args(&["fanout", "--unverified-agents"]).spared();
        assert_eq!((spared.verification, spared.journal), (true, false));
        let spared = args(&["fanout", "--volatile-agents"]).spared();
        assert_eq!((spared.verification, spared.journal), (false, true));
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
    fn a_storm_and_an_inventory_have_a_parent_with_room_for_them() {
        let of = |line: &[&str], parent: &str| {
            let plan = plan(&args(line)).unwrap();
            let node = plan.node(parent).unwrap();
            let agents = plan.of(Role::Agent).filter(|a| a.name.len() <= 15).count();
            (agents, u32::from(node.slots), node.link_rate.per_second)
        };
        assert_eq!(of(&["storm", "--agents", "3000"], "branch"), (3_000, 3_000, 100_000));
        assert_eq!(of(&["storm", "--agents", "300"], "branch"), (300, 300, 100_000));
        assert_eq!(of(&["storm", "--agents", "2001", "--below", "gateway"], "hq"), (2_001, 2_001, 100_000));
        assert_eq!(of(&["storm", "--agents", "301", "--below", "gateway"], "branch"), (301, 300, 150));
        assert_eq!(of(&["inventory", "--agents", "1000"], "branch"), (1_000, 1_000, 100_000));
        assert_eq!(of(&["links", "--agents", "2000"], "branch"), (4_000, 2_000, 100_000), "as many below each");
        assert_eq!(of(&["links", "--agents", "2000"], "hq"), (4_000, 2_000, 100_000));
        assert_eq!(of(&["links"], "branch"), (600, 300, 150));
        assert_eq!(of(&["fanout"], "branch"), (300, 300, 150), "others are measured as they are shipped");
    }

    #[test]
    fn each_mode_has_its_bound_and_its_own_options() {
        for (mode, max) in [("fanout", 300), ("links", 3_000), ("storm", 3_000), ("inventory", 1_000)] {
            let told = |agents: u32| check(&args(&[mode, "--agents", &agents.to_string()]), 32_768);
            assert!(told(max).is_ok(), "{mode} {max}");
            let failure = told(max + 1).unwrap_err();
            assert_eq!((failure.code.as_str(), failure.field.as_deref()), ("out_of_range", Some("agents")), "{mode}");
        }
        for option in [["--rate", "5"], ["--below", "relay"]] {
            let told = |mode| check(&args(&[mode, option[0], option[1]]), 32_768);
            assert!(told("storm").is_ok());
            assert_eq!(told("inventory").unwrap_err().field.as_deref(), Some(&option[0][2..]));
        }
        for (rate, good) in [("0", false), ("1", true), ("100000", true), ("100001", false)] {
            let line = ["branchline", "load", "--mode", "storm", "--rate", rate];
            assert_eq!(Cli::try_parse_from(line).is_ok(), good, "{rate}");
        }
    }

    #[test]
    fn a_reference_is_for_what_one_process_can_hold() {
        for (line, good) in [
            (&["fanout", "--reference"][..], true),
            (&["storm", "--reference"], true),
            (&["links", "--reference"], true),
            (&["inventory", "--reference"], true),
            (&["fanout", "--relays", "2", "--reference"], false),
        ] {
            let checked = check(&args(line), u64::MAX);
            let field = checked.as_ref().map_err(|f| f.field.as_deref());
            assert_eq!(field, if good { Ok(&()) } else { Err(Some("reference")) }, "{line:?}");
        }
    }

    #[test]
    fn several_relays_are_planned_without_their_agents() {
        for relays in [2, 300] {
            let plan = plan(&args(&["fanout", "--relays", &relays.to_string()])).unwrap();
            assert_eq!((plan.of(Role::Relay).count(), plan.of(Role::Agent).count()), (relays, 0));
            let last = plan.node(&format!("branch-{relays}")).unwrap();
            assert_eq!(last.path, ["dmz"]);
            let sites: BTreeSet<_> = plan.of(Role::Relay).map(|relay| relay.site.as_deref()).collect();
            assert_eq!(sites.len(), relays, "agents may go to any relay of their site");
        }
        assert_eq!(plan(&args(&["fanout"])).unwrap().of(Role::Agent).count(), 300);
    }

    #[test]
    fn relays_and_agents_at_the_bounds_pass_and_one_past_them_do_not() {
        for field in ["relays", "agents"] {
            for (number, good) in [("0", false), ("1", true), ("300", true), ("301", false)] {
                let checked = check(&args(&["fanout", "--volatile-agents", &format!("--{field}"), number]), 32_768);
                assert_eq!(
                    checked.as_ref().map_err(|f| f.field.as_deref()),
                    if good { Ok(&()) } else { Err(Some(field)) }
                );
            }
        }
        let failure = check(&args(&["links", "--relays", "2"]), 32_768).unwrap_err();
        assert_eq!((failure.exit, failure.field.as_deref()), (2, Some("relays")));
    }

    #[test]
    fn journals_on_disk_take_no_more_threads_than_there_are() {
        let tree = ["fanout", "--relays", "10", "--agents", "100"];
        let needed = THREADS + 10 * THREADS_PER_RELAY + 1_000;
        assert!(check(&args(&tree), needed).is_ok());
        let failure = check(&args(&tree), needed - 1).unwrap_err();
        assert_eq!((failure.exit, failure.field.as_deref()), (2, Some("agents")));
        assert!(failure.message.contains("--volatile-agents"), "{failure}");
        assert!(check(&args(&[&tree[..], &["--volatile-agents"]].concat()), needed - 1_000).is_ok());
    }

    #[test]
    fn the_time_for_the_set_up_grows_with_the_tree_unless_it_is_told() {
        assert_eq!(args(&["fanout", "--agents", "10"]).limit().as_secs(), 301);
        assert_eq!(args(&["fanout", "--relays", "300"]).limit().as_secs(), 300 + 9_000);
        assert_eq!(args(&["fanout", "--timeout", "7s"]).limit().as_secs(), 7);
    }
}
