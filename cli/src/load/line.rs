//! A branch's line to the Internet as it may be: slow, or with packets that come late. It stands before the gateway, on
//! loopback; what is late holds up what is behind it, as TCP does.

use crate::failure::Failure;
use branchline_node::time::{Clock, SystemClock};
use branchline_protocol::time::Mono;
use serde_json::{Value, json};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

/// Bits a second that a line may have.
const RATE: std::ops::RangeInclusive<u64> = 8_000..=10_000_000_000;
/// The longest that anything may be late.
const LATE_MAX: Duration = Duration::from_secs(60);
/// Bytes that are late or not together.
const CHUNK: usize = 16 << 10;
/// Chunks on the way at once in each direction of a connection; who sends more waits.
const CHUNKS: usize = 64;

/// What the line is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Bits a second in each direction, all connections together.
    pub bit_per_s: Option<u64>,
    /// How many chunks of a hundred are late, and by how much.
    pub late: Option<(u8, Duration)>,
}

impl Line {
    /// Whether it does anything.
    pub fn is_some(&self) -> bool {
        self.bit_per_s.is_some() || self.late.is_some()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let (percent, late) = self.late.unzip();
        json!({ "bit_per_s": self.bit_per_s, "late_percent": percent, "late_ms": late.map(|by| by.as_millis()) })
    }

    /// For people.
    pub fn text(&self) -> String {
        let rate = self.bit_per_s.map_or_else(|| "as fast as loopback".into(), |rate| format!("{rate} bit/s each way"));
        let late = self.late.map(|(share, by)| format!(", {share} % of all chunks {} ms late", by.as_millis()));
        format!("branch line: {rate}{}\n", late.unwrap_or_default())
    }
}

/// Reads `10mbit`, `64kbit`, `1gbit`.
pub fn rate(text: &str) -> Result<u64, String> {
    let units = [("kbit", 1_000), ("mbit", 1_000_000), ("gbit", 1_000_000_000)];
    let read = units.iter().find_map(|(unit, times)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(*times));
    let rate =
        read.ok_or_else(|| format!("{text:?} is no rate; write a number and kbit, mbit or gbit, as in 10mbit"))?;
    if RATE.contains(&rate) { Ok(rate) } else { Err("a line has 8kbit to 10gbit".into()) }
}

/// Reads `5%:50ms`.
pub fn late(text: &str) -> Result<(u8, Duration), String> {
    let wrong = || format!("{text:?} is no share and time; write both, as in 5%:50ms");
    let (share, time) = text.split_once("%:").ok_or_else(wrong)?;
    let (share, time) = (share.parse::<u8>().map_err(|_| wrong())?, crate::args::duration(time)?);
    match (1..=100).contains(&share) && time <= LATE_MAX {
        true => Ok((share, time)),
        false => Err("1 to 100 % are late, by 60s at most".into()),
    }
}

/// One direction of the line (pure): when what is sent now comes out, in microseconds.
#[derive(Debug, Default)]
struct Pace {
    free_at: u64,
}

impl Pace {
    /// `chance`: any number, the same chance for each.
    fn sent(&mut self, line: Line, now: u64, bytes: usize, chance: u64) -> u64 {
        let takes = line.bit_per_s.map_or(0, |rate| (bytes as u64 * 8).saturating_mul(1_000_000) / rate.max(1));
        self.free_at = self.free_at.max(now) + takes;
        let late = line.late.filter(|(share, _)| chance % 100 < u64::from(*share));
        self.free_at + late.map_or(0, |(_, by)| by.as_micros() as u64)
    }
}

/// Both directions, and what chance is drawn from.
struct Shared {
    line: Line,
    clock: Arc<dyn Clock>,
    paces: [Mutex<Pace>; 2],
    drawn: AtomicU64,
}

impl Shared {
    fn due(&self, way: usize, bytes: usize) -> Mono {
        // A sequence of its own: which chunks are late has to be nobody's secret, and need not be the same twice.
        let n = self.drawn.fetch_add(1, Ordering::Relaxed);
        let chance = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        let now = self.clock.mono().0 * 1_000;
        let mut pace = self.paces[way].lock().unwrap_or_else(PoisonError::into_inner);
        Mono(pace.sent(self.line, now, bytes, chance).div_ceil(1_000))
    }
}

/// The end of a line that a branch sees, before there is anything at the other.
pub struct End {
    listener: std::net::TcpListener,
    /// Where it is.
    pub address: SocketAddr,
}

impl End {
    /// At any free port of an address.
    pub fn at(ip: IpAddr) -> Result<End, Failure> {
        let fault = |e: io::Error| Failure::ended("no_line", format!("the branch line cannot begin at {ip}: {e}"));
        let listener = std::net::TcpListener::bind((ip, 0)).map_err(fault)?;
        listener.set_nonblocking(true).map_err(fault)?;
        let address = listener.local_addr().map_err(fault)?;
        Ok(End { listener, address })
    }

