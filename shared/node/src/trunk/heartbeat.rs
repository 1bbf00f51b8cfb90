//! When a trunk is pinged and when it is dead. Pure.

use branchline_protocol::{
    time::Mono,
    wire::{TRUNK_DEAD_S, TRUNK_PING_S},
};

/// What the heartbeat asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// Send a ping, then tell [`Heartbeat::pinged`].
    Ping,
    /// Nothing was heard for [`TRUNK_DEAD_S`]: give the trunk up.
    Dead,
    /// Nothing to do for so many milliseconds.
    Wait(u64),
}

/// The heartbeat of one end of a trunk's control stream.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    heard: Mono,
    /// When the next ping is due; `None` at the end that only answers.
    ping_due: Option<Mono>,
}

impl Heartbeat {
    /// The end that pings: the gateway. The first ping is due at once.
    pub fn pinging(now: Mono) -> Heartbeat {
        Heartbeat { heard: now, ping_due: Some(now) }
    }

    /// The end that answers: the server.
    pub fn answering(now: Mono) -> Heartbeat {
        Heartbeat { heard: now, ping_due: None }
    }

    /// Something came: any message counts as life.
    pub fn heard(&mut self, now: Mono) {
        self.heard = self.heard.max(now);
    }

    /// A ping was sent.
    pub fn pinged(&mut self, now: Mono) {
        self.ping_due = Some(now.plus(TRUNK_PING_S * 1000));
    }

    /// What to do at `now`.
    pub fn beat(&self, now: Mono) -> Beat {
        let dead_at = self.heard.plus(TRUNK_DEAD_S * 1000);
        if now >= dead_at {
            return Beat::Dead;
        }
        match self.ping_due {
            Some(due) if now >= due => Beat::Ping,
            Some(due) => Beat::Wait(due.min(dead_at).since(now)),
            None => Beat::Wait(dead_at.since(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_pings_every_five_seconds_and_gives_up_at_fifteen() {
        let mut beat = Heartbeat::pinging(Mono(1_000));
        assert_eq!(beat.beat(Mono(1_000)), Beat::Ping);
        beat.pinged(Mono(1_000));
        assert_eq!(beat.beat(Mono(1_000)), Beat::Wait(5_000));
        assert_eq!(beat.beat(Mono(5_999)), Beat::Wait(1));
        assert_eq!(beat.beat(Mono(6_000)), Beat::Ping);
        beat.pinged(Mono(6_000));
        beat.pinged(Mono(11_000));
        assert_eq!(beat.beat(Mono(15_999)), Beat::Wait(1), "one before the bound");
        assert_eq!(beat.beat(Mono(16_000)), Beat::Dead, "at the bound");
        beat.heard(Mono(15_999));
        assert_eq!(beat.beat(Mono(16_000)), Beat::Ping);
    }

    #[test]
    fn the_server_only_answers() {
        let mut beat = Heartbeat::answering(Mono(0));
        assert_eq!(beat.beat(Mono(0)), Beat::Wait(15_000));
        beat.heard(Mono(4_000));
        beat.heard(Mono(3_000));
        assert_eq!(beat.beat(Mono(18_999)), Beat::Wait(1));
        assert_eq!(beat.beat(Mono(19_000)), Beat::Dead);
    }
}
