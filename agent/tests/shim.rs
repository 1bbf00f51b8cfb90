//! Jobs under the real shim: a process of its own, started as an agent starts it (JOB-9, DESIGN 4).
#![cfg(target_os = "linux")]

use branchline_agent::platform::{
    Ended, JobHandle, JobLeft, JobSpec, Platform, SpawnFault, StartFault, Status, linux::LinuxPlatform,
};
use branchline_protocol::job::{End, RunScript, Runnable};
use bytes::Bytes;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;

/// Liveness only: far above anything a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    folder: TempDir,
    platform: LinuxPlatform,
}

impl Bench {
    fn new() -> Bench {
        Bench { folder: tempfile::tempdir().unwrap(), platform: LinuxPlatform::new() }
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("job")
    }

    /// A file beside the job's folder, for scripts to write to.
    fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn spec(&self, run: Runnable) -> JobSpec {
        let shim = PathBuf::from(env!("CARGO_BIN_EXE_branchline-agent"));
        let args = RunScript { run, time_out_ms: 60_000, output_cap: 65_536 };
        JobSpec::of(self.dir(), shim, vec!["shim".to_owned()], args)
    }

    fn script(&self, text: &str) -> JobSpec {
        self.spec(Runnable::Script { interpreter: None, content: Bytes::from(text.to_owned()) })
    }

    fn argv(&self, argv: &[&str]) -> JobSpec {
        self.spec(Runnable::Argv(argv.iter().map(|a| a.to_string()).collect()))
    }

    async fn run(&self, spec: JobSpec) -> (Status, Bytes, Bytes) {
        finished(&self.platform.start_job(spec).unwrap()).await
    }
}

async fn left(handle: &JobHandle) -> JobLeft {
    tokio::time::timeout(PATIENCE, handle.wait()).await.expect("the job ends")
}

async fn finished(handle: &JobHandle) -> (Status, Bytes, Bytes) {
    match left(handle).await {
        JobLeft::Finished(status, stdout, stderr) => (status, stdout, stderr),
        other => panic!("not finished: {other:?}"),
    }
}

/// The value, once there is one.
async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(value) = look() {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("no {what}"))
}

/// A number that a script has written whole, newline included.
async fn number_in(path: &Path) -> u32 {
    eventually("number", || fs::read_to_string(path).ok()?.strip_suffix('\n')?.parse().ok()).await
}

fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|s| !matches!(s, 'Z' | 'X'))
}

async fn gone(pid: u32) {
    eventually("end of the process", || (!lives(pid)).then_some(())).await;
}

fn kill_process(pid: u32) {
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
}

