//! Leads a process full of agents: lets them dial together, asks for drills.

use super::drill::{LIMIT, Report};
use crate::failure::Failure;
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// A drill bounds each of its steps; one that has not answered after all of them never will.
const ANSWER_WITHIN: Duration = Duration::from_secs(4 * LIMIT.as_secs());

/// See the module.
pub struct Leader {
    listener: TcpListener,
    host: Option<Lines<BufReader<TcpStream>>>,
}

impl Leader {
    /// Waits for a host on loopback.
    pub async fn listen() -> Result<Leader, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|e| gone(&e))?;
        Ok(Leader { listener, host: None })
    }

    /// Where a host finds it.
    pub fn address(&self) -> Result<SocketAddr, Failure> {
        self.listener.local_addr().map_err(|e| gone(&e))
    }

    /// Waits for the host's word that all its agents are enrolled. To be cut at any time, and called again.
    pub async fn met(&mut self) -> Result<(), Failure> {
        let lines = match &mut self.host {
            Some(lines) => lines,
            none => none.insert(BufReader::new(self.listener.accept().await.map_err(|e| gone(&e))?.0).lines()),
        };
        match lines.next_line().await.map_err(|e| gone(&e))? {
            Some(line) if line.ends_with(" ready") => Ok(()),
            other => Err(gone(&io::Error::other(format!("it said {other:?}")))),
        }
    }

    /// All agents may dial.
    pub async fn go(&mut self) -> Result<(), Failure> {
        self.say("go").await
    }

    /// Has the agents do it, and returns what came of it.
    pub async fn drill(&mut self, words: &str) -> Result<Report, Failure> {
        self.say(words).await?;
        let lines = self.host.as_mut().ok_or_else(unmet)?;
        let late = |_| gone(&io::Error::other(format!("{words}: no answer")));
        let line = timeout(ANSWER_WITHIN, lines.next_line()).await.map_err(late)?.map_err(|e| gone(&e))?;
        let line = line.ok_or_else(|| gone(&io::Error::other("it ended")))?;
        serde_json::from_str(&line).map_err(|e| gone(&io::Error::other(e)))
    }

    async fn say(&mut self, words: &str) -> Result<(), Failure> {
        let lines = self.host.as_mut().ok_or_else(unmet)?;
        lines.get_mut().write_all(format!("{words}\n").as_bytes()).await.map_err(|e| gone(&e))
    }
}

fn unmet() -> Failure {
    Failure::ended("internal", "nobody is led yet")
}

fn gone(error: &io::Error) -> Failure {
    Failure::ended("not_led", format!("the agents' process cannot be led: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_host_is_met_led_and_asked() {
        let mut leader = Leader::listen().await.unwrap();
        assert_eq!(leader.drill("storm").await.unwrap_err().code, "internal");
        let address = leader.address().unwrap();
        let host = tokio::spawn(async move {
            let mut lines = BufReader::new(TcpStream::connect(address).await.unwrap()).lines();
            lines.get_mut().write_all(b"agents ready\n").await.unwrap();
            let mut heard = Vec::new();
            while let Some(line) = lines.next_line().await.unwrap() {
                heard.push(line);
                if heard.len() == 2 {
                    let report = serde_json::to_string(&Report { missing: 3, ..Report::default() }).unwrap();
                    lines.get_mut().write_all(format!("{report}\n").as_bytes()).await.unwrap();
                }
                if heard.len() == 3 {
                    break;
                }
            }
            heard
        });
        leader.met().await.unwrap();
        leader.go().await.unwrap();
        assert_eq!(leader.drill("storm 7").await.unwrap().missing, 3);
        assert_eq!(leader.drill("collect").await.unwrap_err().code, "not_led", "it ended instead of answering");
        assert_eq!(host.await.unwrap(), ["go", "storm 7", "collect"]);
    }
}
