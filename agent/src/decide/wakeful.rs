//! What a device does with a wake (pure; ADM-15, ADM-16): at most it polls, at most once in five seconds, and it never
//! answers. A wake that comes too soon after another is not lost: the poll it asks for is held back until the time has
//! come, unless the device dials before.

use super::WakeKeys;
use branchline_protocol::{
    datagram::{Budget, Claimed, Ignored, Kind, WAKE_POLL_EVERY_MS},
    id::{AttachmentKey, NodeId},
    time::{Mono, Now},
};

/// What becomes of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Poll now.
    Poll,
    /// Poll when the time has come; or it is decided already.
    HeldBack,
    /// Nothing.
    Ignored(Ignored),
}

/// See the module.
pub struct Wakeful {
    device: NodeId,
    keys: WakeKeys,
    budget: Budget,
    /// When a wake last asked for a poll; once that one greets, when it did.
    polled: Option<Mono>,
    /// A poll was asked for that has not greeted yet.
    asked: bool,
    /// A poll is held back.
    held_back: bool,
}

impl Wakeful {
    /// Of a device that has not been woken yet.
    pub fn new(device: NodeId) -> Wakeful {
        let (keys, budget) = (WakeKeys::default(), Budget::default());
        Wakeful { device, keys, budget, polled: None, asked: false, held_back: false }
    }

    /// These keys are good from here on. If they are of a newer link, that is about to greet: it brings what a wake would.
    pub fn adopt(&mut self, now: Mono, mut keys: WakeKeys) {
        let newest = |keys: &WakeKeys| keys.iter().map(|key| key.link).max();
        if newest(&keys) > newest(&self.keys) {
            self.held_back = false;
            if std::mem::take(&mut self.asked) {
                self.polled = Some(now);
            }
        }
        for key in keys.iter_mut() {
            let known = self.keys.iter().find(|known| known.link == key.link);
            key.heard = key.heard.max(known.map_or(0, |known| known.heard));
        }
        self.keys = keys;
    }

    /// Takes one datagram in.
    pub fn hear(&mut self, now: Now, bytes: &[u8]) -> Heard {
        if let Err(why) = self.check(now, bytes) {
            return Heard::Ignored(why);
        }
        if self.polled.is_some_and(|at| now.mono < at.plus(WAKE_POLL_EVERY_MS)) {
            self.held_back = true;
            return Heard::HeldBack;
        }
        (self.polled, self.asked) = (Some(now.mono), true);
        Heard::Poll
    }

    fn check(&mut self, now: Now, bytes: &[u8]) -> Result<(), Ignored> {
        let claimed = Claimed::read(bytes, Kind::Wake)?;
        if claimed.says.device != self.device {
            return Err(Ignored::OtherDevice);
        }
        let key = self.keys.iter_mut().find(|key| key.link == claimed.says.key).ok_or(Ignored::OtherLink)?;
        self.budget.take(now.mono)?;
        claimed.check(&key.key, key.heard, now.node)?;
        key.heard = claimed.says.counter;
        Ok(())
    }

    /// When a poll that is held back is due.
    pub fn next_deadline(&self) -> Option<Mono> {
        self.polled.filter(|_| self.held_back).map(|at| at.plus(WAKE_POLL_EVERY_MS))
    }

    /// Time goes on. Answers whether to poll now.
    pub fn tick(&mut self, now: Mono) -> bool {
        let due = self.next_deadline().is_some_and(|due| due <= now);
        if due {
            (self.polled, self.asked, self.held_back) = (Some(now), true, false);
        }
        due
    }

