//! The files of a job's folder, as agent and shim share them.

use super::process::Process;
use crate::platform::job::{JobLeft, Status};
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

pub(crate) const SPEC: &str = "spec";
pub(crate) const SCRIPT: &str = "script";
pub(crate) const PID: &str = "pid";
pub(crate) const CANCEL: &str = "cancel";
pub(crate) const STDOUT: &str = "stdout";
pub(crate) const STDERR: &str = "stderr";
pub(crate) const STATUS: &str = "status";
/// The program's own working folder: a script that writes `status` there touches nothing of ours.
pub(crate) const WORK: &str = "work";

/// Claims and statuses are a few hundred bytes, a specification little more than a command line of the kernel's size.
const SMALL_FILE_MAX: u64 = 4 * 1_048_576;

/// What the shim is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// The program: a path, or a name looked up in the job's own `PATH`.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Whether the program is a script's interpreter.
    pub interprets: bool,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// Its working folder.
    pub cwd: PathBuf,
    /// See [`crate::platform::JobSpec`].
    pub time_out_ms: u64,
    /// See [`crate::platform::JobSpec`].
    pub output_cap: u64,
}

/// Who may start the job, and what it started. Written once, extended by its owner only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The boot it belongs to: start times count from there.
    pub boot: String,
    /// The shim; `None` when the start was given up instead.
    pub shim: Option<Process>,
    /// The program, leader of its group.
    pub program: Option<Process>,
}

/// Reads a small MessagePack file; `None` when it is missing or not whole.
pub(crate) fn read<T: DeserializeOwned>(dir: &Path, name: &str) -> Option<T> {
    let mut bytes = Vec::new();
    File::open(dir.join(name)).ok()?.take(SMALL_FILE_MAX).read_to_end(&mut bytes).ok()?;
    rmp_serde::from_slice(&bytes).ok()
}

fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    rmp_serde::to_vec_named(value).map_err(io::Error::other)
}

/// Writes a file that must not be there yet.
pub(crate) fn create<T: Serialize>(dir: &Path, name: &str, value: &T) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(name))?;
    file.write_all(&encode(value)?)
}

/// Puts a file in place whole or not at all; on the disk when this returns if `durable`.
pub(crate) fn replace<T: Serialize>(dir: &Path, name: &str, value: &T, durable: bool) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.{}.tmp", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&encode(value)?)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&temporary, dir.join(name))?;
    if durable {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// Takes the job's one start for `claim`. Answers whose it is: `claim`, or the one that was there first. Not fsynced:
/// a lost claim belongs to a boot in which nothing runs any more.
pub(crate) fn claim(dir: &Path, claim: &Claim) -> io::Result<Option<Claim>> {
    let temporary = dir.join(format!("{PID}.{}.tmp", std::process::id()));
    fs::write(&temporary, encode(claim)?)?;
    let linked = fs::hard_link(&temporary, dir.join(PID));
    // Only tidiness: the name in use is the linked one.
    let _ = fs::remove_file(&temporary);
    match linked {
        Ok(()) => Ok(Some(claim.clone())),
        Err(fault) if fault.kind() == io::ErrorKind::AlreadyExists => Ok(read(dir, PID)),
        Err(fault) => Err(fault),
    }
}

/// Whether the agent asked for the job's end.
pub(crate) fn cancelled(dir: &Path) -> bool {
    dir.join(CANCEL).exists()
}

/// The job's end, if it left one.
pub(crate) fn finished(dir: &Path) -> Option<JobLeft> {
    let status: Status = read(dir, STATUS)?;
    let stdout = output(dir, STDOUT, status.stdout_bytes);
    let stderr = output(dir, STDERR, status.stderr_bytes);
    Some(JobLeft::Finished(status, stdout, stderr))
}

/// As many bytes as the shim says it kept, whatever was done to the file since.
fn output(dir: &Path, name: &str, bytes: u64) -> Bytes {
    let mut kept = Vec::new();
    if bytes > 0
        && let Ok(file) = File::open(dir.join(name))
        && file.take(bytes).read_to_end(&mut kept).is_err()
    {
        kept.clear();
    }
    kept.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim_of(pid: u32) -> Claim {
        Claim { boot: "b".into(), shim: Some(Process { pid, start: 1 }), program: None }
    }

    #[test]
    fn a_start_is_claimed_once() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(claim(dir.path(), &claim_of(1)).unwrap(), Some(claim_of(1)));
        assert_eq!(claim(dir.path(), &claim_of(1)).unwrap(), Some(claim_of(1)));
        assert_eq!(claim(dir.path(), &claim_of(2)).unwrap(), Some(claim_of(1)));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_torn_or_foreign_file_is_no_status() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(finished(dir.path()), None);
        for bytes in [&b""[..], b"\x81", b"not a status", &[0xff; 64]] {
            fs::write(dir.path().join(STATUS), bytes).unwrap();
            assert_eq!(finished(dir.path()), None);
        }
    }
}
