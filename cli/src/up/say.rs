//! What `up` tells on stderr while it works: a bar on a terminal, lines otherwise.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// One line.
pub fn line(text: &str) {
    eprintln!("branchline: {text}");
}

/// Progress towards a number of things.
pub struct Steps {
    what: &'static str,
    of: u64,
    /// `None` when stderr is no terminal.
    bar: Option<ProgressBar>,
    last: Option<u64>,
}

impl Steps {
    /// `what`, e.g. "devices online", up to `of`.
    pub fn new(what: &'static str, of: u64) -> Steps {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}").expect("a literal template");
        let terminal = std::io::stderr().is_terminal();
        let bar = terminal.then(|| ProgressBar::new(of).with_style(style).with_message(what));
        Steps { what, of, bar, last: None }
    }

    /// How many there are.
    pub fn at(&mut self, n: u64) {
        match &self.bar {
            Some(bar) => bar.set_position(n),
            None if self.last != Some(n) => line(&format!("{} {n}/{}", self.what, self.of)),
            None => {}
        }
        self.last = Some(n);
        if n >= self.of
            && let Some(bar) = &self.bar
        {
            bar.finish_and_clear();
        }
    }
}
