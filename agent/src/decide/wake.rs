//! The keys with which a parent may wake this device (pure; ADM-15, DESIGN 6). They come from the TLS exporter of its
//! links and are renewed with each: durable with the attachment number, before any parent hears that. So the device never
//! has an older key than a parent that welcomed it, and until the next dial the one before is good as well: whichever of
//! the two a crash left with the parent.

use super::{AgentCore, Effect, core::Turn};
use branchline_node::{defects::Defects, store::Table, uplink::Poke};
use branchline_protocol::{
    datagram::{DatagramKey, LinkKeys},
    id::AttachmentKey,
};
use serde::{Deserialize, Serialize};

/// Where the keys are kept.
pub(super) const WAKE: &[u8] = b"wake";

/// The key of one link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeKey {
    /// The link.
    pub link: AttachmentKey,
    /// Its key.
    pub key: DatagramKey,
    /// The newest counter that was heard under it.
    pub heard: u64,
}

/// Those that are good: of the last link that a parent welcomed, and of the newest dial.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeKeys {
    /// Of the last link that a parent welcomed, if the newest dial is another.
    pub last: Option<WakeKey>,
    /// Of the newest dial.
    pub newest: Option<WakeKey>,
}

impl WakeKeys {
    /// Both.
    pub fn iter(&self) -> impl Iterator<Item = &WakeKey> {
        self.last.iter().chain(&self.newest)
    }

    /// Both, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut WakeKey> {
        self.last.iter_mut().chain(&mut self.newest)
    }
}

/// What the core keeps of it.
#[derive(Debug, Default)]
pub(super) struct Wake {
    /// Where this device hears; 0: nowhere.
    port: u16,
    keys: WakeKeys,
    /// Of the link that is dialled.
    offered: Option<LinkKeys>,
    /// Whether a parent welcomed the newest dial.
    welcomed: bool,
    /// Whether a wake came while a poll was up, which may have been about to end.
    called: bool,
}

impl Wake {
    pub fn port(&self) -> u16 {
        self.port
    }

    #[cfg(test)]
    pub fn keys(&self) -> &WakeKeys {
        &self.keys
    }

    /// Those that came from the disk, if any did.
    pub fn known(&self) -> Option<WakeKeys> {
        (self.keys != WakeKeys::default()).then(|| self.keys.clone())
    }

    /// The keys of the link that is dialled.
    pub fn offered(&mut self, keys: Option<LinkKeys>) {
        self.offered = keys;
    }

    pub fn welcomed(&mut self) {
        (self.welcomed, self.called) = (true, false);
    }

    /// Whether a wake came during the poll that has ended; asked once.
    pub fn is_called(&mut self) -> bool {
        std::mem::take(&mut self.called)
    }

    /// A row that cannot be read costs a wait until the next dial. Whether the newest dial was welcomed is not on disk: a
    /// device that was asleep had been.
    pub fn recover(&mut self, value: &[u8]) {
        self.keys = rmp_serde::from_slice(value).unwrap_or_default();
        self.welcomed = true;
    }

    fn renew(&mut self, link: AttachmentKey) {
        if std::mem::take(&mut self.welcomed) {
            self.keys.last = self.keys.newest.take();
        }
        self.keys.newest = self.offered.take().map(|keys| WakeKey { link, key: keys.wake, heard: 0 });
    }

    fn row(&self) -> Vec<u8> {
        rmp_serde::to_vec(&self.keys).expect("plain data")
    }
}

impl<D: Defects> AgentCore<D> {
    /// The port on which this device hears wakes.
    pub fn set_wake_port(&mut self, port: u16) {
        self.wake.port = port;
    }

    /// The newest dial has a number: its keys are durable with it.
    pub(super) fn renew_wake(&mut self, turn: &mut Turn) {
        let before = self.wake.keys.clone();
        self.wake.renew(self.attachment());
        if self.wake.keys != before {
            turn.batch.put(Table::Meta, WAKE, self.wake.row());
            turn.then(Effect::WakeKeys(self.wake.keys.clone()));
        }
    }

    /// A wake asks for a poll. On a link that stays there is nothing to do; a poll that is up may be about to end.
    pub(super) fn woken(&mut self, heard: Vec<(AttachmentKey, u64)>, turn: &mut Turn, out: &mut Vec<Effect>) {
        for (link, counter) in heard {
            self.wake.keys.iter_mut().filter(|key| key.link == link).for_each(|key| key.heard = key.heard.max(counter));
        }
        turn.batch.put(Table::Meta, WAKE, self.wake.row());
        match &self.link {
            Some(link) => self.wake.called |= link.poll,
            None => out.push(Effect::Poke(Poke::Wake)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(attachment: u64) -> AttachmentKey {
        AttachmentKey { epoch: 1, attachment }
    }

    fn dial(wake: &mut Wake, n: u8) {
        let key = DatagramKey([n; 32]);
        wake.offered(Some(LinkKeys { wake: key, notice: key }));
        wake.renew(link(n.into()));
    }

    fn good(wake: &Wake) -> Vec<u64> {
        wake.keys().iter().map(|key| key.link.attachment).collect()
    }

    #[test]
    fn adm_15_the_last_welcomed_links_key_is_good_until_another_was_welcomed() {
        let mut wake = Wake::default();
        dial(&mut wake, 1);
        assert_eq!(good(&wake), [1], "before the parent has it");
        wake.welcomed();
        dial(&mut wake, 2);
        assert_eq!(good(&wake), [1, 2], "the parent has either");
        dial(&mut wake, 3);
        assert_eq!(good(&wake), [1, 3], "a dial that nobody welcomed left no key anywhere");
        wake.welcomed();
        dial(&mut wake, 4);
        assert_eq!(good(&wake), [3, 4]);
    }

    #[test]
    fn adm_17_a_link_through_a_gateway_leaves_no_key() {
        let mut wake = Wake::default();
        dial(&mut wake, 1);
        wake.welcomed();
        wake.renew(link(2));
        assert_eq!(good(&wake), [1], "should it fail");
        wake.welcomed();
        wake.renew(link(3));
        assert!(good(&wake).is_empty());
    }

    #[test]
    fn adm_15_a_restarted_device_knows_its_keys_and_what_it_heard() {
        let mut wake = Wake::default();
        dial(&mut wake, 1);
        wake.welcomed();
        dial(&mut wake, 2);
        wake.keys.iter_mut().for_each(|key| key.heard = 9);
        let mut again = Wake::default();
        again.recover(&wake.row());
        assert_eq!(again.keys(), wake.keys());
        dial(&mut again, 3);
        assert_eq!(good(&again), [2, 3]);
        again.recover(b"spoiled");
        assert!(good(&again).is_empty());
    }
}