#[tokio::test]
async fn job_9_exit_code_and_outputs_come_back() {
    let bench = Bench::new();
    let (status, stdout, stderr) = bench.run(bench.script("echo out; echo err >&2; exit 7\n")).await;
    assert_eq!(status.ended, Ended::Exited(7));
    assert_eq!(status.verdict(), (End::Failed, Some("exit_code".into())));
    assert_eq!((&stdout[..], &stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    assert!(!status.truncated() && !status.simulated && !status.cancelled);
    assert!(status.started_at.unwrap() <= status.ended_at.unwrap());
}

#[tokio::test]
async fn job_9_a_command_line_runs_without_a_shell() {
    let bench = Bench::new();
    let (status, stdout, _) = bench.run(bench.argv(&["printf", "%s|", "$HOME", "a b", "*", "; exit 1"])).await;
    assert_eq!(status.verdict(), (End::Succeeded, None));
    assert_eq!(stdout, "$HOME|a b|*|; exit 1|");
}

#[tokio::test]
async fn job_9_the_environment_is_clean() {
    let bench = Bench::new();
    let mut spec = bench.argv(&["env"]);
    spec.env.insert("BRANCHLINE_DEVICE".into(), "d-1".into());
    let (_, stdout, _) = bench.run(spec).await;
    let text = String::from_utf8(stdout.to_vec()).unwrap();
    let mut names: Vec<_> = text.lines().filter_map(|l| l.split_once('=')).map(|(name, _)| name).collect();
    names.sort_unstable();
    assert_eq!(names, ["BRANCHLINE_DEVICE", "HOME", "LANG", "PATH"]);
    assert!(text.contains("BRANCHLINE_DEVICE=d-1\n"));
}

#[tokio::test]
async fn job_9_a_signal_is_named() {
    let bench = Bench::new();
    let (status, ..) = bench.run(bench.script("kill -SEGV $$\n")).await;
    assert_eq!(status.ended, Ended::Signalled(11));
    assert_eq!(status.verdict(), (End::Failed, Some("signal".into())));
}

/// Both the main process and its child ignore the polite signal, so only the whole group's end ends them.
#[tokio::test]
async fn job_9_time_out_kills_the_whole_group() {
    let bench = Bench::new();
    let (main, child) = (bench.beside("main"), bench.beside("child"));
    let text = format!(
        "trap '' TERM\nsh -c 'trap \"\" TERM; echo $$ > {}; while :; do sleep 1; done' &\necho $$ > {}\necho begun\nwait\n",
        child.display(),
        main.display()
    );
    let handle = bench.platform.start_job(JobSpec { time_out_ms: 3_000, ..bench.script(&text) }).unwrap();
    let (main, child) = (number_in(&main).await, number_in(&child).await);
    assert!(lives(main) && lives(child));
    let (status, stdout, _) = finished(&handle).await;
    assert_eq!(status.ended, Ended::TimedOut);
    assert_eq!(status.verdict(), (End::Failed, Some("time_out".into())));
    assert_eq!(stdout, "begun\n", "what was printed before is kept");
    gone(main).await;
    gone(child).await;
}

/// The main process leaves at the polite signal; what it leaves behind in its group is killed all the same.
#[tokio::test]
async fn job_9_time_out_kills_children_that_outlive_the_main_process() {
    let bench = Bench::new();
    let child = bench.beside("child");
    let text = format!(
        "sh -c 'trap \"\" TERM; echo $$ > {}; while :; do sleep 1; done' >/dev/null 2>&1 &\nwait\n",
        child.display()
    );
    let handle = bench.platform.start_job(JobSpec { time_out_ms: 2_000, ..bench.script(&text) }).unwrap();
    let child = number_in(&child).await;
    assert_eq!(finished(&handle).await.0.ended, Ended::TimedOut);
    gone(child).await;
}

#[tokio::test]
async fn job_9_output_is_capped_and_marked() {
    for (written, truncated) in [(9_999, false), (10_000, false), (10_001, true), (500_000, true)] {
        let bench = Bench::new();
        let text = format!("head -c {written} /dev/zero | tr '\\0' x; echo done >&2\n");
        let (status, stdout, stderr) = bench.run(JobSpec { output_cap: 10_000, ..bench.script(&text) }).await;
        assert_eq!(status.ended, Ended::Exited(0), "a full cap does not stop the writer");
        assert_eq!(stdout.len(), written.min(10_000));
        assert!(stdout.iter().all(|b| *b == b'x'));
        assert_eq!((status.stdout_truncated, status.truncated()), (truncated, truncated));
        assert_eq!((&stderr[..], status.stderr_truncated), (&b"done\n"[..], false));
    }
}

#[tokio::test]
async fn job_9_non_utf8_output_is_kept() {
    let bench = Bench::new();
    let (_, stdout, stderr) = bench.run(bench.script("printf '\\377\\376\\000a'; printf '\\200' >&2\n")).await;
    assert_eq!(&stdout[..], b"\xff\xfe\x00a");
    assert_eq!(&stderr[..], b"\x80");
}

#[tokio::test]
async fn job_9_missing_interpreter_is_unsupported() {
    for interpreter in ["/no/such/interpreter", "no-such-interpreter", "/etc/passwd/below-a-file"] {
        let bench = Bench::new();
        let content = Bytes::from_static(b"echo never\n");
        let run = Runnable::Script { interpreter: Some(interpreter.to_owned()), content };
        let (status, stdout, _) = bench.run(bench.spec(run)).await;
        assert_eq!(status.ended, Ended::NotStarted(SpawnFault::Interpreter), "{interpreter}");
        assert_eq!(status.verdict(), (End::Unsupported, Some("interpreter".into())));
        assert!(stdout.is_empty() && status.started_at.is_none());
    }
}

#[tokio::test]
async fn job_9_a_named_interpreter_is_looked_up() {
    let bench = Bench::new();
    let run =
        Runnable::Script { interpreter: Some("sh".to_owned()), content: Bytes::from_static(b"echo $((6 * 7))\n") };
    let (status, stdout, _) = bench.run(bench.spec(run)).await;
    assert_eq!((status.ended, &stdout[..]), (Ended::Exited(0), &b"42\n"[..]));
}

#[tokio::test]
async fn job_9_a_program_that_cannot_start_says_why() {
    let bench = Bench::new();
    let (status, ..) = bench.run(bench.argv(&["no-such-program-here"])).await;
    assert_eq!(status.ended, Ended::NotStarted(SpawnFault::NotFound));
    let bench = Bench::new();
    let (status, ..) = bench.run(bench.argv(&["/etc/passwd"])).await;
    assert_eq!(status.ended, Ended::NotStarted(SpawnFault::NotExecutable));
    let bench = Bench::new();
    let (status, ..) = bench.run(JobSpec { cwd: Some("/no/such/folder".into()), ..bench.argv(&["true"]) }).await;
    assert_eq!(status.ended, Ended::NotStarted(SpawnFault::Folder));
}

/// A child left in the background keeps the pipe open; it lives on, and the job ends.
#[tokio::test]
async fn a_background_child_neither_holds_the_job_nor_dies_with_it() {
    let bench = Bench::new();
    let child = bench.beside("child");
    let text = format!("sleep 600 & echo $! > {}\necho begun\n", child.display());
    let (status, stdout, _) = bench.run(bench.script(&text)).await;
    let child = number_in(&child).await;
    assert_eq!((status.ended, &stdout[..]), (Ended::Exited(0), &b"begun\n"[..]));
    assert!(lives(child));
    kill_process(child);
}

#[tokio::test]
async fn files_of_a_script_do_not_touch_the_jobs_own() {
    let bench = Bench::new();
    let (status, stdout, _) =
        bench.run(bench.script("for f in status pid stdout spec; do echo x > $f; done; echo ok\n")).await;
    assert_eq!((status.ended, &stdout[..]), (Ended::Exited(0), &b"ok\n"[..]));
}

#[tokio::test]
async fn a_job_is_found_again_running_and_then_finished() {
    let bench = Bench::new();
    let (begun, go) = (bench.beside("begun"), bench.beside("go"));
    let text = format!(
        "echo $$ > {}\nuntil [ -e {} ]; do sleep 0.05; done\necho end; exit 5\n",
        begun.display(),
        go.display()
    );
    drop(bench.platform.start_job(bench.script(&text)).unwrap());
    let JobLeft::Running { shim, .. } = bench.platform.inspect_job(&bench.dir()) else { panic!("not running") };
    let program = number_in(&begun).await;
    let next_agent = LinuxPlatform::new();
    let found = eventually("recorded program", || match next_agent.inspect_job(&bench.dir()) {
        JobLeft::Running { shim, program: Some(program) } => Some((shim, program)),
        _ => None,
    });
    assert_eq!(found.await, (shim, program));
    assert_ne!(shim, program);
    let handle = next_agent.attach_job(&bench.dir());
    fs::write(&go, b"").unwrap();
    let (status, stdout, _) = finished(&handle).await;
    assert_eq!((status.ended.clone(), &stdout[..]), (Ended::Exited(5), &b"end\n"[..]));
    assert_eq!(next_agent.inspect_job(&bench.dir()), JobLeft::Finished(status, stdout, Bytes::new()));
}

/// Without a shim nobody keeps the time: the program ends with it, and nothing is known of its effect.
#[tokio::test]
async fn a_killed_shim_is_cut_and_takes_its_program_along() {
    let bench = Bench::new();
    let begun = bench.beside("begun");
    let handle =
        bench.platform.start_job(bench.script(&format!("echo $$ > {}\nexec sleep 600\n", begun.display()))).unwrap();
    let program = number_in(&begun).await;
    let JobLeft::Running { shim, .. } = bench.platform.inspect_job(&bench.dir()) else { panic!("not running") };
    kill_process(shim);
    assert_eq!(left(&handle).await, JobLeft::Cut);
    assert_eq!(left(&bench.platform.attach_job(&bench.dir())).await, JobLeft::Cut);
    gone(program).await;
}

#[tokio::test]
async fn shim_and_program_lead_groups_of_their_own() {
    let bench = Bench::new();
    let begun = bench.beside("begun");
    let handle =
        bench.platform.start_job(bench.script(&format!("echo $$ > {}\nexec sleep 600\n", begun.display()))).unwrap();
    let program = number_in(&begun).await;
    let JobLeft::Running { shim, .. } = bench.platform.inspect_job(&bench.dir()) else { panic!("not running") };
    let group_and_session = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<u32> =
            stat.rsplit(") ").next().unwrap().split(' ').skip(2).take(2).map(|f| f.parse().unwrap()).collect();
        (fields[0], fields[1])
    };
    assert_eq!(group_and_session(shim), (shim, shim));
    assert_eq!(group_and_session(program), (program, shim));
    handle.kill().unwrap();
    finished(&handle).await;
}

#[tokio::test]
async fn job_14_a_kill_ends_the_group_and_is_marked() {
    let bench = Bench::new();
    let child = bench.beside("child");
    let text = format!("sh -c 'trap \"\" TERM; echo $$ > {}; while :; do sleep 1; done' &\nwait\n", child.display());
    let handle = bench.platform.start_job(bench.script(&text)).unwrap();
    let child = number_in(&child).await;
    handle.kill().unwrap();
    let (status, ..) = finished(&handle).await;
    assert_eq!((status.ended.clone(), status.cancelled), (Ended::Signalled(9), true));
    assert_eq!(status.verdict(), (End::Failed, Some("cancelled".into())));
    gone(child).await;
    handle.kill().unwrap();
    assert_eq!(finished(&handle).await.0, status, "an end stays");
}

/// However early the kill comes, no program outlives it.
#[tokio::test]
async fn job_14_a_kill_at_once_is_never_lost() {
    for _ in 0..10 {
        let bench = Bench::new();
        let handle = bench.platform.start_job(bench.argv(&["sleep", "600"])).unwrap();
        handle.kill().unwrap();
        let (status, ..) = finished(&handle).await;
        assert!(status.cancelled);
        assert!(matches!(status.ended, Ended::Signalled(9) | Ended::NotStarted(SpawnFault::Cancelled)));
    }
}

#[tokio::test]
async fn job_13_a_folder_starts_once() {
    let bench = Bench::new();
    let count = bench.beside("count");
    let spec = bench.script(&format!("echo x >> {}\n", count.display()));
    bench.run(spec.clone()).await;
    assert!(matches!(bench.platform.start_job(spec.clone()), Err(StartFault::Used(_))));
    // Nor does a second shim run what a first one has claimed.
    let second = Command::new(&spec.shim).arg("shim").arg(bench.dir()).status().unwrap();
    assert_eq!(second.code(), Some(1));
    assert_eq!(fs::read_to_string(&count).unwrap(), "x\n");
}

/// The agent looked, found nothing begun and said so: a shim that comes late must not run the job after all.
#[tokio::test]
async fn job_13_a_start_that_was_given_up_does_not_happen_later() {
    let bench = Bench::new();
    let count = bench.beside("count");
    let mut spec = bench.script(&format!("echo x >> {}\n", count.display()));
    let shim = std::mem::replace(&mut spec.shim, "/no/such/shim".into());
    assert!(matches!(bench.platform.start_job(spec), Err(StartFault::Shim { .. })));
    assert_eq!(bench.platform.inspect_job(&bench.dir()), JobLeft::Cut);
    assert_eq!(Command::new(shim).arg("shim").arg(bench.dir()).status().unwrap().code(), Some(1));
    assert!(!count.exists());
    assert_eq!(bench.platform.inspect_job(&bench.dir()), JobLeft::Cut);
}

#[tokio::test]
async fn a_broken_specification_is_a_status_not_a_hang() {
    let bench = Bench::new();
    fs::create_dir(bench.dir()).unwrap();
    fs::write(bench.dir().join("spec"), b"\xc1 not a specification").unwrap();
    let shim = env!("CARGO_BIN_EXE_branchline-agent");
    assert_eq!(Command::new(shim).arg("shim").arg(bench.dir()).status().unwrap().code(), Some(0));
    let JobLeft::Finished(status, ..) = bench.platform.inspect_job(&bench.dir()) else { panic!("no status") };
    assert!(matches!(status.ended, Ended::NotStarted(SpawnFault::Other(_))));
}
