//! Floods of datagrams that do not hold: 50,000 a second at a device and at its parents. Nobody answers, nobody does
//! anything for them, and what does hold is heard meanwhile.

use super::{MAIN, SHIM, wakes};
use branchline_node::time::{Clock, SystemClock};
use branchline_protocol::datagram::DatagramKey;
use branchline_tests::tree::{RelayWish, Tree, eventually, holds, platform, scenario};
use serde_json::Value;
use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

const PER_S: u64 = 50_000;
const FLOOD_MS: u64 = 10_000;
/// Within so long what holds is served in a flood: a wake has three copies, a second apart, and a device polls once in 5 s.
const SERVED_MS: u64 = 8_000;

/// One flood at a time: two would measure each other.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that sends the same datagram, as many as the time that has passed demands.
struct Flood {
    ends: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<(u64, u64, Result<usize, ErrorKind>)>,
    clock: Arc<dyn Clock>,
    begun: u64,
    cpu: u64,
}

/// What became of one.
struct Flooded {
    sent: u64,
    ms: u64,
    cpu_ms: u64,
}

impl Flood {
    fn begin(bytes: Vec<u8>, to: SocketAddr) -> Flood {
        let (ends, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let bytes = Arc::new(Mutex::new(bytes));
        let (until, counted, shared) = (ends.clone(), sent.clone(), bytes.clone());
        let thread = std::thread::spawn(move || {
            let (socket, clock) = (UdpSocket::bind("127.0.0.1:0").unwrap(), SystemClock::shared());
            let (begun, mut sent) = (clock.mono(), 0);
            while !until.load(Ordering::Relaxed) {
                let bytes = shared.lock().unwrap().clone();
                let due = clock.mono().since(begun) * PER_S / 1_000;
                while sent < due {
                    socket.send_to(&bytes, to).expect("loopback takes every datagram");
                    sent += 1;
                }
                counted.store(sent, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(500));
            }
            let ms = clock.mono().since(begun);
            socket.set_nonblocking(true).unwrap();
            (sent, ms, socket.recv(&mut [0; 1]).map_err(|e| e.kind()))
        });
        let clock = SystemClock::shared();
        let (begun, cpu) = (clock.mono().0, thread_cpu_ms());
        Flood { ends, sent, bytes, thread, clock, begun, cpu }
    }

    fn turns_to(&self, bytes: Vec<u8>) {
        *self.bytes.lock().unwrap() = bytes;
    }

    fn ms(&self) -> u64 {
        self.clock.mono().0 - self.begun
    }

    /// Goes on until so many milliseconds after its beginning.
    async fn lasts(&self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms.saturating_sub(self.ms()))).await;
        assert!(self.sent.load(Ordering::Relaxed) > 0, "it is under way");
    }

    /// Ends; nothing was answered, and all of it was sent. The machine may be too small to send it in time, and says so.
    fn end(self) -> Flooded {
        let cpu_ms = thread_cpu_ms() - self.cpu;
        self.ends.store(true, Ordering::Relaxed);
        let (sent, ms, answer) = self.thread.join().expect("the flood ended");
        assert_eq!(answer, Err(ErrorKind::WouldBlock), "something was answered");
        assert!(sent * 1_000 / ms >= PER_S * 9 / 10, "{sent} in {ms} ms: was there a flood?");
        Flooded { sent, ms, cpu_ms }
    }
}

impl Flooded {
    fn print(&self, what: &str, heard: u64, more: &str) {
        println!(
            "{} {what} in {} ms, {} a second, {heard} of them heard ({} %); the thread of server, relay and device took \
             {} ms of CPU, {} % of a core; {more}",
            self.sent,
            self.ms,
            self.sent * 1_000 / self.ms,
            heard * 100 / self.sent,
            self.cpu_ms,
            self.cpu_ms * 100 / self.ms
        );
    }
}

/// CPU time of this thread, in milliseconds: all nodes of a scenario share it.
fn thread_cpu_ms() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    #[allow(unsafe_code)]
    // SAFETY: it writes the struct it is given, which lives through the call.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(done, 0);
    time.tv_sec as u64 * 1_000 + time.tv_nsec as u64 / 1_000_000
}

