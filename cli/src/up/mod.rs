//! `up`: a whole topology on this machine, each node its own process with its own address in 127.0.0.0/8.
//!
//! ```text
//! topology file ──► Plan ──► Sequence: server, gateways, relays top-down, agents, all online, job ──► Report
//!                              │ starts through                                  rewritten on a restart ▲
//!                              └──► Fleet: one keeper per process (restart, stop) ────────────────────┘
//! ```
//!
//! State lives in one folder, locked by its owner: identities, the CA, tokens and the ports of the first start are
//! found again by the next one. A process is only ever ended through the handle that started it.

pub(crate) mod fleet;
pub(crate) mod generate;
pub(crate) mod ports;
pub(crate) mod process;
mod report;
mod restart;
pub(crate) mod say;
pub(crate) mod sequence;
pub(crate) mod state;

use crate::{
    args::Global,
    context::STATES_FOLDER,
    failure::Failure,
    topology::{self, Plan},
};
use branchline_node::time::SystemClock;
use fleet::Fleet;
use report::Report;
use sequence::Sequence;
use state::State;
use std::{
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Topology file, or a folder with a topology.toml
    pub topology: PathBuf,
    /// Exit once the job is done; 0 only if it succeeded on every device
    #[arg(long)]
    pub once: bool,
    /// Where identities, stores and logs are kept [default: .branchline/NAME]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// How long it may take until the job is done
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = crate::args::duration)]
    pub timeout: Duration,
}

/// Runs it to its end.
pub fn run(args: &Args, global: &Global, exe: &Path) -> i32 {
    let prepared = prepare(args);
    let (plan, state) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => return Report::refused(&failure).print(global.json, failure.exit),
    };
    // One thread starts every process and lives as long as this one: a child is tied to the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => {
            let failure = Failure::ended("no_runtime", format!("cannot start: {e}"));
            return Report::refused(&failure).print(global.json, failure.exit);
        }
    };
    let local = tokio::task::LocalSet::new();
    let code = runtime.block_on(local.run_until(live(args, global.json, plan, state, exe)));
    // A long poll under way in a helper thread must not hold up the exit.
    runtime.shutdown_background();
    code
}

fn prepare(args: &Args) -> Result<(Rc<Plan>, State), Failure> {
    let plan = topology::load(&args.topology)?;
    let states = Path::new(STATES_FOLDER);
    let folder = args.state.clone().unwrap_or_else(|| states.join(&plan.name));
    let state = State::open(&folder, states)?;
    Ok((Rc::new(plan), state))
}

async fn live(args: &Args, json: bool, plan: Rc<Plan>, state: State, exe: &Path) -> i32 {
    let state = Rc::new(state);
    let fleet = Fleet::new(plan.clone());
    let clock = SystemClock::shared();
    let mut end = match Interrupt::listen() {
        Ok(end) => end,
        Err(failure) => return Report::refused(&failure).print(json, failure.exit),
    };
    let mut sequence = Sequence::new(plan.clone(), state.clone(), fleet.clone(), exe, clock, args.timeout);
    let outcome = tokio::select! {
        outcome = sequence.run() => outcome,
        () = end.wait() => Err(Failure::ended("interrupted", "ended by the operator before the job was done").into()),
    };
    let failed = outcome.is_err();
    let mut report = match outcome {
        Ok(done) => Report::done(&plan, &state, done, &fleet.nodes()),
        Err(fault) => Report::failed(&plan, &state, &fault, &fleet.nodes()),
    };
    report.save(&state);
    let code = report.exit();
    if !failed {
        report.print(json, code);
        if !args.once {
            stay(&mut report, &state, &fleet, &mut end).await;
        }
    }
    fleet.stop_all().await;
    if failed {
        report.print(json, code);
    }
    code
}

/// Keeps `up.json` true until the operator ends it.
async fn stay(report: &mut Report, state: &State, fleet: &Fleet, end: &mut Interrupt) {
    say::line("everything runs; end with Ctrl-C");
    let mut changes = fleet.changes();
    loop {
        tokio::select! {
            () = end.wait() => return,
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                report.set_nodes(&fleet.nodes());
                report.save(state);
            }
        }
    }
}

/// The operator's wish to end. Listened for from the start, so that none is missed between two waits.
pub(crate) struct Interrupt([Signal; 3]);

impl Interrupt {
    /// Listens from now on.
    pub(crate) fn listen() -> Result<Interrupt, Failure> {
        let listen =
            |kind| signal(kind).map_err(|e| Failure::ended("no_signals", format!("cannot listen for Ctrl-C: {e}")));
        Ok(Interrupt([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    /// Until the wish comes.
    pub(crate) async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
    }
}

#[cfg(test)]
mod tests;
