//! The agent's side of a job: making its folder ready, starting its shim, reading what it left.

use super::system::home_of;
use crate::{
    platform::job::{JobHandle, JobLeft, JobSpec, StartFault},
    shim::{
        files::{self, CANCEL, Claim, PID, SCRIPT, SPEC, STATUS, Spec, WORK},
        process::{self, Process},
    },
};
use branchline_protocol::job::{Runnable, SCRIPT_BYTES_MAX};
use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};
use tokio::sync::watch;

/// A job's programs are looked up here, whatever the agent's own environment says.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The interpreter of a script that names none.
const SHELL: &str = "/bin/sh";
/// The thread that reaps a shim only waits.
const REAPER_STACK: usize = 64 * 1_024;

/// Starts the job of this specification, once per folder.
pub(crate) fn start(spec: JobSpec) -> Result<JobHandle, StartFault> {
    let dir = prepare(&spec)?;
    let child = Command::new(&spec.shim)
        .args(&spec.shim_args)
        .arg(&dir)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.map_err(|source| StartFault::Shim { path: spec.shim.clone(), source })?;
    // The shim claims for itself; claiming for it too closes the time in which an inspection would give the start up.
    // Should this fail, the shim's own claim decides.
    if let Some(shim) = Process::find(child.id()) {
        let _ = files::claim(&dir, &Claim { boot: process::boot_id(), shim: Some(shim), program: None });
    }
    let (sender, reaped) = watch::channel(false);
    let reaper = move || {
        // An error means that somebody else reaped it: gone all the same.
        let _ = child.wait();
        sender.send_replace(true);
    };
    // Without the thread the handle sees a closed flag and looks at the folder instead.
    let _ = thread::Builder::new().name("reaper".to_owned()).stack_size(REAPER_STACK).spawn(reaper);
    Ok(JobHandle::child(&dir, reaped))
}

/// Writes script and specification; answers the folder's absolute path.
fn prepare(spec: &JobSpec) -> Result<PathBuf, StartFault> {
    let fault = |path: &Path| {
        let path = path.to_owned();
        move |source| StartFault::Prepare { path, source }
    };
    match &spec.run {
        Runnable::Argv(argv) if argv.first().is_none_or(String::is_empty) => return Err(StartFault::Empty),
        Runnable::Script { content, .. } if content.len() > SCRIPT_BYTES_MAX => {
            return Err(StartFault::TooLarge(content.len()));
        }
        _ => {}
    }
    let closed_to_others = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
    closed_to_others(&spec.dir).map_err(fault(&spec.dir))?;
    let dir = spec.dir.canonicalize().map_err(fault(&spec.dir))?;
    if [SPEC, SCRIPT, PID, STATUS].iter().any(|name| dir.join(name).exists()) {
        return Err(StartFault::Used(dir));
    }
    let work = dir.join(WORK);
    closed_to_others(&work).map_err(fault(&work))?;
    let (program, args, interprets) = match &spec.run {
        Runnable::Argv(argv) => (argv[0].clone(), argv[1..].to_vec(), false),
        Runnable::Script { interpreter, content } => {
            let script = dir.join(SCRIPT);
            write_script(&script, content).map_err(fault(&script))?;
            let path =
                script.to_str().ok_or(io::Error::from(io::ErrorKind::InvalidFilename)).map_err(fault(&script))?;
            (interpreter.clone().unwrap_or_else(|| SHELL.to_owned()), vec![path.to_owned()], true)
        }
    };
    let inner = Spec {
        program,
        args,
        interprets,
        env: environment(&spec.env, &fs::read_to_string("/etc/passwd").unwrap_or_default(), own_uid()),
        cwd: spec.cwd.clone().unwrap_or(work),
        time_out_ms: spec.time_out_ms,
        output_cap: spec.output_cap,
    };
    files::create(&dir, SPEC, &inner).map_err(fault(&dir.join(SPEC)))?;
    Ok(dir)
}

fn write_script(path: &Path, content: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o700).open(path)?.write_all(content)
}

fn own_uid() -> Option<u32> {
    fs::metadata("/proc/self").ok().map(|data| data.uid())
}

/// A job's whole environment: `PATH`, `HOME`, `LANG`, and what the caller gives.
fn environment(given: &BTreeMap<String, String>, passwd: &str, uid: Option<u32>) -> BTreeMap<String, String> {
    let home = uid.and_then(|uid| home_of(passwd, uid)).unwrap_or_else(|| "/".to_owned());
    let base = [("PATH", PATH.to_owned()), ("HOME", home), ("LANG", "C.UTF-8".to_owned())];
    let mut all: BTreeMap<_, _> = base.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    all.extend(given.clone());
    all
}

