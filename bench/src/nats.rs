//! NATS: a hub, a leaf node below it, clients below the leaf, all over TLS. The same shape as server, relay and agents, with
//! nothing signed and nothing stored.

use crate::{
    Outcome,
    certs::{Certs, localhost},
    daemon::{Daemon, free_port, local},
    machine,
    stats::Sample,
};
use std::{path::Path, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Bytes of an order, and of an answer.
const ORDER: usize = 256;
const ANSWER: usize = 512;
/// What takes longer is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rounds that are not measured.
const WARM_UP: u64 = 20;

/// Hub and leaf.
pub struct Nats {
    hub: Daemon,
    leaf: Daemon,
    hub_port: u16,
    leaf_port: u16,
    connector: TlsConnector,
}

/// What a question to all comes to.
pub struct FanOut {
    /// Milliseconds of each round.
    pub ms: Sample,
    /// Seconds of CPU of hub and leaf for a thousand answers.
    pub cpu_s_per_1000: f64,
    /// KiB RSS that the leaf had grown by for a client after the load.
    pub rss_kib_per_link: f64,
}

impl Nats {
    /// Starts both.
    pub fn start(certs: &Certs, folder: &Path) -> Outcome<Nats> {
        let (hub_port, leaf_port, joint) = (free_port()?, free_port()?, free_port()?);
        let tls = |timeout: u32| {
            format!(
                "tls {{ cert_file: '{}', key_file: '{}', ca_file: '{}', timeout: {timeout} }}",
                certs.chain.display(),
                certs.key.display(),
                certs.ca.display()
            )
        };
        let common = |name: &str, port: u16| {
            format!("server_name: {name}\nlisten: 127.0.0.1:{port}\nmax_connections: 20000\n{}\n", tls(10))
        };
        let hub = common("hub", hub_port) + &format!("leafnodes {{ listen: 127.0.0.1:{joint}, {} }}\n", tls(10));
        let remote = format!("{{ url: 'tls://localhost:{joint}', {} }}", tls(10));
        let leaf = common("leaf", leaf_port) + &format!("leafnodes {{ remotes = [ {remote} ] }}\n");
        let start = |name: &str, text: String, ports: &[u16]| -> Outcome<Daemon> {
            let file = folder.join(format!("nats-{name}.conf"));
            std::fs::write(&file, text)?;
            Daemon::start("nats-server", &["-c", &file.display().to_string()], folder, ports)
        };
        let hub = start("hub", hub, &[hub_port, joint])?;
        let leaf = start("leaf", leaf, &[leaf_port])?;
        Ok(Nats { hub, leaf, hub_port, leaf_port, connector: certs.connector(false)? })
    }

    async fn client(&self, port: u16) -> Outcome<Client> {
        Client::open(&self.connector, port).await
    }

    /// KiB that the leaf grew by for each of so many subscribed clients that are idle, RSS and PSS.
    pub async fn idle(&self, clients: usize) -> Outcome<(f64, f64)> {
        let before = machine::read(&self.leaf.pids());
        let open = self.subscribed(clients).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = machine::read(&self.leaf.pids());
        drop(open);
        Ok(after.grown_kib(&before, clients))
    }

    async fn subscribed(&self, clients: usize) -> Outcome<Vec<Client>> {
        let mut open = Vec::new();
        for _ in 0..clients {
            let mut client = self.client(self.leaf_port).await?;
            client.say(b"SUB job.run 1\r\nPING\r\n").await?;
            client.until_pong().await?;
            open.push(client);
        }
        Ok(open)
    }

    /// A question to so many clients below the leaf, again and again.
    pub async fn fan_out(&self, clients: usize, rounds: u64) -> Outcome<FanOut> {
        let before = machine::read(&self.leaf.pids());
        let open = self.subscribed(clients).await?;
        let answering: Vec<_> = open.into_iter().map(|client| tokio::spawn(client.answers_for_ever())).collect();
        let mut ask = self.client(self.hub_port).await?;
        ask.say(b"SUB inbox.* 1\r\nPING\r\n").await?;
        ask.until_pong().await?;
        // The subscription has to reach the leaf before the first question does.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut times = Vec::new();
        let mut begun = machine::Reading::default();
        let pids = [self.hub.pids(), self.leaf.pids()].concat();
        for round in 0..WARM_UP + rounds {
            if round == WARM_UP {
                begun = machine::read(&pids);
            }
            let question = format!("PUB job.run inbox.{round} {ORDER}\r\n{}\r\n", "q".repeat(ORDER));
            let from = Instant::now();
            ask.say(question.as_bytes()).await?;
            timeout(PATIENCE, ask.messages(clients)).await??;
            if round >= WARM_UP {
                times.push(from.elapsed().as_secs_f64() * 1_000.0);
            }
        }
        let ended = machine::read(&pids);
        let loaded = machine::read(&self.leaf.pids());
        answering.iter().for_each(|task| task.abort());
        Ok(FanOut {
            ms: Sample::of(times),
            cpu_s_per_1000: (ended.cpu_s - begun.cpu_s) * 1_000.0 / (rounds as f64 * clients as f64),
            rss_kib_per_link: loaded.grown_kib(&before, clients).0,
        })
    }

    /// Seconds until so many clients have brought `each` answers of 512 bytes to one subscriber at the hub.
    pub async fn gather(&self, clients: usize, each: usize) -> Outcome<(f64, f64)> {
        let mut all = self.client(self.hub_port).await?;
        all.say(b"SUB result 1\r\nPING\r\n").await?;
        all.until_pong().await?;
        let mut open = Vec::new();
        for _ in 0..clients {
            open.push(self.client(self.hub_port).await?);
        }
        let answer = format!("PUB result {ANSWER}\r\n{}\r\n", "r".repeat(ANSWER)).into_bytes();
        let (begun, from) = (machine::read(&self.hub.pids()), Instant::now());
        let sending: Vec<_> = open
            .into_iter()
            .map(|mut client| {
                let answer = answer.clone();
                tokio::spawn(async move {
                    for _ in 0..each {
                        if client.say(&answer).await.is_err() {
                            break;
                        }
                    }
                    client
                })
            })
            .collect();
        timeout(PATIENCE, all.messages(clients * each)).await??;
        let took = from.elapsed().as_secs_f64();
        let cpu = machine::read(&self.hub.pids()).cpu_s - begun.cpu_s;
        for task in sending {
            task.await?;
        }
        Ok((took, cpu))
    }
}

/// A client that speaks the text protocol.
struct Client {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

impl Client {
    async fn open(connector: &TlsConnector, port: u16) -> Outcome<Client> {
        let mut tcp = TcpStream::connect(local(port)).await?;
        tcp.set_nodelay(true)?;
        // The server says who it is in the clear, then both turn to TLS.
        while tcp.read_u8().await? != b'\n' {}
        let stream = connector.connect(localhost(), tcp).await?;
        let mut client = Client { stream, buffer: Vec::new() };
        client
            .say(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"bench\",\"version\":\"1\"}\r\nPING\r\n")
            .await?;
        client.until_pong().await?;
        Ok(client)
    }

    async fn say(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    async fn hear(&mut self) -> Outcome<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err("NATS closed the connection".into()),
            _ => Ok(()),
        }
    }

    async fn until_pong(&mut self) -> Outcome<()> {
        while !self.buffer.ends_with(b"PONG\r\n") {
            timeout(PATIENCE, self.hear()).await??;
        }
        self.buffer.clear();
        Ok(())
    }

    /// What has come whole, and how many bytes it takes; answers go to the last word of each line but one.
    fn whole(&self) -> (Vec<Option<String>>, usize) {
        let (mut found, mut at) = (Vec::new(), 0);
        while let Some(end) = self.buffer[at..].windows(2).position(|two| two == b"\r\n") {
            let line = String::from_utf8_lossy(&self.buffer[at..at + end]).into_owned();
            let mut words = line.split(' ');
            if words.next() != Some("MSG") {
                at += end + 2;
                continue;
            }
            let words: Vec<&str> = words.collect();
            let bytes: usize = words.last().and_then(|word| word.parse().ok()).unwrap_or(0);
            if self.buffer.len() < at + end + 2 + bytes + 2 {
                break;
            }
            found.push((words.len() == 4).then(|| words[2].to_owned()));
            at += end + 2 + bytes + 2;
        }
        (found, at)
    }

    async fn messages(&mut self, wanted: usize) -> Outcome<()> {
        let mut got = 0;
        while got < wanted {
            self.hear().await?;
            let (found, taken) = self.whole();
            got += found.len();
            self.buffer.drain(..taken);
        }
        Ok(())
    }

    async fn answers_for_ever(mut self) {
        let answer = "r".repeat(ANSWER);
        while self.hear().await.is_ok() {
            let (found, taken) = self.whole();
            self.buffer.drain(..taken);
            let mut out = String::new();
            for inbox in found.into_iter().flatten() {
                out += &format!("PUB {inbox} {ANSWER}\r\n{answer}\r\n");
            }
            if !out.is_empty() && self.say(out.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}
