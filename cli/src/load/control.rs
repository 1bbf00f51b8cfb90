//! How a host is led by who started it: over one connection, in lines of text. The host says `NAME ready` when all its
//! agents are enrolled and wait with open stores; `go` lets all of them dial; `stop AGENT` ends one of them.
//! `storm`, `storm RATE`, `first`, `collect` and `collect changed` are drills: each is answered with a line of JSON when
//! it is over.

use super::drill::{self, Report, Task};
use branchline_agent::platform::Wand;
use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::{Notify, mpsc, watch},
};

/// What was said so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The agents may dial.
    pub go: bool,
    /// These are to stop.
    pub stop: BTreeSet<String>,
    /// The newest drill with its number, and when it was asked for.
    pub drill: Option<(u64, Task, Instant)>,
}

/// What an agent waits by.
#[derive(Clone)]
pub struct Control {
    said: watch::Receiver<Said>,
    waiting: Arc<(AtomicUsize, Notify)>,
    reports: mpsc::Sender<Report>,
}

impl Control {
    /// Led by whoever listens there; by nobody without an address, and then everything goes at once. `name` and `agents`:
    /// of the host, and how many it has; `hands`: how many report after a drill; `wand`: of its devices.
    pub fn start(
        leader: Option<SocketAddr>,
        name: String,
        (agents, hands): (usize, usize),
        wand: Arc<Wand>,
    ) -> Control {
        let (say, said) = watch::channel(Said { go: leader.is_none(), ..Said::default() });
        let waiting: Arc<(AtomicUsize, Notify)> = Arc::default();
        let (reports, reported) = mpsc::channel(hands.max(1));
        if let Some(leader) = leader {
            let waiting = waiting.clone();
            actix_rt::spawn(async move {
                if let Err(error) = led(leader, &name, agents, &waiting, &say, (reported, hands, wand)).await {
                    tracing::warn!(%error, %leader, "nobody leads this host any more");
                }
                // What was said last stays true.
                say.closed().await;
            });
        }
        Control { said, waiting, reports }
    }

    /// One agent more is ready; returns when it may dial.
    pub async fn may_go(mut self) {
        self.waiting.0.fetch_add(1, Ordering::SeqCst);
        self.waiting.1.notify_one();
        if self.said.wait_for(|said| said.go).await.is_err() {
            // Whoever held the word is gone, and the host with it.
            std::future::pending().await
        }
    }

    /// Tells what came of the newest drill.
    pub async fn report(&self, report: Report) {
        // Without a leader nobody asked.
        let _ = self.reports.send(report).await;
    }

    /// Returns what was said so far, whenever that is more.
    pub async fn said(&mut self) -> Said {
        if self.said.changed().await.is_err() {
            return std::future::pending().await;
        }
        self.said.borrow_and_update().clone()
    }
}

async fn led(
    leader: SocketAddr,
    name: &str,
    agents: usize,
    waiting: &(AtomicUsize, Notify),
    say: &watch::Sender<Said>,
    (mut reported, hands, wand): (mpsc::Receiver<Report>, usize, Arc<Wand>),
) -> io::Result<()> {
    let mut stream = BufReader::new(TcpStream::connect(leader).await?);
    while waiting.0.load(Ordering::SeqCst) < agents {
        waiting.1.notified().await;
    }
    stream.write_all(format!("{name} ready\n").as_bytes()).await?;
    let mut lines = stream.lines();
    while let Some(line) = lines.next_line().await? {
        match line.split_once(' ') {
            None if line == "go" => say.send_modify(|said| said.go = true),
            Some(("stop", agent)) => say.send_modify(|said| {
                said.stop.insert(agent.to_owned());
            }),
            _ => {
                let task =
                    task(&line).ok_or_else(|| io::Error::other(format!("{line:?} is nothing that a host does")))?;
                match line.as_str() {
                    "first" => wand.open(),
                    "collect changed" => wand.change(),
                    _ => {}
                }
                say.send_modify(|said| {
                    let number = said.drill.map_or(0, |(number, ..)| number) + 1;
                    said.drill = Some((number, task, drill::now()));
                });
                let mut whole = Report::default();
                for _ in 0..hands {
                    let part = reported.recv().await.ok_or_else(|| io::Error::other("an arbiter is gone"))?;
                    whole = whole.merge(part);
                }
                let text = serde_json::to_string(&whole).map_err(io::Error::other)?;
                lines.get_mut().write_all(format!("{text}\n").as_bytes()).await?;
            }
        }
    }
    Ok(())
}

fn task(line: &str) -> Option<Task> {
    match line.split_once(' ') {
        None if line == "storm" => Some(Task::Storm { per_second: None }),
        Some(("storm", rate)) => Some(Task::Storm { per_second: Some(rate.parse().ok()?) }),
        None if line == "first" => Some(Task::First),
        None if line == "collect" => Some(Task::Collect),
        Some(("collect", "changed")) => Some(Task::Collect),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[actix_rt::test]
    async fn a_host_waits_for_all_its_agents_and_for_the_word() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control = Control::start(Some(listener.local_addr().unwrap()), "a".into(), (2, 2), Wand::closed());
        let first = actix_rt::spawn(control.clone().may_go());
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        assert!(!first.is_finished());
        let second = actix_rt::spawn(control.clone().may_go());
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(line, "a ready\n");
        assert!(!first.is_finished() && !second.is_finished(), "nobody has said go");
        let mut control = control;
        stream.write_all(b"go\n").await.unwrap();
        first.await.unwrap();
        second.await.unwrap();
        assert_eq!(control.said().await.stop, BTreeSet::new());
        stream.write_all(b"stop pc-1\n").await.unwrap();
        assert_eq!(control.said().await.stop, BTreeSet::from(["pc-1".to_owned()]));
        stream.write_all(b"storm 5\n").await.unwrap();
        let (number, task, _) = control.said().await.drill.unwrap();
        assert_eq!((number, task), (1, Task::Storm { per_second: Some(5) }));
        for missing in [1, 2] {
            control.report(Report { missing, ..Report::default() }).await;
        }
        line.clear();
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(serde_json::from_str::<Report>(&line).unwrap().missing, 3, "one report of both arbiters");
    }

    #[test]
    fn only_what_a_host_does_is_a_drill() {
        for line in ["", "storm x", "storm -1", "storm 4294967296", "first 1", "collect all", "storms", "go on"] {
            assert_eq!(task(line), None, "{line}");
        }
        assert_eq!(task("storm"), Some(Task::Storm { per_second: None }));
        assert_eq!((task("first"), task("collect")), (Some(Task::First), Some(Task::Collect)));
        assert_eq!(task("collect changed"), Some(Task::Collect));
    }

    #[actix_rt::test]
    async fn without_a_leader_nobody_waits() {
        Control::start(None, "a".into(), (9, 1), Wand::closed()).may_go().await;
    }
}