    /// The newest counter heard under each key.
    pub fn heard(&self) -> Vec<(AttachmentKey, u64)> {
        self.keys.iter().map(|key| (key.link, key.heard)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::WakeKey, *};
    use branchline_protocol::{
        datagram::{AGE_MS_MAX, Datagram, DatagramKey},
        time::Millis,
    };
    use uuid::Uuid;

    const DEVICE: NodeId = NodeId(Uuid::from_u128(7));

    fn at(ms: u64) -> Now {
        Now { mono: Mono(ms), wall: Millis(0), node: Millis(1_000_000 + ms as i64) }
    }

    fn key(n: u8) -> WakeKey {
        WakeKey { link: AttachmentKey { epoch: 1, attachment: n.into() }, key: DatagramKey([n; 32]), heard: 0 }
    }

    fn keys(last: u8, newest: u8) -> WakeKeys {
        WakeKeys { last: Some(key(last)), newest: Some(key(newest)) }
    }

    fn wake(n: u8, counter: u64, sent: u64) -> Vec<u8> {
        let WakeKey { link, key, .. } = key(n);
        let wake = Datagram { kind: Kind::Wake, device: DEVICE, key: link, counter, at: at(sent).node };
        wake.seal(&key).to_vec()
    }

    fn device() -> Wakeful {
        let mut device = Wakeful::new(DEVICE);
        device.adopt(Mono(0), keys(4, 5));
        device
    }

    #[test]
    fn adm_16_a_thousand_good_wakes_in_a_second_are_a_poll_in_five() {
        let mut device = device();
        let mut polls = Vec::new();
        for n in 0..1_000u64 {
            match device.hear(at(n), &wake(5, n + 1, n)) {
                Heard::Poll => polls.push(n),
                heard => assert_eq!(heard, Heard::HeldBack),
            }
        }
        for ms in 1_000..60_000 {
            if device.tick(Mono(ms)) {
                polls.push(ms);
            }
        }
        assert_eq!(polls, [0, WAKE_POLL_EVERY_MS], "and the one that was held back");
        assert_eq!(device.hear(at(60_000), &wake(5, 2_000, 60_000)), Heard::Poll);
    }

    #[test]
    fn adm_16_a_poll_that_is_held_back_is_needless_once_the_device_dials() {
        let mut device = device();
        assert_eq!(device.hear(at(0), &wake(5, 1, 0)), Heard::Poll);
        device.adopt(Mono(300), keys(5, 6));
        assert_eq!(device.hear(at(700), &wake(5, 2, 0)), Heard::HeldBack, "the second copy, late");
        assert_eq!(device.next_deadline(), Some(Mono(300 + WAKE_POLL_EVERY_MS)), "counted from the greeting");
        device.adopt(Mono(2_000), keys(5, 7));
        assert_eq!(device.next_deadline(), None);
        assert!(!device.tick(Mono(100_000)));
    }

    #[test]
    fn adm_16_what_does_not_hold_is_ignored_with_its_reason() {
        let mut device = device();
        let other = Datagram {
            kind: Kind::Wake,
            device: NodeId(Uuid::from_u128(8)),
            key: key(5).link,
            counter: 1,
            at: at(0).node,
        };
        let notice = Datagram { kind: Kind::Notice, device: DEVICE, ..other };
        let mut flipped = wake(5, 1, 0);
        flipped[40] ^= 4;
        let forged = Datagram { device: DEVICE, ..other };
        let old = 1 + AGE_MS_MAX as u64;
        let cases = [
            (0, other.seal(&key(5).key).to_vec(), Ignored::OtherDevice),
            (0, notice.seal(&key(5).key).to_vec(), Ignored::Malformed),
            (0, wake(3, 1, 0), Ignored::OtherLink),
            (0, forged.seal(&key(6).key).to_vec(), Ignored::BadSeal),
            (0, flipped, Ignored::BadSeal),
            (old, wake(5, 1, 0), Ignored::TooOld),
            (0, vec![0; 512], Ignored::Malformed),
            (0, vec![0; 513], Ignored::TooLarge),
        ];
        for (now, bytes, why) in cases {
            assert_eq!(device.hear(at(now), &bytes), Heard::Ignored(why));
        }
        assert_eq!(
            device.hear(at(old - 1), &wake(5, 1, 0)),
            Heard::Poll,
            "none of it counted, and 5 min are not too old"
        );
        assert_eq!(device.hear(at(old), &wake(5, 1, old)), Heard::Ignored(Ignored::Replayed));
    }

    #[test]
    fn adm_15_either_key_is_good_while_a_link_is_dialled_and_counters_last() {
        let mut device = device();
        assert_eq!(device.hear(at(0), &wake(4, 7, 0)), Heard::Poll);
        assert_eq!(device.hear(at(0), &wake(5, 9, 0)), Heard::HeldBack);
        device.adopt(Mono(1), keys(5, 6));
        assert_eq!(device.hear(at(1), &wake(4, 8, 0)), Heard::Ignored(Ignored::OtherLink));
        assert_eq!(device.hear(at(1), &wake(5, 9, 0)), Heard::Ignored(Ignored::Replayed));
        let heard = |n: u8, counter| (key(n).link, counter);
        assert_eq!(device.heard(), [heard(5, 9), heard(6, 0)]);
    }
}