/// What is left of the job. Where nobody has claimed its start yet, this gives the start up for good: `Cut` is never
/// followed by a run.
pub(crate) fn inspect(dir: &Path) -> JobLeft {
    if let Some(left) = files::finished(dir) {
        return left;
    }
    let boot = process::boot_id();
    let given_up = Claim { boot: boot.clone(), shim: None, program: None };
    // No folder or no disk: nothing runs from there either.
    let claim = files::read(dir, PID).or_else(|| files::claim(dir, &given_up).ok().flatten());
    if let Some(Claim { boot: of, shim: Some(shim), program }) = claim
        && of == boot
        && shim.is_alive()
    {
        return JobLeft::Running { shim: shim.pid, program: program.map(|p| p.pid) };
    }
    // It may have left its status between the two looks.
    files::finished(dir).unwrap_or(JobLeft::Cut)
}

/// Ends the job: the mark keeps a program that has not started from starting, the signal ends one that has.
pub(crate) fn kill(dir: &Path) -> io::Result<()> {
    if dir.join(STATUS).exists() {
        return Ok(());
    }
    fs::write(dir.join(CANCEL), b"")?;
    match files::read(dir, PID) {
        Some(Claim { boot, program: Some(program), .. }) if boot == process::boot_id() && program.is_there() => {
            process::signal_group(program.pid, libc::SIGKILL)
        }
        // The shim looks for the mark after it has recorded the program.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn the_environment_is_clean_and_given_wins() {
        let given = BTreeMap::from([("BRANCHLINE_DEVICE".into(), "d".into()), ("LANG".into(), "ja_JP.UTF-8".into())]);
        let env = environment(&given, "root:x:0:0::/root:/bin/sh\n", Some(0));
        let pairs: Vec<_> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("BRANCHLINE_DEVICE", "d"), ("HOME", "/root"), ("LANG", "ja_JP.UTF-8"), ("PATH", PATH)]);
        assert_eq!(environment(&given, "", Some(7))["HOME"], "/");
    }

    #[test]
    fn job_9_a_script_over_its_bound_is_not_started() {
        let dir = tempfile::tempdir().unwrap();
        for (bytes, fits) in [(SCRIPT_BYTES_MAX, true), (SCRIPT_BYTES_MAX + 1, false)] {
            let content = Bytes::from(vec![b'#'; bytes]);
            let run = Runnable::Script { interpreter: None, content };
            let spec = JobSpec { run, ..JobSpec::argv(dir.path().join(bytes.to_string()), "/no/shim".into(), &[]) };
            match prepare(&spec) {
                Ok(_) => assert!(fits),
                Err(fault) => assert!(!fits && matches!(fault, StartFault::TooLarge(n) if n == bytes)),
            }
        }
    }

    #[test]
    fn nothing_to_run_is_said_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        for argv in [&[][..], &[""][..]] {
            let spec = JobSpec::argv(dir.path().join("job"), "/no/shim".into(), argv);
            assert!(matches!(start(spec), Err(StartFault::Empty)));
        }
        assert!(!dir.path().join("job").exists());
    }

    #[test]
    fn a_folder_is_used_once_even_when_the_shim_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let spec = JobSpec::argv(dir.path().join("job"), "/no/such/shim".into(), &["true"]);
        assert!(matches!(start(spec.clone()), Err(StartFault::Shim { .. })));
        assert!(matches!(start(spec), Err(StartFault::Used(_))));
    }

    #[test]
    fn an_inspected_folder_without_a_start_never_starts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(inspect(&dir.path().join("missing")), JobLeft::Cut);
        assert_eq!(inspect(dir.path()), JobLeft::Cut);
        let late = Claim { boot: process::boot_id(), shim: Process::find(std::process::id()), program: None };
        assert_ne!(files::claim(dir.path(), &late).unwrap(), Some(late));
    }

    #[test]
    fn another_boot_or_another_start_time_is_cut() {
        let me = Process::find(std::process::id()).unwrap();
        let claims = [
            (process::boot_id(), me, true),
            ("another boot".to_owned(), me, false),
            (process::boot_id(), Process { start: me.start + 1, ..me }, false),
        ];
        for (boot, shim, running) in claims {
            let dir = tempfile::tempdir().unwrap();
            files::claim(dir.path(), &Claim { boot, shim: Some(shim), program: None }).unwrap();
            assert_eq!(matches!(inspect(dir.path()), JobLeft::Running { .. }), running);
        }
    }
}
