//! A disk in memory under the real engine: what was not synced can be lost or torn, and it can be full.

use branchline_node::store::StorageBackend;
use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A sector: what a disk writes whole.
const SECTOR: usize = 512;

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct Platter(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    /// What the un-synced writes replaced, oldest first: place, old bytes, new bytes.
    unsynced: Vec<(usize, Vec<u8>, Vec<u8>)>,
    /// The length at the last sync.
    synced_len: usize,
    full: bool,
    /// So many more writes and syncs go well; then the power is gone.
    fuse: Option<u64>,
}

impl Platter {
    fn with(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no more space is given.
    pub fn set_full(&self, full: bool) {
        self.with().full = full;
    }

    /// After so many writes and syncs nothing succeeds any more, until [`Platter::power_cut`].
    pub fn set_fuse(&self, calls: u64) {
        self.with().fuse = Some(calls);
    }

    /// Un-synced writes.
    pub fn unsynced(&self) -> usize {
        self.with().unsynced.len()
    }

    /// The power goes: of every sector written since the last sync, `keeps` says whether it reached the disk.
    pub fn power_cut(&self, mut keeps: impl FnMut() -> bool) {
        let mut state = self.with();
        state.fuse = None;
        let unsynced = std::mem::take(&mut state.unsynced);
        for (at, old, _) in unsynced.iter().rev() {
            let end = (at + old.len()).min(state.bytes.len());
            if *at < end {
                state.bytes[*at..end].copy_from_slice(&old[..end - at]);
            }
        }
        let len = state.synced_len;
        state.bytes.resize(len, 0);
        for (at, _, new) in &unsynced {
            for (index, sector) in new.chunks(SECTOR).enumerate() {
                let from = at + index * SECTOR;
                if keeps() && from + sector.len() <= state.bytes.len() {
                    state.bytes[from..from + sector.len()].copy_from_slice(sector);
                }
            }
        }
        state.synced_len = state.bytes.len();
    }

    /// Every byte, as a snapshot of the machine would have it.
    pub fn image(&self) -> Vec<u8> {
        self.with().bytes.clone()
    }

    /// The disk is another one, with this content.
    pub fn restore(&self, image: Vec<u8>) {
        let mut state = self.with();
        *state = State { synced_len: image.len(), bytes: image, ..State::default() };
    }
}

impl State {
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.fuse {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl StorageBackend for Platter {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.with();
        let from = offset as usize;
        let bytes = state.bytes.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.with();
        state.spend()?;
        if state.full && len as usize > state.bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.bytes.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.with();
        state.spend()?;
        state.unsynced.clear();
        state.synced_len = state.bytes.len();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.with();
        state.spend()?;
        if state.full {
            // A copy-on-write file system needs space even to overwrite.
            return Err(io::ErrorKind::StorageFull.into());
        }
        let from = offset as usize;
        let place = state.bytes.get_mut(from..from + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let old = place.to_vec();
        place.copy_from_slice(data);
        state.unsynced.push((from, old, data.to_vec()));
        Ok(())
    }
}
