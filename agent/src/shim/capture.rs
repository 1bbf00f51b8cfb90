//! The first bytes of a pipe, kept in a file; the rest is read and dropped, so that the writer never stalls.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

/// One output of the program.
pub(super) struct Capture {
    shared: Arc<Mutex<Kept>>,
}

struct Kept {
    file: File,
    bytes: u64,
    truncated: bool,
    /// Set when the job is over: a child left in the background may go on writing, nobody keeps it.
    closed: bool,
}

impl Kept {
    fn take(&mut self, chunk: &[u8], cap: u64) {
        if self.closed {
            return;
        }
        let room = usize::try_from(cap.saturating_sub(self.bytes)).unwrap_or(usize::MAX);
        let (kept, rest) = chunk.split_at(room.min(chunk.len()));
        self.truncated |= !rest.is_empty();
        // A disk without room ends the keeping, not the program. What a failed write left behind is not counted.
        if !kept.is_empty() {
            match self.file.write_all(kept) {
                Ok(()) => self.bytes += kept.len() as u64,
                Err(_) => {
                    self.truncated = true;
                    self.closed = true;
                }
            }
        }
    }
}

impl Capture {
    /// Makes the file, before anything is started.
    pub fn create(path: &Path) -> io::Result<Capture> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Capture { shared: Arc::new(Mutex::new(Kept { file, bytes: 0, truncated: false, closed: false })) })
    }

    /// Reads the pipe to its end on a thread of its own, then calls `at_end`.
    pub fn read(
        &self,
        mut pipe: impl Read + Send + 'static,
        cap: u64,
        at_end: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let shared = self.shared.clone();
        let reader = move || {
            let mut buffer = vec![0; 65_536];
            loop {
                match pipe.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => lock(&shared).take(&buffer[..n], cap),
                    Err(fault) if fault.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => {
                        lock(&shared).truncated = true;
                        break;
                    }
                }
            }
            at_end();
        };
        thread::Builder::new().name("capture".to_owned()).spawn(reader).map(drop)
    }

    /// Ends the keeping; (bytes in the file, whether there was more). The file is on the disk unless that failed, which
    /// counts as nothing kept.
    pub fn finish(&self) -> (u64, bool) {
        let mut kept = lock(&self.shared);
        kept.closed = true;
        match kept.file.sync_all() {
            Ok(()) => (kept.bytes, kept.truncated),
            Err(_) => (0, true),
        }
    }
}

fn lock(shared: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    // Whole after every statement: a panicking reader leaves nothing half done.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn job_9_the_cap_is_exact() {
        for (written, kept, truncated) in [(0, 0, false), (99_999, 99_999, false), (100_000, 100_000, false)]
            .into_iter()
            .chain([(100_001, 100_000, true), (300_000, 100_000, true)])
        {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("stdout");
            let capture = Capture::create(&path).unwrap();
            let (sender, ended) = mpsc::channel();
            let text: Vec<u8> = (0..written).map(|n| (n % 251) as u8).collect();
            capture.read(io::Cursor::new(text.clone()), 100_000, move || sender.send(()).unwrap()).unwrap();
            ended.recv().unwrap();
            assert_eq!(capture.finish(), (kept, truncated));
            assert_eq!(std::fs::read(&path).unwrap(), text[..kept as usize]);
        }
    }
}
