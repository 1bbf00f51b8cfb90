//! Counters of one node, rendered for `/metrics`. Nothing global: many nodes share a process.

use metrics::{Counter, Gauge, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A node's own registry. Names start with `branchline_`.
#[derive(Clone)]
pub struct Metrics(Arc<PrometheusRecorder>);

static METADATA: Metadata<'static> = Metadata::new("branchline", Level::INFO, None);

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Metrics(Arc::new(PrometheusBuilder::new().build_recorder()))
    }

    /// The counter of this name and labels; the same handle for the same words.
    pub fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        self.0.register_counter(&key(name, labels), &METADATA)
    }

    /// A counter whose value the node itself can read too, for the tree.
    pub fn counted(&self, name: &'static str, labels: &[(&'static str, &str)]) -> (Counter, Arc<AtomicU64>) {
        let own = Arc::new(AtomicU64::new(0));
        let both = Both { shown: self.counter(name, labels), own: own.clone() };
        (Counter::from_arc(Arc::new(both)), own)
    }

    /// The gauge of this name and labels.
    pub fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.0.register_gauge(&key(name, labels), &METADATA)
    }

    /// The text Prometheus scrapes.
    pub fn render(&self) -> String {
        self.0.handle().render()
    }
}

struct Both {
    shown: Counter,
    own: Arc<AtomicU64>,
}

impl metrics::CounterFn for Both {
    fn increment(&self, value: u64) {
        self.shown.increment(value);
        self.own.fetch_add(value, Ordering::Relaxed);
    }
    fn absolute(&self, value: u64) {
        self.shown.absolute(value);
        self.own.fetch_max(value, Ordering::Relaxed);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    Key::from_parts(name, labels.iter().map(|(k, v)| Label::new(*k, v.to_string())).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_of_one_process_count_apart() {
        let (a, b) = (Metrics::new(), Metrics::new());
        a.counter("branchline_protocol_errors_total", &[]).increment(2);
        b.counter("branchline_protocol_errors_total", &[]).increment(1);
        assert!(a.render().contains("branchline_protocol_errors_total 2"), "{}", a.render());
        assert!(b.render().contains("branchline_protocol_errors_total 1"));
    }
}
