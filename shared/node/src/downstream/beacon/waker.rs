//! Which device is sent a wake when (pure; ADM-15).
//!
//! A wake is sent three times within two seconds, because a datagram may be lost. A device that none of them brings is
//! left alone for 30 s, however much waits for it: its port may be closed, and it polls anyway. One that came is woken
//! again at once when something new waits. How many are woken in a second is bounded, so that what they come for is not
//! a storm: the others wait in line.

use branchline_protocol::{
    id::{AttachmentKey, NodeId},
    time::Mono,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Times a wake is sent.
pub const COPIES: u8 = 3;
/// Devices that are remembered as wanted. Beyond them one waits for its poll.
pub const WANTED_MAX: usize = 10_000;
/// Milliseconds between two of them: all within 2 s.
const COPY_MS: u64 = 700;
/// Milliseconds that a device is left alone after a wake that did not bring it.
const REST_MS: u64 = 30_000;
/// Wakes begun in a slice: 100 a second, below the rate at which a node takes links (RLY-12).
const BEGUN_PER_SLICE: u32 = 10;
const SLICE_MS: u64 = 100;

/// A device that is wanted.
struct Wanted {
    /// Its last link when it was wanted: with another one it came.
    key: AttachmentKey,
    /// Copies that are still to be sent; 0: it rests.
    copies: u8,
    /// When the next copy is sent, or the rest is over.
    next: Mono,
    /// Something new waits for it since its last copy.
    again: bool,
}

/// See the module.
#[derive(Default)]
pub struct Waker {
    wanted: BTreeMap<NodeId, Wanted>,
    due: BTreeSet<(Mono, NodeId)>,
    line: VecDeque<NodeId>,
    slice: u64,
    begun: u32,
}

impl Waker {
    /// Something waits for a device whose last link was this one. Answers whether that is remembered.
    pub fn want(&mut self, now: Mono, node: NodeId, key: AttachmentKey) -> bool {
        if let Some(wanted) = self.wanted.get_mut(&node) {
            if wanted.key == key {
                wanted.again |= wanted.copies == 0;
                return true;
            }
            self.forget(node);
        }
        if self.wanted.len() >= WANTED_MAX {
            return false;
        }
        self.wanted.insert(node, Wanted { key, copies: COPIES, next: now, again: false });
        self.line.push_back(node);
        true
    }

    /// Devices that are sent a copy now, each with the link whose key seals it. `last` answers a device's last link as it
    /// is now, if it can be woken.
    pub fn due(&mut self, now: Mono, last: impl Fn(NodeId) -> Option<AttachmentKey>) -> Vec<(NodeId, AttachmentKey)> {
        let mut copies = Vec::new();
        while let Some((at, node)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, node));
            let Some(wanted) = self.wanted.get_mut(&node) else { continue };
            if last(node) != Some(wanted.key) || (wanted.copies == 0 && !wanted.again) {
                self.wanted.remove(&node);
            } else if wanted.copies == 0 {
                (wanted.copies, wanted.again) = (COPIES, false);
                self.line.push_back(node);
            } else {
                self.copy(now, node, &mut copies);
            }
        }
        let slice = now.0 / SLICE_MS;
        if slice != self.slice {
            (self.slice, self.begun) = (slice, 0);
        }
        while self.begun < BEGUN_PER_SLICE
            && let Some(node) = self.line.pop_front()
        {
            // Forgotten, or in line twice because it was forgotten and wanted anew.
            let Some(wanted) = self.wanted.get(&node).filter(|w| w.copies == COPIES) else { continue };
            if last(node) == Some(wanted.key) {
                self.begun += 1;
                self.copy(now, node, &mut copies);
            } else {
                self.wanted.remove(&node);
            }
        }
        copies
    }

    fn copy(&mut self, now: Mono, node: NodeId, copies: &mut Vec<(NodeId, AttachmentKey)>) {
        let Some(wanted) = self.wanted.get_mut(&node) else { return };
        wanted.copies -= 1;
        wanted.next = now.plus(if wanted.copies == 0 { REST_MS } else { COPY_MS });
        self.due.insert((wanted.next, node));
        copies.push((node, wanted.key));
    }

    fn forget(&mut self, node: NodeId) {
        if let Some(wanted) = self.wanted.remove(&node) {
            self.due.remove(&(wanted.next, node));
        }
    }

    /// When to ask for [`Waker::due`] next.
    pub fn next_deadline(&self) -> Option<Mono> {
        let line = (!self.line.is_empty()).then(|| match self.begun < BEGUN_PER_SLICE {
            true => Mono(self.slice * SLICE_MS),
            false => Mono((self.slice + 1) * SLICE_MS),
        });
        self.due.first().map(|(at, _)| *at).into_iter().chain(line).min()
    }

    /// Devices that are wanted.
    pub fn wanted(&self) -> usize {
        self.wanted.len()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::node, *};

    fn key(attachment: u64) -> AttachmentKey {
        AttachmentKey { epoch: 1, attachment }
    }

    /// Instants at which node 1 is sent a copy, looking every 50 ms, while its last link is as `last` says.
    fn sent(waker: &mut Waker, from: u64, to: u64, last: impl Fn(u64) -> Option<AttachmentKey>) -> Vec<u64> {
        (from..to).step_by(50).filter(|now| !waker.due(Mono(*now), |_| last(*now)).is_empty()).collect()
    }

    #[test]
    fn adm_15_a_wake_is_sent_three_times_in_two_seconds_and_then_not_for_thirty() {
        let mut waker = Waker::default();
        assert!(waker.want(Mono(0), node(1), key(5)));
        let here = |_| Some(key(5));
        assert_eq!(sent(&mut waker, 0, 3_000, here), [0, 700, 1_400]);
        waker.want(Mono(3_000), node(1), key(5));
        waker.want(Mono(9_000), node(1), key(5));
        assert_eq!(sent(&mut waker, 3_000, 40_000, here), [31_400, 32_100, 32_800], "what came meanwhile, once");
        assert!(sent(&mut waker, 40_000, 100_000, here).is_empty(), "nothing new waits");
        assert_eq!((waker.wanted(), waker.next_deadline()), (0, None));
    }

    #[test]
    fn adm_15_whom_the_first_copy_brings_is_sent_no_other_and_may_be_woken_again_at_once() {
        let mut waker = Waker::default();
        waker.want(Mono(0), node(1), key(5));
        let last = |now| Some(key(if now < 500 { 5 } else { 6 }));
        assert_eq!(sent(&mut waker, 0, 1_000, last), [0]);
        waker.want(Mono(1_000), node(1), key(6));
        assert_eq!(sent(&mut waker, 1_000, 9_000, last), [1_000, 1_700, 2_400]);
    }

    #[test]
    fn adm_17_whoever_can_be_woken_no_more_is_sent_nothing() {
        let mut waker = Waker::default();
        waker.want(Mono(0), node(1), key(5));
        assert_eq!(sent(&mut waker, 0, 1_000, |now| (now < 100).then_some(key(5))), [0]);
        assert_eq!(waker.wanted(), 0);
    }

    #[test]
    fn adm_15_many_are_woken_a_hundred_a_second_in_the_order_in_which_they_are_wanted() {
        let mut waker = Waker::default();
        (0..250).for_each(|n| assert!(waker.want(Mono(1_000), node(n), key(1))));
        let mut first = Vec::new();
        let (mut now, mut begun) = (Mono(1_000), BTreeMap::new());
        while first.len() < 250 {
            for (device, _) in waker.due(now, |_| Some(key(1))) {
                begun.entry(device).or_insert_with(|| {
                    first.push(device);
                    now
                });
            }
            now = waker.next_deadline().unwrap().max(now.plus(1));
        }
        assert_eq!(first, (0..250).map(node).collect::<Vec<_>>());
        let within = |ms: u64| begun.values().filter(|at| at.since(Mono(1_000)) < ms).count();
        assert_eq!((within(100), within(1_000), within(2_500)), (10, 100, 250));
    }

    #[test]
    fn adm_15_so_many_are_remembered_and_one_more_waits_for_its_poll() {
        let mut waker = Waker::default();
        (0..WANTED_MAX as u128).for_each(|n| assert!(waker.want(Mono(0), node(n), key(1))));
        assert!(!waker.want(Mono(0), node(1_000_000), key(1)));
        assert!(waker.want(Mono(0), node(3), key(1)), "one that is remembered");
        assert!(waker.want(Mono(0), node(3), key(2)), "in its own place");
        assert_eq!(waker.wanted(), WANTED_MAX);
    }
}
