//! The folder in which one `up` keeps everything, and its lock.

use crate::{
    context::{CONTEXT_FILE, CURRENT, Context},
    failure::Failure,
};
use branchline_node::node::write_whole;
use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// An opened state folder. Unlocked when it is dropped, or when the process ends in whatever way.
#[derive(Debug)]
pub struct State {
    folder: PathBuf,
    /// Where [`CURRENT`] is.
    states: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl State {
    /// Makes the folder, or takes it over if no other `up` lives in it. `states` is the folder with the link to the
    /// newest state.
    pub fn open(folder: &Path, states: &Path) -> Result<State, Failure> {
        let unusable = |e: std::io::Error| {
            Failure::wrong("bad_state", format!("cannot use the state folder {}: {e}", folder.display())).field("state")
        };
        let folder = std::path::absolute(folder).map_err(unusable)?;
        make_private(&folder).map_err(unusable)?;
        let lock_path = folder.join("lock");
        let mut lock =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(lock_path).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(e)) => return Err(unusable(e)),
            Err(TryLockError::WouldBlock) => {
                let owner = owner(&mut lock).map_or("another process".into(), |pid| format!("pid {pid}"));
                let message =
                    format!("{} is in use by the `up` of {owner}; end it, or use another --state", folder.display());
                return Err(Failure::wrong("state_in_use", message).field("state"));
            }
        }
        let own = || {
            lock.set_len(0)?;
            lock.rewind()?;
            write!(lock, "{}", std::process::id())?;
            lock.sync_all()
        };
        let mut own = own;
        own().map_err(unusable)?;
        Ok(State { folder, states: states.to_path_buf(), _lock: lock })
    }

    /// The folder, absolute.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A node's own state folder.
    pub fn node(&self, name: &str) -> PathBuf {
        self.folder.join("nodes").join(name)
    }

    /// A node's configuration file.
    pub fn config(&self, name: &str) -> PathBuf {
        self.folder.join("config").join(format!("{name}.toml"))
    }

    /// A node's bundle.
    pub fn bundle(&self, name: &str) -> PathBuf {
        self.folder.join("bundles").join(name)
    }

    /// Where a node's stdout and stderr go.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.join("logs").join(format!("{name}.log"))
    }

    /// Whether a node enrolled already.
    pub fn has_identity(&self, name: &str) -> bool {
        self.node(name).join("identity").exists()
    }

    /// The context that other commands read.
    pub fn context_file(&self) -> PathBuf {
        self.folder.join(CONTEXT_FILE)
    }

    /// Makes every folder a node needs.
    pub fn make_folders(&self, name: &str) -> Result<(), Failure> {
        let folders =
            [self.node(name), self.folder.join("config"), self.folder.join("bundles"), self.folder.join("logs")];
        folders.iter().try_for_each(|f| make_private(f).map_err(|e| self.unwritable(f, &e)))
    }

    /// Writes a file whole.
    pub fn write(&self, path: &Path, content: &str) -> Result<(), Failure> {
        write_whole(path, content.as_bytes()).map_err(|e| self.unwritable(path, &e))
    }

    /// Writes the context and points `.branchline/current` of the present folder to this state.
    pub fn publish(&self, context: &Context) -> Result<(), Failure> {
        let text = serde_json::to_string(context).expect("a context is plain data");
        self.write(&self.context_file(), &text)?;
        if let Err(e) = self.point_here() {
            super::say::line(&format!(
                "{} cannot be set ({e}); use --context {}",
                self.states.join(CURRENT).display(),
                self.context_file().display()
            ));
        }
        Ok(())
    }

    fn point_here(&self) -> std::io::Result<()> {
        make_private(&self.states)?;
        let fresh = self.states.join(format!("{CURRENT}.{}", std::process::id()));
        match std::fs::remove_file(&fresh) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::os::unix::fs::symlink(&self.folder, &fresh)?;
        std::fs::rename(&fresh, self.states.join(CURRENT))
    }

    fn unwritable(&self, path: &Path, e: &std::io::Error) -> Failure {
        Failure::ended("unwritable", format!("cannot write {}: {e}", path.display()))
    }
}

/// Tokens and keys live below: nobody else may look.
fn make_private(folder: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// The pid in a lock file. Its owner writes it right after locking, so an empty file is looked at again.
fn owner(lock: &mut File) -> Option<u32> {
    for _ in 0..20 {
        let mut text = String::new();
        lock.rewind().ok()?;
        lock.read_to_string(&mut text).ok()?;
        if let Ok(pid) = text.trim().parse() {
            return Some(pid);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_second_owner_is_told_the_first_ones_pid() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let first = State::open(&path, &path).unwrap();
        let failure = State::open(&path, &path).unwrap_err();
        assert_eq!((failure.exit, failure.code.as_str()), (2, "state_in_use"));
        assert!(failure.message.contains(&format!("pid {}", std::process::id())), "{failure}");
        drop(first);
        State::open(&path, &path).unwrap();
    }

    #[test]
    fn the_state_is_its_owners_only_and_current_points_to_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let states = folder.path().join("states");
        for name in ["one", "two"] {
            let state = State::open(&folder.path().join(name), &states).unwrap();
            state.point_here().unwrap();
            assert_eq!(std::fs::read_link(states.join(CURRENT)).unwrap(), folder.path().join(name));
            assert_eq!(std::fs::metadata(state.folder()).unwrap().permissions().mode() & 0o777, 0o700);
        }
        assert_eq!(std::fs::read_dir(&states).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn a_state_that_is_a_file_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "").unwrap();
        let failure = State::open(&path, &path).unwrap_err();
        assert_eq!((failure.exit, failure.field.as_deref()), (2, Some("state")));
    }
}
