//! The targets' table: what Branchline does beside what others do, on the same machine, in the same run.
//!
//! ```text
//! quiet machine ─► reference (NATS, nginx, HAProxy, Mosquitto, SQLite) ─► product ─► row: both, ratio, target
//! ```
//!
//! Every process is started here and ended by its handle. All traffic stays on loopback.

mod bulk;
mod certs;
mod daemon;
mod machine;
mod mqtt;
mod nats;
mod plan;
mod product;
mod proxy;
mod stats;
mod storage;
mod table;

use plan::Plan;
use std::process::ExitCode;

/// A fault ends the row that met it, with these words in its place.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let plan = match Plan::read(std::env::args().skip(1)) {
        Ok(plan) => plan,
        Err(wrong) => {
            eprintln!("{wrong}\n{}", plan::USAGE);
            return ExitCode::from(2);
        }
    };
    branchline_node::process::allow_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(plan.measure()) {
        Ok(table) => {
            print!("{}", if plan.json { table.json() } else { table.text() });
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