#[test]
fn s_14_adm_16_ten_seconds_of_50_000_bad_wakes_are_answered_by_nothing_and_every_good_one_is_served() {
    let _alone = alone();
    scenario(async {
        let tree = wakes::below_a_relay(true).await;
        let mut links = wakes::asleep(&tree).await;
        let (to, key, clock) = (wakes::port(&tree), wakes::newest(&tree), SystemClock::shared());
        let (quiet, cpu) = (clock.mono(), thread_cpu_ms());
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        let idle = (thread_cpu_ms() - cpu) * 100 / clock.mono().since(quiet);
        // The worst a stranger can send: everything is right but the seal, so that each is looked at to the end.
        let bad = wakes::wake(&tree, &key, u64::MAX).seal(&DatagramKey([1; 32]));
        let flood = Flood::begin(bad.to_vec(), to);
        flood.lasts(2_000).await;
        assert_eq!(wakes::links(&tree), links, "nobody polled for them");
        let mut took = Vec::new();
        // Each order is a wake of the parent's, to a device that sleeps. After its poll it has another link's key, and the
        // flood is for that one from there on.
        for _ in 0..2 {
            let ordered = clock.mono();
            let job = wakes::refresh(&tree).await;
            eventually("it polls", async || holds(wakes::links(&tree) > links, wakes::links(&tree))).await;
            let job = tree.completed(MAIN, &job).await;
            assert_eq!(job["counts"]["succeeded"], 1, "{job}");
            took.push(clock.mono().since(ordered));
            assert!(took.iter().all(|ms| *ms <= SERVED_MS), "ordered in the flood and done after {took:?} ms");
            links = wakes::asleep(&tree).await;
            flood.turns_to(wakes::wake(&tree, &wakes::newest(&tree), u64::MAX).seal(&DatagramKey([1; 32])).to_vec());
        }
        flood.lasts(FLOOD_MS).await;
        assert_eq!(wakes::links(&tree), links, "and nobody polled for the others");
        let flooded = flood.end();
        let refused = ["bad_seal", "other_link", "over_rate"].map(|why| wakes::count(&tree, why));
        let heard = refused.iter().sum::<u64>();
        flooded.print("bad wakes", heard, &format!("{idle} % without them; two orders done after {took:?} ms"));
        assert!(refused[0] > 0 && heard >= flooded.sent / 10, "{refused:?} of {}: was there a flood?", flooded.sent);
        tree.stop().await;
    });
}

async fn device(tree: &Tree, name: &str) -> Value {
    tree.devices(MAIN).await.remove(name).unwrap_or_default()
}

async fn notices(tree: &Tree, node: &str, result: &str) -> f64 {
    tree.metric(node, "branchline_notices_total", &format!("\"{result}\"")).await
}

/// A flood of notices for `still` at its parent; meanwhile `leaves` goes, and only its notices say so: sent by hand, they
/// end the link that they name, and the device comes back on another.
async fn notices_at(tree: &mut Tree, parent: &str, still: &str, leaves: &str, ms: u64) {
    let (to, mut bad) = tree.running(still).notice(u64::MAX).expect("its parent hears notices");
    *bad.last_mut().expect("a datagram") ^= 1;
    let (_, good) = tree.running(leaves).notice(1).expect("the same parent");
    let links = |name: &str| tree.running(name).figures().borrow().attachment;
    let before = (links(still), links(leaves), notices(tree, parent, "taken").await);
    let flood = Flood::begin(bad, to);
    flood.lasts(ms / 4).await;
    assert_eq!((links(still), links(leaves)), (before.0, before.1), "nobody lost a link by them");
    let clock = SystemClock::shared();
    let said = clock.mono();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    // As the device says it: three times, each with its own number.
    for counter in 1..=3 {
        let bytes = if counter == 1 {
            good.clone()
        } else {
            tree.running(leaves).notice(counter).map_or(good.clone(), |n| n.1)
        };
        socket.send_to(&bytes, to).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eventually("its notice is taken", async || {
        let taken = notices(tree, parent, "taken").await;
        holds(taken > before.2, taken)
    })
    .await;
    let took = clock.mono().since(said);
    assert!(took <= 2_000, "ADM-18: taken after {took} ms");
    eventually("its link ended by it, and it came again", async || {
        let pc = device(tree, leaves).await;
        holds(links(leaves) > before.1 && pc["state"] == "online", pc)
    })
    .await;
    flood.lasts(ms).await;
    assert_eq!(links(still), before.0, "{still} kept its link");
    let flooded = flood.end();
    assert_eq!(device(tree, still).await["state"], "online");
    let (sealed, over) = (notices(tree, parent, "bad_seal").await, notices(tree, parent, "over_rate").await);
    let heard = (sealed + over) as u64;
    flooded.print(&format!("bad notices at {parent}"), heard, &format!("a good one taken after {took} ms"));
    assert!(sealed > 0.0 && heard >= flooded.sent / 10, "{heard} of {}: was there a flood?", flooded.sent);
}

#[test]
fn s_13_adm_18_a_flood_of_bad_notices_is_answered_by_nothing_ends_no_link_and_a_good_one_is_taken() {
    let _alone = alone();
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.relay(MAIN, "osaka", "server", RelayWish::default()).await;
        for (n, (name, parent)) in
            [("pc-1", "osaka"), ("pc-2", "osaka"), ("pc-3", "server"), ("pc-4", "server")].into_iter().enumerate()
        {
            tree.agent(MAIN, name, parent, platform::simulated(n as u64, "")).await;
            tree.online(MAIN, [name]).await;
        }
        notices_at(&mut tree, "osaka", "pc-1", "pc-2", FLOOD_MS).await;
        notices_at(&mut tree, "server", "pc-3", "pc-4", FLOOD_MS / 4).await;
        tree.stop().await;
    });
}
