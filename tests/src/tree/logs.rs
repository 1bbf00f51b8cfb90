//! What every node of this process logs, at any level, so that a scenario can follow a trace or search for secrets.
//! One subscriber for the whole test binary: scenarios run side by side and tell their lines apart by ids.

use std::{
    collections::VecDeque,
    fmt::Write,
    sync::{Mutex, Once},
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt};

/// The oldest lines go first.
const LINES_MAX: usize = 300_000;

static LINES: Mutex<VecDeque<Line>> = Mutex::new(VecDeque::new());

/// One event.
#[derive(Clone, Debug)]
pub struct Line {
    /// The module that logged it: its first part is the node's crate.
    pub target: String,
    /// How loud.
    pub level: Level,
    /// The message, then ` name=value` for each field.
    pub text: String,
}

/// Begins to keep lines, once per process.
pub fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Keeper);
        tracing::subscriber::set_global_default(subscriber).expect("nothing else of this binary takes the logs");
    });
}

/// The lines kept so far for which `wanted` holds, oldest first.
pub fn lines(wanted: impl Fn(&Line) -> bool) -> Vec<Line> {
    let lines = LINES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    lines.iter().filter(|line| wanted(line)).cloned().collect()
}

/// The lines that hold each of these words.
pub fn lines_with(words: &[&str]) -> Vec<Line> {
    lines(|line| words.iter().all(|word| line.text.contains(word)))
}

struct Keeper;

impl<S: Subscriber> Layer<S> for Keeper {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target().starts_with("branchline")
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut words = Words::default();
        event.record(&mut words);
        let metadata = event.metadata();
        let text = words.message + &words.fields;
        let line = Line { target: metadata.target().to_owned(), level: *metadata.level(), text };
        let mut lines = LINES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
