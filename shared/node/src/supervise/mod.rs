//! Supervision: who restarts whom, and how. Every node is a tree of actors under one [`Supervisor`]; what a child's
//! work is, and how it drains, is the child's own affair and not found here.
//!
//! ```text
//!            owner of the node            awaits Supervision::must_end(), calls Supervision::stop()
//!                   │
//!              Supervisor                 one per node, no statics; a thin shell around Family
//!     ┌─────────────┼───────────────┐
//!   "store"     "dispatcher"     "session" ×n
//!     ▲  child       │ needs store     │ workers of one kind, need store and dispatcher
//!     └──────────────┴─────────────────┘
//! ```
//!
//! A **child** has a name, a factory and needs. Its life, as the parent sees it:
//!
//! ```text
//!   add ──► waiting ──factory──► running ──fault──► waiting (a fresh value, generation + 1, after 0, 100, 200, 400 ms)
//!              ▲                  │ │ │   └──5th fault in 60 s──► parked, or the process has to end
//!              │                  │ │ └──done, stopped, peer gone──► ended
//!              └──ended or cut── stopping ◄── something it needs faulted
//! ```
//!
//! 1. Each value of a child owns an [`ExitGuard`]. However the value goes, the guard's drop reports an [`Exit`].
//! 2. The parent asks the child's [`Intensity`]: restart, leave, park, or end the process.
//! 3. A restart calls the factory for a *fresh* value with a new guard. Neighbours notice nothing. The value has a new
//!    address, so others speak through a [`ChildAddr`], which the factory renews.
//! 4. Children that need the failed one are asked to stop ([`Drain`]), get [`TAKEDOWN_MS`], and are rebuilt after it.
//!    What goes wrong with them on the way is a casualty: counted, but neither against them nor as a first fault.
//! 5. **Workers** come from outside: [`Supervision::adopt`] gives a guard for a session about to begin. They are never
//!    restarted; their other end comes back. A name that faults five times in 60 s is parked and refused.
//! 6. Nothing here ends the process: [`Supervision::must_end`] tells the owner, with an exit code and the first fault.
//!
//! ```ignore
//! let supervision = Supervisor::start(clock, Some(metrics::counter!("branchline_restarts_total")));
//! let store = ChildAddr::new();
//! let renewed = store.clone();
//! supervision.start_child(
//!     ChildSpec::new("store", move |guard| {
//!         let disk = Disk::open(&folder).map_err(|error| error.to_string())?;
//!         renewed.renew(run(guard, |_ctx, guard| Store { guard, disk }));
//!         Ok(())
//!     })
//!     .past(PastIntensity::EndProcess(72)),
//! ).await?;
//! ```
//!
//! Why not `actix::Supervisor`: it reuses the same value after a stop and does nothing after a panic. Panics must unwind
//! (`panic = "unwind"`); `run` says what actix and tokio do with them.

mod address;
mod error;
mod exit;
mod family;
#[cfg(test)]
mod family_tests;
mod guard;
mod intensity;
mod report;
mod run;
mod supervisor;
#[cfg(test)]
mod tests;
mod workers;

pub use address::{ChildAddr, NotReached};
pub use error::{AddError, AdoptError};
pub use exit::{Exit, TEXT_BYTES_MAX};
pub use family::TAKEDOWN_MS;
pub use guard::{ExitGuard, Generation};
pub use intensity::{Fault, Intensity, Limit, OnFault, PastIntensity, Verdict};
pub use report::{ChildLife, ChildState, NodeEnd, Snapshot, StopReport, WorkersState};
pub use run::{Drain, run, run_in};
pub use supervisor::{ChildSpec, EXIT_CODE_LOST, Factory, SuperviseError, Supervision, Supervisor, WorkerSpec};
pub use workers::{REMEMBERED_MAX, WorkerLimits};
