//! Names of parents: resolved by whoever the node is given, remembered no longer than they are good (TOP-5).
//!
//! Under split DNS one name is the gateway outside and the server inside. So an answer is asked for anew after every
//! connection that failed, and at the latest when its time is over.

use crate::time::timer_now;
use futures_util::future::BoxFuture;
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{net::lookup_host, time::Instant};

/// An answer is used no longer than this, whatever its record says. The system's resolver tells no time to live: it
/// keeps that itself, and this bounds what is added to it.
pub const NAME_LIFE: Duration = Duration::from_secs(60);
/// Names remembered at once; a node has a handful.
const NAMES_MAX: usize = 64;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Its addresses, the preferred first.
    pub addresses: Vec<IpAddr>,
    /// How long they are good; `None` where the resolver does not tell.
    pub life: Option<Duration>,
}

/// Turns names into addresses.
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of a host.
    fn resolve(&self, host: &str) -> BoxFuture<'static, io::Result<Resolved>>;
}

/// The machine's own resolver.
pub struct SystemResolver;

impl SystemResolver {
    /// To be shared by nodes.
    pub fn shared() -> Arc<dyn Resolve> {
        Arc::new(SystemResolver)
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str) -> BoxFuture<'static, io::Result<Resolved>> {
        let host = host.to_owned();
        Box::pin(async move {
            let found = lookup_host((host.as_str(), 0)).await?;
            Ok(Resolved { addresses: found.map(|address| address.ip()).collect(), life: None })
        })
    }
}

/// Each host's addresses, and until when they are good.
type Answers = BTreeMap<String, (Instant, Vec<IpAddr>)>;

/// A node's resolver and what it answered.
#[derive(Clone)]
pub struct Names {
    resolver: Arc<dyn Resolve>,
    held: Arc<Mutex<Answers>>,
}

impl Names {
    /// Nothing is known yet.
    pub fn new(resolver: Arc<dyn Resolve>) -> Names {
        Names { resolver, held: Arc::default() }
    }

    /// The addresses of `host:port`. An address in digits is its own.
    pub async fn lookup(&self, address: &str) -> io::Result<Vec<SocketAddr>> {
        if let Ok(plain) = address.parse() {
            return Ok(vec![plain]);
        }
        let bad = || io::Error::new(io::ErrorKind::InvalidInput, "not host:port");
        let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
        let port: u16 = port.parse().map_err(|_| bad())?;
        let known = self.held().get(host).filter(|(until, _)| *until > timer_now()).map(|(_, list)| list.clone());
        let list = match known {
            Some(list) => list,
            None => {
                let Resolved { addresses, life } = self.resolver.resolve(host).await?;
                let until = timer_now() + life.unwrap_or(NAME_LIFE).min(NAME_LIFE);
                let mut held = self.held();
                if held.len() >= NAMES_MAX {
                    held.clear();
                }
                held.insert(host.to_owned(), (until, addresses.clone()));
                addresses
            }
        };
        Ok(list.into_iter().map(|ip| SocketAddr::from((ip, port))).collect())
    }

    /// A connection to `host:port` failed: the name may stand for something else by now.
    pub fn forget(&self, address: &str) {
        if let Some((host, _)) = address.rsplit_once(':') {
            self.held().remove(host);
        }
    }

    fn held(&self) -> MutexGuard<'_, Answers> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU8, Ordering};

    /// Answers 10.0.0.1, then 10.0.0.2, and so on.
    struct Counting(AtomicU8, Option<Duration>);

    impl Resolve for Counting {
        fn resolve(&self, host: &str) -> BoxFuture<'static, io::Result<Resolved>> {
            let n = self.0.fetch_add(1, Ordering::SeqCst) + 1;
            let known = host == "mgmt.example";
            let life = self.1;
            Box::pin(async move {
                if !known {
                    return Err(io::Error::other("no such name"));
                }
                Ok(Resolved { addresses: vec![IpAddr::from([10, 0, 0, n])], life })
            })
        }
    }

    fn names(life: Option<u64>) -> Names {
        Names::new(Arc::new(Counting(AtomicU8::new(0), life.map(Duration::from_secs))))
    }

    async fn last_byte(names: &Names) -> u8 {
        match names.lookup("mgmt.example:7").await.unwrap()[..] {
            [SocketAddr::V4(one)] => one.ip().octets()[3],
            ref other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn top_5_an_answer_is_used_to_the_end_of_its_life_and_not_beyond() {
        for (life, used_s) in [(Some(20), 20), (None, 60), (Some(3_600), 60)] {
            let names = names(life);
            assert_eq!(last_byte(&names).await, 1);
            tokio::time::advance(Duration::from_secs(used_s) - Duration::from_millis(1)).await;
            assert_eq!(last_byte(&names).await, 1, "life {life:?}: still good");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert_eq!(last_byte(&names).await, 2, "life {life:?}: asked for anew");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn top_5_a_failed_connection_asks_anew_and_other_names_are_not_touched() {
        let names = names(None);
        assert_eq!(last_byte(&names).await, 1);
        names.forget("other.example:7");
        assert_eq!(last_byte(&names).await, 1);
        names.forget("mgmt.example:443");
        assert_eq!(last_byte(&names).await, 2, "whatever the port");
    }

    #[tokio::test(start_paused = true)]
    async fn top_5_digits_are_no_name_and_a_name_without_answer_is_a_fault() {
        let names = names(None);
        assert_eq!(names.lookup("10.9.9.9:5").await.unwrap(), ["10.9.9.9:5".parse().unwrap()]);
        assert_eq!(names.lookup("[::1]:5").await.unwrap(), ["[::1]:5".parse().unwrap()]);
        for bad in ["nobody.example:7", "mgmt.example", "mgmt.example:99999", ""] {
            assert!(names.lookup(bad).await.is_err(), "{bad:?}");
        }
    }
}
