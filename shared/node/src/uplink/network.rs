//! Whether there is a network towards a parent, so that a device whose network comes after it dials at once (ADM-12).
//!
//! Nothing is sent: to connect a UDP socket makes the system look for a route and no more.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Addresses that nobody has (RFC 5737, RFC 3849): a route to them is the default route, by which names are resolved.
const ANYWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// What was seen last.
#[derive(Debug, Default)]
pub(super) struct Network {
    there: Option<bool>,
}

impl Network {
    /// Returns when there is a way to one of `hosts` (`host:port`) and there was none at the look before. May be dropped
    /// at any time; what was seen is remembered.
    pub async fn came(&mut self, hosts: &[String]) {
        self.comes(|| hosts.iter().any(|host| has_way(host)) || ANYWHERE.iter().any(|ip| has_route(*ip))).await
    }

    async fn comes(&mut self, look: impl Fn() -> bool) {
        loop {
            let there = look();
            if self.there.replace(there) == Some(false) && there {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn has_way(host: &str) -> bool {
    host.parse::<SocketAddr>().is_ok_and(|address| has_route(address.ip()))
}

fn has_route(ip: IpAddr) -> bool {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((ip, 9))).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn adm_12_only_a_network_that_was_missing_comes_and_it_is_noticed_within_a_second() {
        let (mut network, looks) = (Network::default(), Cell::new(0));
        let begin = crate::time::timer_now();
        // There, there, gone, gone, there.
        let look = || {
            looks.set(looks.get() + 1);
            !matches!(looks.get(), 3 | 4)
        };
        network.comes(look).await;
        assert_eq!((looks.get(), crate::time::timer_now() - begin), (5, Duration::from_secs(4)));
        let stays = tokio::time::timeout(Duration::from_secs(60), network.comes(|| true)).await;
        assert!(stays.is_err(), "what is there does not come");
        let cut = tokio::time::timeout(Duration::from_millis(1), network.comes(|| false)).await;
        assert!(cut.is_err());
        let back = tokio::time::timeout(Duration::from_millis(1), network.comes(|| true)).await;
        assert!(back.is_ok(), "what was seen before it was dropped is remembered");
    }

    #[test]
    fn there_is_always_a_way_to_oneself_and_none_to_what_is_no_address() {
        assert!(has_way("127.0.0.1:13000"));
        assert!(!has_way("server.example:13000"));
    }
}
