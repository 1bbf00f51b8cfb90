//! How a host is led by who started it: over one connection, in lines of text. The host says `NAME ready` when all its
//! agents are enrolled and wait with open stores; `go` lets all of them dial; `stop AGENT` ends one of them.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::{Notify, watch},
};

/// What was said so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The agents may dial.
    pub go: bool,
    /// These are to stop.
    pub stop: BTreeSet<String>,
}

/// What an agent waits by.
#[derive(Clone)]
pub struct Control {
    said: watch::Receiver<Said>,
    waiting: Arc<(AtomicUsize, Notify)>,
}

impl Control {
    /// Led by whoever listens there; by nobody without an address, and then everything goes at once. `name` and `agents`:
    /// of the host, and how many it has.
    pub fn start(leader: Option<SocketAddr>, name: String, agents: usize) -> Control {
        let (say, said) = watch::channel(Said { go: leader.is_none(), ..Said::default() });
        let waiting: Arc<(AtomicUsize, Notify)> = Arc::default();
        if let Some(leader) = leader {
            let waiting = waiting.clone();
            actix_rt::spawn(async move {
                if let Err(error) = led(leader, &name, agents, &waiting, &say).await {
                    tracing::warn!(%error, %leader, "nobody leads this host any more");
                }
                // What was said last stays true.
                say.closed().await;
            });
        }
        Control { said, waiting }
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

    /// Returns who is to stop, whenever somebody more is.
    pub async fn stops(&mut self) -> BTreeSet<String> {
        if self.said.changed().await.is_err() {
            return std::future::pending().await;
        }
        self.said.borrow_and_update().stop.clone()
    }
}

async fn led(
    leader: SocketAddr,
    name: &str,
    agents: usize,
    waiting: &(AtomicUsize, Notify),
    say: &watch::Sender<Said>,
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
            _ => return Err(io::Error::other(format!("{line:?} is nothing that a host does"))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[actix_rt::test]
    async fn a_host_waits_for_all_its_agents_and_for_the_word() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control = Control::start(Some(listener.local_addr().unwrap()), "a".into(), 2);
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
        assert_eq!(control.stops().await, BTreeSet::new());
        stream.write_all(b"stop pc-1\n").await.unwrap();
        assert_eq!(control.stops().await, BTreeSet::from(["pc-1".to_owned()]));
    }

    #[actix_rt::test]
    async fn without_a_leader_nobody_waits() {
        Control::start(None, "a".into(), 9).may_go().await;
    }
}
