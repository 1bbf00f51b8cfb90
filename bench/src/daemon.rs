//! A reference's process: started here, waited for, ended by its handle.

use crate::{Outcome, machine};
use std::{
    fs::File,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Something that does not listen by then does not start.
const STARTS_WITHIN: Duration = Duration::from_secs(15);
/// Something that does not end by then is killed.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// A running process.
pub struct Daemon {
    child: Child,
}

/// A port of 127.0.0.1 that was free a moment ago.
pub fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// An address of this machine only.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Where a program is installed; a path is its own answer.
pub fn installed(program: &str) -> Outcome<PathBuf> {
    if program.contains('/') {
        return Ok(program.into());
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&folders).collect();
    // Debian keeps servers where ordinary users do not look.
    folders.extend(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    let found = folders.into_iter().map(|folder| folder.join(program)).find(|path| path.is_file());
    found.ok_or_else(|| format!("{program} is not installed").into())
}

impl Daemon {
    /// Starts it, and waits until it listens at every one of these ports. What it says goes into a file in `folder`.
    pub fn start(program: &str, args: &[&str], folder: &Path, ports: &[u16]) -> Outcome<Daemon> {
        let file = installed(program)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let log = folder.join(format!("{name}-{}.log", ports.first().copied().unwrap_or_default()));
        let mut command = Command::new(&file);
        command.args(args).current_dir(folder).stdin(Stdio::null());
        command.stdout(File::create(&log)?).stderr(File::options().append(true).open(&log)?);
        let mut daemon = Daemon { child: command.spawn()? };
        let end = Instant::now() + STARTS_WITHIN;
        for port in ports {
            while TcpStream::connect_timeout(&local(*port), Duration::from_secs(1)).is_err() {
                let ended = daemon.child.try_wait()?;
                if ended.is_some() || Instant::now() > end {
                    let said = std::fs::read_to_string(&log).unwrap_or_default();
                    return Err(format!("{program} does not listen at port {port}: {ended:?} {said}").into());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(daemon)
    }

    /// It and its workers.
    pub fn pids(&self) -> Vec<u32> {
        let own = self.child.id();
        [vec![own], machine::children(own)].concat()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SAFETY: a signal to a child of ours that was not waited for yet, so that its pid is its own.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let end = Instant::now() + ENDS_WITHIN;
        while Instant::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // It ends with the next line in any case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
