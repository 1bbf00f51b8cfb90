//! A disk in memory that can lose what was not synced, fail, fill up, and keep a sync waiting.

use redb::StorageBackend;
use std::{
    io,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    synced: Vec<u8>,
    /// Written since the last sync: from, length.
    dirty: Vec<(usize, usize)>,
    syncs: u64,
    writes: u64,
    set_lens: u64,
    /// The call of this kind with this number fails.
    failing: Option<(Call, u64)>,
    capacity: Option<usize>,
    bytes_read: usize,
    /// Syncs wait while this is set.
    held: bool,
    /// How many wait.
    waiting: usize,
}

/// What can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// Half of the bytes are written.
    Write,
    Sync,
    SetLen,
}

impl State {
    /// Counts a call; whether it fails.
    fn fails(&mut self, call: Call) -> bool {
        let count = match call {
            Call::Write => &mut self.writes,
            Call::Sync => &mut self.syncs,
            Call::SetLen => &mut self.set_lens,
        };
        *count += 1;
        self.failing.is_some_and(|(which, nth)| which == call && *count == nth)
    }
}

impl Disk {
    /// What a power cut leaves: the bytes as of the last sync.
    pub(super) fn after_power_cut(&self) -> Disk {
        Disk::of(self.with(|state| state.synced.clone()))
    }

    /// What a kill of the process leaves: every byte written.
    pub(super) fn after_kill(&self) -> Disk {
        Disk::of(self.with(|state| state.bytes.clone()))
    }

    /// From the next on, the `nth` sync fails.
    pub(super) fn fail_sync(&self, nth: u64) {
        self.fail(Call::Sync, nth);
    }

    /// From the next on, the `nth` call of this kind fails.
    pub(super) fn fail(&self, call: Call, nth: u64) {
        self.with(|state| {
            let count = match call {
                Call::Write => state.writes,
                Call::Sync => state.syncs,
                Call::SetLen => state.set_lens,
            };
            state.failing = Some((call, count + nth));
        });
    }

    /// Whether the call that was to fail has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.with(|state| match state.failing {
            Some((Call::Write, nth)) => state.writes >= nth,
            Some((Call::Sync, nth)) => state.syncs >= nth,
            Some((Call::SetLen, nth)) => state.set_lens >= nth,
            None => false,
        })
    }

    /// No write beyond this length succeeds.
    pub(super) fn set_capacity(&self, bytes: usize) {
        self.with(|state| state.capacity = Some(bytes));
    }

    pub(super) fn len(&self) -> usize {
        self.with(|state| state.bytes.len())
    }

    pub(super) fn bytes_read(&self) -> usize {
        self.with(|state| state.bytes_read)
    }

    /// Flips the lowest bit of the first byte of each place where `pattern` is written; how many there were.
    pub(super) fn flip(&self, pattern: &[u8]) -> usize {
        self.with(|state| {
            let hits = state.bytes.windows(pattern.len()).enumerate().filter(|(_, window)| *window == pattern);
            let hits: Vec<usize> = hits.map(|(at, _)| at).collect();
            hits.iter().for_each(|at| state.bytes[*at] ^= 1);
            hits.len()
        })
    }

    /// Overwrites from the start.
    pub(super) fn overwrite(&self, bytes: &[u8]) {
        self.with(|state| state.bytes[..bytes.len()].copy_from_slice(bytes));
    }

    /// From here on syncs wait for [`Disk::release`].
    pub(super) fn hold(&self) {
        self.with(|state| state.held = true);
    }

    /// Returns when a sync waits.
    pub(super) fn wait_until_held(&self) {
        let (state, changed) = &*self.0;
        let patience = Duration::from_secs(20);
        let (_state, waited) =
            changed.wait_timeout_while(state.lock().unwrap(), patience, |state| state.waiting == 0).unwrap();
        assert!(!waited.timed_out(), "no sync came");
    }

    pub(super) fn release(&self) {
        self.with(|state| state.held = false);
        self.0.1.notify_all();
    }

    fn of(bytes: Vec<u8>) -> Disk {
        let state = State { synced: bytes.clone(), bytes, ..State::default() };
        Disk(Arc::new((Mutex::new(state), Condvar::new())))
    }

    fn with<T>(&self, run: impl FnOnce(&mut State) -> T) -> T {
        run(&mut self.0.0.lock().unwrap())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|state| {
            let from = offset as usize;
            let bytes = state.bytes.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(bytes);
            state.bytes_read += out.len();
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|state| {
            if state.capacity.is_some_and(|capacity| len as usize > capacity) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            if state.fails(Call::SetLen) {
                return Err(io::Error::other("the disk is gone"));
            }
            let before = state.bytes.len();
            state.bytes.resize(len as usize, 0);
            state.dirty.push((before, (len as usize).saturating_sub(before)));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let (state, changed) = &*self.0;
        let mut state = state.lock().unwrap();
        state.waiting += 1;
        changed.notify_all();
        state = changed.wait_while(state, |state| state.held).unwrap();
        state.waiting -= 1;
        if state.fails(Call::Sync) {
            return Err(io::Error::other("the disk is gone"));
        }
        let State { bytes, synced, dirty, .. } = &mut *state;
        synced.resize(bytes.len(), 0);
        for (from, len) in dirty.drain(..) {
            // The file may have shrunk since.
            let upto = (from + len).min(bytes.len());
            if from < upto {
                synced[from..upto].copy_from_slice(&bytes[from..upto]);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|state| {
            let from = offset as usize;
            let failed = state.fails(Call::Write);
            state.dirty.push((from, data.len()));
            let place = state.bytes.get_mut(from..from + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            if failed {
                let half = data.len() / 2;
                place[..half].copy_from_slice(&data[..half]);
                return Err(io::Error::other("the disk is gone"));
            }
            place.copy_from_slice(data);
            Ok(())
        })
    }
}
