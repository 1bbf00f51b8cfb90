//! A file that holds disk space back, so that records can still be deleted on a full disk: the engine copies pages
//! before it frees them.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The reserve of one store: built when there is room for twice its size, given up when a commit found no space.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// The reserve beside a store's file.
    pub(super) fn beside(store: &Path, bytes: u64) -> Self {
        Reserve { path: store.with_file_name("reserve"), bytes }
    }

    /// Makes sure that the space is held; an error leaves none of it held.
    ///
    /// Twice the size is written and half of it cut off again: otherwise the space that was released for the deletes
    /// would be taken back before the first of them, and released and taken in turn for ever.
    pub(super) fn build(&self) -> io::Result<()> {
        if fs::metadata(&self.path).is_ok_and(|found| found.is_file() && found.len() == self.bytes) {
            return Ok(());
        }
        let trial = self.path.with_extension("new");
        let built = self.fill(&trial).and_then(|()| fs::rename(&trial, &self.path));
        if built.is_err() {
            // What could not be filled holds space that the store needs; if it was never made, there is none to free.
            if let Err(error) = fs::remove_file(&trial)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::debug!(%error, path = %trial.display(), "a half-filled reserve stays");
            }
        }
        built
    }

    /// Gives the space back to the disk.
    pub(super) fn release(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Written with bytes that no file system compresses or stores as a hole.
    fn fill(&self, trial: &Path) -> io::Result<()> {
        let mut file = File::create(trial)?;
        let mut noise = blake3::Hasher::new().update(b"reserve").finalize_xof();
        let mut block = [0; 16 * 1024];
        let mut left = 2 * self.bytes;
        while left > 0 {
            let part = &mut block[..left.min(16 * 1024) as usize];
            noise.fill(part);
            file.write_all(part)?;
            left -= part.len() as u64;
        }
        file.sync_data()?;
        file.set_len(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_held_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::beside(&folder.path().join("store.redb"), 100_000);
        let names = || fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        reserve.build().unwrap();
        assert_eq!(fs::metadata(folder.path().join("reserve")).unwrap().len(), 100_000);
        reserve.build().unwrap();
        assert_eq!(names(), ["reserve"]);
        reserve.release().unwrap();
        reserve.release().unwrap();
        assert!(names().is_empty());
    }

    #[test]
    fn a_cut_off_reserve_is_built_anew() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::beside(&folder.path().join("store.redb"), 5000);
        fs::write(folder.path().join("reserve"), [0; 4999]).unwrap();
        reserve.build().unwrap();
        assert_eq!(fs::metadata(folder.path().join("reserve")).unwrap().len(), 5000);
    }
}
