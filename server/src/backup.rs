//! A server's backup and its restore, by whoever owns the state folder (OPS-7). Neither goes through the API: what is in
//! the file is every key of the installation, and no token is worth that.
//!
//! The database comes first, by SQLite's own snapshot, whether or not a server has it open; the keys after it. Keys are
//! written before the row that names them, so every tenant of the snapshot has its keys in the file.

use crate::store::{Snapshot, SqliteStore, StoreError};
use branchline_node::{
    backup::{self, BackupFault, Manifest, Source},
    node::write_whole,
};
use branchline_protocol::{
    id::{Role, TenantId},
    time::Millis,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// The database below the state folder.
pub const DATABASE: &str = "server.db";
/// The mark that a state folder was restored: the next start raises the term.
pub const MARK: &str = "restored.json";

/// What the mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// When the backup was made, wall clock of the server: what was settled later it does not know.
    pub made_at: Millis,
    /// When it was restored.
    pub restored_at: Millis,
}

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum ServerBackupFault {
    /// The backup file.
    #[error(transparent)]
    Backup(#[from] BackupFault),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder holds no server.
    #[error("{0} holds no server's state")]
    NoServer(String),
    /// The backup is another role's.
    #[error("it is a backup of a {0}, not of a server")]
    OtherRole(Role),
    /// A server has the folder open.
    #[error("a server runs on {0}; stop it, and restore into a new folder")]
    InUse(String),
    /// There is something in the folder.
    #[error("{folder} is not empty ({found} is there); restore into a new folder")]
    NotEmpty {
        /// The folder.
        folder: String,
        /// One thing in it.
        found: String,
    },
    /// Another restore left or is making its folder.
    #[error("{0} exists: another restore is under way, or was cut off; remove it in that case")]
    UnderWay(String),
    /// A file or folder.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl ServerBackupFault {
    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            ServerBackupFault::Backup(BackupFault::Io { .. }) | ServerBackupFault::Io { .. } => "unreadable",
            ServerBackupFault::Backup(BackupFault::Exists(_)) => "already_exists",
            ServerBackupFault::Backup(BackupFault::NotABackup(_)) => "no_backup",
            ServerBackupFault::Backup(BackupFault::NewerFormat { .. })
            | ServerBackupFault::Store(StoreError::NewerFormat { .. }) => "newer_format",
            ServerBackupFault::Backup(BackupFault::Damaged(_)) => "damaged",
            ServerBackupFault::Store(_) => "store",
            ServerBackupFault::NoServer(_) => "no_server",
            ServerBackupFault::OtherRole(_) => "other_role",
            ServerBackupFault::InUse(_) => "state_in_use",
            ServerBackupFault::NotEmpty { .. } => "state_not_empty",
            ServerBackupFault::UnderWay(_) => "restore_under_way",
        }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ServerBackupFault + '_ {
    move |source| ServerBackupFault::Io { path: path.display().to_string(), source }
}

/// Writes a backup of the server in `state` to the new file `out`; the server may be running. `now` is the wall clock,
/// taken before this is called: everything settled until then is in the backup.
///
/// # Errors
/// See [`ServerBackupFault`]; no file is left then.
pub async fn back_up(state: &Path, out: &Path, now: Millis) -> Result<Manifest, ServerBackupFault> {
    let database = state.join(DATABASE);
    if !database.is_file() {
        return Err(ServerBackupFault::NoServer(state.display().to_string()));
    }
    let mut name = out.as_os_str().to_owned();
    name.push(".db");
    let copy = PathBuf::from(name);
    let made = SqliteStore::snapshot(&database, &copy).await;
    let written = match made {
        Ok(snapshot) => write(state, out, &copy, snapshot, now),
        Err(error) => Err(error.into()),
    };
    match fs::remove_file(&copy) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => written.and(Err(at(&copy)(e))),
        _ => written,
    }
}

fn write(
    state: &Path,
    out: &Path,
    copy: &Path,
    snapshot: Snapshot,
    now: Millis,
) -> Result<Manifest, ServerBackupFault> {
    let mut parts = vec![(DATABASE.to_owned(), Source::File(copy.to_owned()))];
    let mut files = vec!["server.id".to_owned(), "ca.pem".to_owned()];
    for tenant in &snapshot.tenants {
        files.push(format!("tokens/{tenant}"));
        below(state, &format!("tenants/{tenant}"), &mut files)?;
    }
    for file in files {
        let path = state.join(&file);
        let bytes = fs::read(&path).map_err(at(&path))?;
        parts.push((file, Source::Bytes(bytes)));
    }
    let tenants: Vec<TenantId> = snapshot.tenants;
    let head = Manifest {
        build: env!("CARGO_PKG_VERSION").into(),
        role: Role::Server,
        node: snapshot.server,
        name: snapshot.name,
        tenants,
        term: snapshot.term,
        made_at: now,
        parts: Vec::new(),
    };
    Ok(backup::write(out, head, parts)?)
}

