//! What happened, in order: hashed always, printed with `--replay`.

use branchline_protocol::hash::Hash;
use std::fmt::{self, Write};

/// Bytes that gather before they are hashed.
const CHUNK: usize = 32 << 10;

/// See the module.
pub struct Log {
    buffer: String,
    hash: Hash,
    print: bool,
}

impl Log {
    /// An empty log, printed as it grows or not.
    pub fn new(print: bool) -> Log {
        Log { buffer: String::with_capacity(CHUNK + 4096), hash: Hash::ZERO, print }
    }

    /// One event at a virtual millisecond.
    pub fn note(&mut self, at: u64, what: fmt::Arguments<'_>) {
        let from = self.buffer.len();
        let _ = writeln!(self.buffer, "{at:>9} {what}");
        if self.print {
            print!("{}", &self.buffer[from..]);
        }
        if self.buffer.len() >= CHUNK {
            self.fold();
        }
    }

    /// Bytes that count without being readable.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.fold();
        self.hash = Hash::of_parts(&[&self.hash.0, bytes]);
    }

    /// The digest of everything so far.
    pub fn digest(&mut self) -> Hash {
        self.fold();
        self.hash
    }

    fn fold(&mut self) {
        self.hash = Hash::of_parts(&[&self.hash.0, self.buffer.as_bytes()]);
        self.buffer.clear();
    }
}
