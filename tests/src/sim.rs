//! The simulator (DESIGN 8): one seed drives a whole tree through faults in virtual time, on one thread, without a
//! socket or a real disk. What decides is production code: the cores of server, relay and agent, the driver, the lanes,
//! the admission, the rhythm of dialling, the ledger and the spool; what is replaced is the world around them.
//!
//! - [`world`]: virtual time and the queue of what happens next
//! - [`host`]: machines and processes; [`disk`], [`platter`]: what survives them; [`server_rows`]: the server's store
//! - [`link`], [`gate`]: links and slots; `wires`, `uplinks`: how frames and dials go
//! - [`fault`], `faults`: what goes wrong; [`defect`]: what is wrong on purpose
//! - `desk`, `load`: what administrators do; [`jobs`]: what jobs do to the world
//! - `checks`, `truth`, `views`: what must be true of ends, of single orders, of what `explain` and `tree` show
//!
//! Nodes keep their stores in an exact model of the tables, or, with `engine`, in the real engine over a faulty disk.
//! Every message is encoded and decoded, every order and document really signed and verified at each hop.

mod agents;
pub mod chance;
mod checks;
pub mod clock;
pub mod defect;
mod desk;
pub mod disk;
pub mod fault;
mod faults;
pub mod gate;
pub mod host;
pub mod jobs;
pub mod link;
mod load;
pub mod log;
mod machines;
pub mod place;
pub mod platter;
mod relays;
pub mod report;
mod run;
pub mod server_rows;
mod servers;
mod truth;
mod uplinks;
mod views;
mod wires;
pub mod world;

pub use report::Report;
pub use run::simulate;

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Options {
    /// The one source of everything that happens.
    pub seed: u64,
    /// The run ends once so many faults hit something.
    pub faults: u64,
    /// Print what happens, step by step.
    pub replay: bool,
    /// Stores of relays and agents are the real engine, not its model.
    pub engine: bool,
    /// What is wrong on purpose. Needs the model of the stores.
    pub defect: Option<defect::Defect>,
}

impl Options {
    /// A sound tree, with its stores in the model.
    pub fn new(seed: u64, faults: u64) -> Options {
        Options { seed, faults, replay: false, engine: false, defect: None }
    }
}