/// Files below a folder, save those that are being written.
fn below(state: &Path, folder: &str, files: &mut Vec<String>) -> Result<(), ServerBackupFault> {
    let path = state.join(folder);
    for entry in fs::read_dir(&path).map_err(at(&path))? {
        let entry = entry.map_err(at(&path))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let inner = format!("{folder}/{name}");
        if entry.file_type().map_err(at(&path))?.is_dir() {
            below(state, &inner, files)?;
        } else if !name.ends_with(".part") {
            files.push(inner);
        }
    }
    Ok(())
}

/// Puts a backup into `state`, which must not exist or be empty; the whole of it is there in the end, or nothing. `now`
/// is the wall clock. The next start raises the term and listens to the children first.
///
/// # Errors
/// See [`ServerBackupFault`]; `state` is as it was then.
pub fn restore(file: &Path, state: &Path, now: Millis) -> Result<Manifest, ServerBackupFault> {
    let manifest = backup::verify(file)?;
    if manifest.role != Role::Server {
        return Err(ServerBackupFault::OtherRole(manifest.role));
    }
    if !manifest.parts.iter().any(|part| part.path == DATABASE) {
        return Err(BackupFault::Damaged("it has no database".into()).into());
    }
    check_empty(state)?;
    // A trailing slash would make a folder within the folder.
    let state: PathBuf = state.components().collect();
    let mut name = state.as_os_str().to_owned();
    name.push(".restoring");
    let new = PathBuf::from(name);
    if let Some(parent) = state.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(at(parent))?;
    }
    if new.symlink_metadata().is_ok() {
        return Err(ServerBackupFault::UnderWay(new.display().to_string()));
    }
    let placed = extract(file, &new, Mark { made_at: manifest.made_at, restored_at: now })
        .and_then(|()| crate::domain::rename(&new, &state).map_err(at(&state)));
    if let Err(fault) = placed {
        fs::remove_dir_all(&new).map_err(at(&new))?;
        return Err(fault);
    }
    Ok(manifest)
}

fn extract(file: &Path, new: &Path, mark: Mark) -> Result<(), ServerBackupFault> {
    backup::extract(file, new)?;
    let path = new.join(MARK);
    let text = serde_json::to_vec(&mark).expect("a mark is plain data");
    write_whole(&path, &text).map_err(at(&path))
}

fn check_empty(state: &Path) -> Result<(), ServerBackupFault> {
    let entries = match fs::read_dir(state) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(at(state)(e)),
    };
    let lock = state.join(format!("{DATABASE}.lock"));
    if let Ok(file) = File::options().write(true).open(&lock)
        && matches!(file.try_lock(), Err(TryLockError::WouldBlock))
    {
        return Err(ServerBackupFault::InUse(state.display().to_string()));
    }
    match entries.into_iter().next() {
        None => Ok(()),
        Some(entry) => {
            let found = entry.map_err(at(state))?.file_name().to_string_lossy().into_owned();
            Err(ServerBackupFault::NotEmpty { folder: state.display().to_string(), found })
        }
    }
}

/// The mark of a restored folder, if there is one.
///
/// # Errors
/// It cannot be read.
pub fn mark(state: &Path) -> Result<Option<Mark>, ServerBackupFault> {
    let path = state.join(MARK);
    match fs::read(&path) {
        Ok(text) => {
            let unreadable = |e: serde_json::Error| at(&path)(io::Error::new(io::ErrorKind::InvalidData, e));
            serde_json::from_slice(&text).map(Some).map_err(unreadable)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(at(&path)(e)),
    }
}

/// Removes the mark, once the term that it asked for is durable.
///
/// # Errors
/// It cannot be removed.
pub fn unmark(state: &Path) -> Result<(), ServerBackupFault> {
    let path = state.join(MARK);
    fs::remove_file(&path).map_err(at(&path))?;
    crate::domain::sync_folder(state).map_err(at(state))
}

#[cfg(test)]
mod tests;
