//! Whether a notice holds (pure; ADM-18). One that does says that the device goes off by itself: its slot is free at once,
//! and it is shown as shut down rather than lost.

use super::Reachable;
use branchline_protocol::{
    datagram::{Budget, Claimed, Ignored, Kind},
    id::{AttachmentKey, NodeId, TenantId},
    time::Now,
};
use std::collections::BTreeMap;

/// What was heard, and how much may still be checked. Its size is that of the keyring: only what holds is remembered.
#[derive(Default)]
pub struct Notices {
    met: BTreeMap<NodeId, (AttachmentKey, u64)>,
    budget: Budget,
}

impl Notices {
    /// Takes one datagram in; `known` answers what is known of a device's last link here. Answers who goes off, and which
    /// of its links that ends.
    ///
    /// # Errors
    /// Why it is ignored. Of a link that is not the last one: [`Ignored::OtherLink`].
    pub fn hear(
        &mut self,
        now: Now,
        bytes: &[u8],
        known: impl FnOnce(NodeId) -> Option<Reachable>,
    ) -> Result<(TenantId, NodeId, AttachmentKey), Ignored> {
        let claimed = Claimed::read(bytes, Kind::Notice)?;
        let (node, key) = (claimed.says.device, claimed.says.key);
        let known = known(node).ok_or(Ignored::OtherDevice)?;
        if known.key != key {
            return Err(Ignored::OtherLink);
        }
        self.budget.take(now.mono)?;
        let met = self.met.get(&node).filter(|(of, _)| *of == key).map_or(0, |(_, counter)| *counter);
        claimed.check(&known.keys.notice, met, now.node)?;
        self.met.insert(node, (key, claimed.says.counter));
        Ok((known.tenant, node, key))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{node, reachable},
        *,
    };
    use branchline_protocol::{
        datagram::{AGE_MS_MAX, CHECKS_PER_S, DATAGRAM_BYTES_MAX, Datagram},
        time::{Millis, Mono},
    };

    fn at(ms: u64) -> Now {
        Now { mono: Mono(ms), wall: Millis(0), node: Millis(ms as i64) }
    }

    fn notice(device: u128, attachment: u64, counter: u64, sent: i64) -> Datagram {
        let key = AttachmentKey { epoch: 1, attachment };
        Datagram { kind: Kind::Notice, device: node(device), key, counter, at: Millis(sent) }
    }

    /// Of device 1, whose last link is its fifth.
    fn hear(notices: &mut Notices, now: u64, bytes: &[u8]) -> Result<u64, Ignored> {
        let known = |device| (device == node(1)).then(|| reachable(5));
        notices.hear(at(now), bytes, known).map(|(_, _, key)| key.attachment)
    }

    #[test]
    fn adm_18_a_notice_of_the_last_link_holds_and_each_copy_has_its_own_counter() {
        let mut notices = Notices::default();
        let key = reachable(5).keys.notice;
        for counter in 1..=3 {
            assert_eq!(hear(&mut notices, 1_000, &notice(1, 5, counter, 1_000).seal(&key)), Ok(5));
        }
        assert_eq!(hear(&mut notices, 1_000, &notice(1, 5, 3, 1_000).seal(&key)), Err(Ignored::Replayed));
        assert_eq!(hear(&mut notices, 1_000, &notice(1, 5, 1, 1_000).seal(&key)), Err(Ignored::Replayed));
    }

    #[test]
    fn adm_18_what_is_forged_or_older_than_the_last_contact_is_ignored() {
        let mut notices = Notices::default();
        let own = reachable(5).keys;
        let sealed = |datagram: Datagram| datagram.seal(&own.notice);
        let cases = [
            (sealed(notice(1, 4, 1, 1_000)).to_vec(), Ignored::OtherLink),
            (sealed(notice(1, 6, 1, 1_000)).to_vec(), Ignored::OtherLink),
            (sealed(notice(2, 5, 1, 1_000)).to_vec(), Ignored::OtherDevice),
            (notice(1, 5, 1, 1_000).seal(&reachable(6).keys.notice).to_vec(), Ignored::BadSeal),
            (notice(1, 5, 1, 1_000).seal(&own.wake).to_vec(), Ignored::BadSeal),
            (sealed(Datagram { kind: Kind::Wake, ..notice(1, 5, 1, 1_000) }).to_vec(), Ignored::Malformed),
            (sealed(notice(1, 5, 1, 999 - AGE_MS_MAX)).to_vec(), Ignored::TooOld),
            (vec![1; DATAGRAM_BYTES_MAX], Ignored::Malformed),
            (vec![1; DATAGRAM_BYTES_MAX + 1], Ignored::TooLarge),
        ];
        for (bytes, why) in cases {
            assert_eq!(hear(&mut notices, 1_000, &bytes), Err(why));
        }
        let mut flipped = sealed(notice(1, 5, 1, 1_000));
        flipped[77] ^= 1;
        assert_eq!(hear(&mut notices, 1_000, &flipped), Err(Ignored::BadSeal));
        assert_eq!(
            hear(&mut notices, 1_000, &sealed(notice(1, 5, 1, 1_000 - AGE_MS_MAX))),
            Ok(5),
            "none of it counted"
        );
    }

    #[test]
    fn adm_18_a_flood_of_false_ones_is_checked_to_the_bound_and_strangers_are_not_checked_at_all() {
        let mut notices = Notices::default();
        let bad = notice(1, 5, 1, 0).seal(&reachable(6).keys.notice);
        let stranger = notice(2, 5, 1, 0).seal(&reachable(6).keys.notice);
        let slice = CHECKS_PER_S / 10;
        for _ in 0..slice {
            assert_eq!(hear(&mut notices, 0, &bad), Err(Ignored::BadSeal));
            assert_eq!(hear(&mut notices, 0, &stranger), Err(Ignored::OtherDevice));
        }
        assert_eq!(hear(&mut notices, 0, &bad), Err(Ignored::OverRate));
        assert_eq!(hear(&mut notices, 100, &bad), Err(Ignored::BadSeal));
    }
}
