//! The operator's command: `up` starts a whole topology, `node` runs one node, every other verb is a client of the
//! server's HTTP API. Output and exit codes are the interface that scripts rely on (DESIGN 9).

mod answer;
mod args;
mod client;
mod context;
mod failure;
mod load;
mod session;
mod table;
pub mod topology;
mod up;
mod verbs;

pub use context::Context;
pub use failure::{Failure, exit_code};

use answer::print;
use args::{Cli, Verb};
use clap::Parser;
use session::Session;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Runs the command. `args` start with the program's name; `exe` is this executable, which `up` starts again for every
/// node and an agent for every job. Returns the process's exit code.
pub fn run(args: impl IntoIterator<Item = OsString>, exe: &Path) -> i32 {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(e) => return misused(&e, &args),
    };
    let json = cli.global.json;
    match cli.verb {
        Verb::Up(args) => up::run(&args, &cli.global, exe),
        Verb::Node(args) => verbs::node::run(&args, exe),
        Verb::Shim(args) => verbs::shim::run(&args),
        Verb::Load(args) => verbs::load::run(&args, &cli.global, exe),
        Verb::AgentHost(args) => verbs::agent_host::run(&args, exe),
        Verb::Restore(args) => print(verbs::restore::run(&args), json),
        Verb::Relay(args) => print(verbs::relay::run(args), json),
        verb => print(client_verb(verb, &Session::new(&cli.global)), json),
    }
}

fn client_verb(verb: Verb, session: &Session) -> Result<answer::Answer, Failure> {
    match verb {
        Verb::Devices(args) => verbs::devices::run(&args, session),
        Verb::Device(args) => verbs::device::run(&args, session),
        Verb::Keep(args) => verbs::keep::run(&args, session),
        Verb::Suspend(args) => verbs::suspend::run(&args, true, session),
        Verb::Revive(args) => verbs::suspend::run(&args, false, session),
        Verb::Tree(args) => verbs::tree::run(&args, session),
        Verb::Run(args) => verbs::run::run(&args, session),
        Verb::Restart(args) => verbs::restart::run(&args, session),
        Verb::Job(args) => verbs::job::run(&args, session),
        Verb::Explain(args) => verbs::explain::run(&args, session),
        Verb::Cancel(args) => verbs::cancel::run(&args, session),
        Verb::Reissue(args) => verbs::reissue::run(&args, session),
        Verb::Jobs(args) => verbs::jobs::run(&args, session),
        Verb::Inventory(args) => verbs::inventory::run(&args, session),
        Verb::EnrolToken(args) => verbs::enrol_token::run(&args, session),
        Verb::Bundle(args) => verbs::bundle::run(&args, session),
        Verb::Settings(args) => verbs::settings::run(&args, session),
        Verb::Audit(args) => verbs::audit::run(&args, session),
        Verb::DeadLetters(args) => verbs::audit::dead_letters(&args, session),
        Verb::Revoke(args) => verbs::revoke::run(&args, session),
        Verb::Backup(args) => verbs::backup::run(&args, session),
        Verb::Recovery(args) => verbs::recovery::run(&args, session),
        Verb::Up(_)
        | Verb::Node(_)
        | Verb::Shim(_)
        | Verb::Load(_)
        | Verb::AgentHost(_)
        | Verb::Restore(_)
        | Verb::Relay(_) => {
            unreachable!("these are no clients of the API")
        }
    }
}

/// Help and version are answers; everything else that clap stops at is a wrong request.
fn misused(e: &clap::Error, args: &[OsString]) -> i32 {
    if !e.use_stderr() {
        let _ = e.print();
        return exit_code::DONE;
    }
    // What stands after `--` belongs to the device's command line.
    let json = args.iter().take_while(|a| *a != "--").any(|a| a == "--json");
    if json {
        let text = e.to_string();
        let message = text.trim_start_matches("error: ").trim_end();
        return print(Err(Failure::wrong("bad_usage", message)), true);
    }
    let _ = e.print();
    exit_code::WRONG_REQUEST
}

/// This executable, for [`run`]. Read once at the start: the file may be replaced while the command runs.
pub fn own_executable() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("branchline"))
}
