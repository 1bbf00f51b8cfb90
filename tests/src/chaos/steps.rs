//! Named crash points: a node that kills itself when it logs what it is told to wait for.
//!
//! Only the command under test has this. Beside a node's configuration `NAME.toml` a file `NAME.crash` names events in
//! order, a line each with the words that the event must hold; at the last of them the file is removed and the process
//! gets a SIGKILL from itself, within the very call that logs the event.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{EnvFilter, Layer, fmt, layer::Context, prelude::*};

/// Where a node with this configuration is told its crash point.
pub fn order_of(config: &Path) -> PathBuf {
    config.with_extension("crash")
}

/// Logs as a node of production does, and obeys crash points. `config` is the node's configuration file.
pub fn install(config: &Path) {
    let logged = EnvFilter::try_from_env("BRANCHLINE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_filter(logged);
    let steps = Steps { order: order_of(config), armed: Mutex::default() };
    // Something else has the logs: then nobody arms anything either.
    let _ = tracing_subscriber::registry().with(lines).with(steps).try_init();
}

struct Steps {
    order: PathBuf,
    /// What is still awaited, the next first.
    armed: Mutex<Vec<String>>,
}

impl<S: Subscriber> Layer<S> for Steps {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let ours = metadata.target().starts_with("branchline");
        // Every durable step is told at `debug` at least; what is quieter is told for each byte.
        ours && *metadata.level() <= Level::DEBUG
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        if armed.is_empty() {
            // Not there: as almost always.
            let Ok(text) = std::fs::read_to_string(&self.order) else { return };
            *armed = text.lines().map(String::from).collect();
        }
        let mut seen = Words::default();
        event.record(&mut seen);
        if armed.first().is_some_and(|words| words.split_whitespace().all(|word| seen.0.contains(word))) {
            armed.remove(0);
            if armed.is_empty() {
                end(&self.order);
            }
        }
    }
}

#[allow(unsafe_code)]
fn end(order: &Path) {
    let _ = std::fs::remove_file(order);
    // SAFETY: kill takes two integers; a process may always signal itself, and no line after this one is run.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

/// ` message name=value …`
#[derive(Default)]
struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = write!(self.0, " {}={value}", field.name());
    }
}