    /// Lays the line from here to there; it ends with the process.
    pub fn lay(self, line: Line, to: SocketAddr) -> Result<(), Failure> {
        let fault = |e: io::Error| Failure::ended("no_line", format!("the branch line to {to} cannot be laid: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(fault)?;
        let shared = Shared { line, clock: SystemClock::shared(), paces: Default::default(), drawn: AtomicU64::new(0) };
        let thread = std::thread::Builder::new().name("branch-line".into());
        let serves = thread.spawn(move || runtime.block_on(serve(self.listener, to, Arc::new(shared))));
        serves.map(drop).map_err(fault)
    }
}

async fn serve(listener: std::net::TcpListener, to: SocketAddr, shared: Arc<Shared>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        let Ok((from, _)) = listener.accept().await else { continue };
        let shared = shared.clone();
        tokio::spawn(async move {
            // Whose other end is not there hears it by the end of its connection.
            if let Ok(on) = TcpStream::connect(to).await {
                let _ = carry(from, on, shared).await;
            }
        });
    }
}

async fn carry(from: TcpStream, on: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    from.set_nodelay(true)?;
    on.set_nodelay(true)?;
    let ((up_in, down_out), (down_in, up_out)) = (from.into_split(), on.into_split());
    tokio::try_join!(one_way(up_in, up_out, &shared, 0), one_way(down_in, down_out, &shared, 1)).map(drop)
}

async fn one_way<R, W>(mut from: R, mut on: W, shared: &Shared, way: usize) -> io::Result<()>
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    let (send, mut sent) = mpsc::channel::<(Mono, Vec<u8>)>(CHUNKS);
    let read = async move {
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = from.read(&mut buffer).await?;
            if n == 0 || send.send((shared.due(way, n), buffer[..n].to_vec())).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = sent.recv().await {
            tokio::time::sleep(Duration::from_millis(due.since(shared.clock.mono()))).await;
            on.write_all(&bytes).await?;
        }
        on.shutdown().await
    };
    tokio::try_join!(read, write).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_shares_at_their_bounds_pass_and_one_past_them_do_not() {
        for (text, good) in [("8kbit", Ok(8_000)), ("10mbit", Ok(10_000_000)), ("10gbit", Ok(10_000_000_000))] {
            assert_eq!(rate(text), good);
        }
        for text in [
            "7kbit",
            "11gbit",
            "10",
            "mbit",
            "-1mbit",
            "10 mbit",
            "99999999999999999999gbit",
            "18446744073709551615gbit",
        ] {
            assert!(rate(text).is_err(), "{text}");
        }
        assert_eq!(late("1%:1ms"), Ok((1, Duration::from_millis(1))));
        assert_eq!(late("100%:60s"), Ok((100, Duration::from_secs(60))));
        for text in ["0%:1ms", "101%:1ms", "5%", "5:50ms", "5%:61s", "%:1ms", "5%:"] {
            assert!(late(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_slow_line_takes_its_time_for_everybody_and_a_late_chunk_keeps_nobody_else() {
        let line = Line { bit_per_s: Some(8_000_000), late: Some((5, Duration::from_millis(50))) };
        let mut pace = Pace::default();
        assert_eq!(pace.sent(line, 1_000, 1_000, 99), 2_000, "a byte a microsecond");
        assert_eq!(pace.sent(line, 1_500, 1_000, 5), 3_000, "after what was sent before");
        assert_eq!(pace.sent(line, 9_000, 1_000, 4), 60_000, "four of a hundred and less are late");
        assert_eq!(pace.sent(line, 9_000, 1_000, 99), 11_000, "the line itself is free");
        assert_eq!(Pace::default().sent(Line::default(), 7, 1_000_000, 0), 7);
    }

    #[test]
    fn what_the_line_is_like_is_told_with_the_figures() {
        let line = Line { bit_per_s: Some(10_000_000), late: Some((5, Duration::from_millis(50))) };
        assert_eq!(line.text(), "branch line: 10000000 bit/s each way, 5 % of all chunks 50 ms late\n");
        assert_eq!(line.json(), json!({ "bit_per_s": 10_000_000, "late_percent": 5, "late_ms": 50 }));
        assert!(line.is_some() && !Line::default().is_some());
    }

    #[tokio::test]
    async fn bytes_go_through_it_both_ways_in_order() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = echo.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = echo.accept().await.unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        });
        let line = Line { bit_per_s: Some(100_000_000), late: Some((50, Duration::from_millis(3))) };
        let end = End::at(to.ip()).unwrap();
        let address = end.address;
        end.lay(line, to).unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let sent: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let (mut read, mut write) = stream.split();
        let mut got = vec![0; sent.len()];
        let (wrote, heard) = tokio::join!(write.write_all(&sent), read.read_exact(&mut got));
        wrote.unwrap();
        heard.unwrap();
        assert!(got == sent, "the same bytes in the same order");
    }
}
