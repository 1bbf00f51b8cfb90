//! A TCP proxy that misbehaves on command, for any link between two nodes of this machine.
//!
//! ```text
//! child ──► listener ──► reader ─► bounded queue ─► writer ──► parent        each direction by itself
//!                          │ hold: nothing is read    │ throttle, reset after n bytes, late by a delay
//! ```
//!
//! It dials on from the address it was dialled from, so that the parent sees the same peer as without it.

mod carry;
mod rules;
#[cfg(test)]
mod tests;

pub use carry::Cut;
pub use rules::{Flow, Way, Whom};

use rules::Rules;
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{oneshot, watch},
};

/// Connections at once; more are reset.
const OPEN_MAX: usize = 1_024;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 256;
/// Dialling on within one machine answers at once or never.
const DIAL: Duration = Duration::from_secs(5);
/// How long a change of the listener may take.
const LISTENER: Duration = Duration::from_secs(10);

/// What passed and what did not, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Connections that reached the parent.
    pub carried: u64,
    /// Connections that came while the parent could not be reached.
    pub unanswered: u64,
    /// Connections open now.
    pub open: usize,
    /// Bytes passed on to the parent.
    pub up: u64,
    /// Bytes passed on to whoever dialled.
    pub down: u64,
}

/// Each open connection: whose it is, and how to end it.
type Open = BTreeMap<u64, (IpAddr, oneshot::Sender<Cut>)>;

struct Shared {
    target: SocketAddr,
    rules: watch::Sender<Rules>,
    /// Whether new connections are to be taken, and whether the listener is there.
    wanted: watch::Sender<bool>,
    listens: AtomicBool,
    open: Mutex<Open>,
    carried: AtomicU64,
    unanswered: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running proxy; dropping it resets what it carries.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens at `listen` (port 0: any) and carries to `target`, which need not be there yet.
    pub fn start(listen: SocketAddr, target: SocketAddr) -> io::Result<Proxy> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _context = runtime.enter();
            bind(listen)?
        };
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target,
            rules: watch::Sender::new(Rules::default()),
            wanted: watch::Sender::new(true),
            listens: AtomicBool::new(true),
            open: Mutex::default(),
            carried: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
        });
        let (stop, stopped) = oneshot::channel();
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("proxy".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! { () = serve(address, listener, of_thread) => {}, _ = stopped => {} }
            });
        })?;
        Ok(Proxy { address, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What happens from now on, to open and to new connections.
    pub fn flow(&self, whom: Whom, way: Way, flow: Flow) {
        self.shared.rules.send_modify(|rules| rules.set(whom, way, flow));
    }

    /// The same in both directions.
    pub fn both(&self, whom: Whom, flow: Flow) {
        self.shared.rules.send_modify(|rules| {
            rules.set(whom, Way::Up, flow);
            rules.set(whom, Way::Down, flow);
        });
    }

    /// Takes the rules of these back.
    pub fn pass(&self, whom: Whom) {
        self.shared.rules.send_modify(|rules| rules.clear(whom));
    }

    /// Ends open connections; how many there were. New ones are taken as before.
    pub fn cut(&self, whom: Whom, how: Cut) -> usize {
        let mut open = self.shared.open();
        let meant: Vec<u64> = open.iter().filter(|(_, (source, _))| whom.is(*source)).map(|(n, _)| *n).collect();
        meant.iter().filter_map(|n| open.remove(n)).filter_map(|(_, end)| end.send(how).ok()).count()
    }

    /// Whether new connections are refused, as by a machine on which nothing listens. Open ones stay.
    pub fn refuse(&self, refuse: bool) {
        self.shared.wanted.send_replace(!refuse);
        for _ in 0..LISTENER.as_millis() {
            if self.shared.listens.load(Ordering::SeqCst) != refuse {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the proxy at {} cannot change its listener", self.address);
    }

    /// Connections open now from `whom`.
    pub fn open(&self, whom: Whom) -> usize {
        self.shared.open().values().filter(|(source, _)| whom.is(*source)).count()
    }

    /// Its counts.
    pub fn figures(&self) -> Figures {
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let Shared { carried, unanswered, up, down, .. } = &*self.shared;
        let open = self.shared.open().len();
        Figures { carried: count(carried), unanswered: count(unanswered), open, up: count(up), down: count(down) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of an earlier listener may still be on their way out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn serve(address: SocketAddr, first: TcpListener, shared: Arc<Shared>) {
    let mut wanted = shared.wanted.subscribe();
    let mut listener = Some(first);
    let mut next = 0;
    loop {
        let wish = *wanted.borrow_and_update();
        match (&listener, wish) {
            (Some(_), false) => {
                listener = None;
                shared.listens.store(false, Ordering::SeqCst);
            }
            (Some(listener), true) => {
                tokio::select! {
                    accepted = listener.accept() => {
                        if let Ok((stream, peer)) = accepted {
                            next += 1;
                            tokio::spawn(connection(next, stream, peer.ip(), shared.clone()));
                        }
                    }
                    _ = wanted.changed() => {}
                }
            }
            (None, true) => match bind(address) {
                Ok(again) => {
                    listener = Some(again);
                    shared.listens.store(true, Ordering::SeqCst);
                }
                // Another socket may have the port for a moment; `Proxy::refuse` bounds the wait.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
            (None, false) => {
                let _ = wanted.changed().await;
            }
        }
    }
}

async fn connection(number: u64, child: TcpStream, source: IpAddr, shared: Arc<Shared>) {
    let (end, cut) = oneshot::channel();
    let room = {
        let mut open = shared.open();
        let room = open.len() < OPEN_MAX;
        if room {
            open.insert(number, (source, end));
        }
        room
    };
    let parent = match room {
        true => tokio::time::timeout(DIAL, dial(source, shared.target)).await.ok().and_then(Result::ok),
        false => None,
    };
    match parent {
        Some(parent) => {
            shared.carried.fetch_add(1, Ordering::Relaxed);
            carry::carry(child, parent, source, &shared, cut).await;
        }
        None => {
            shared.unanswered.fetch_add(1, Ordering::Relaxed);
            let _ = child.set_zero_linger();
        }
    }
    shared.open().remove(&number);
}

async fn dial(source: IpAddr, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind((source, 0).into())?;
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
