//! The two datagrams (pure; ADM-15 to ADM-18): a *wake* from a parent to a device, and a device's *notice* that it goes
//! off. Neither carries a command or an answer. Their keys come from the TLS exporter of the device's last link, one for
//! each direction, so both ends have them without a word about it.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version, 1 |
//! | 1 | kind: 1 wake, 2 notice |
//! | 16 | the device |
//! | 4, 8 | epoch and attachment of the link that the key is from |
//! | 8 | counter, strictly rising for one key |
//! | 8 | when, ms: the sender's clock, or its node time if that is ahead |
//! | 32 | blake3 of all that, under the key |
//!
//! Numbers are big-endian. A reader looks at the length first, then at the claims, and only for a device and an
//! attachment that it knows at the last 32 bytes, within a [`Budget`].

use crate::{
    id::{AttachmentKey, NodeId},
    time::{Millis, Mono},
};
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// How long a datagram is.
pub const DATAGRAM_BYTES: usize = 78;
/// A longer one is not looked at (ADM-16).
pub const DATAGRAM_BYTES_MAX: usize = 512;
/// Milliseconds of node time after which one counts no more (ADM-16).
pub const AGE_MS_MAX: i64 = 300_000;
/// Milliseconds from one poll that came of a wake to the next, from greeting to dial: a device holds back what comes sooner
/// (S-14), and a parent that keeps a slot for it waits for that.
pub const WAKE_POLL_EVERY_MS: u64 = 5_000;
/// Label of the exporter for the key of wakes.
pub const WAKE_LABEL: &[u8] = b"EXPORTER-branchline-wake";
/// Label of the exporter for the key of notices.
pub const NOTICE_LABEL: &[u8] = b"EXPORTER-branchline-notice";
/// Seals checked in a second. One costs a quarter of a microsecond, so that all of them are 1.5 % of a core, and a flood
/// of 50,000 a second leaves room for the good ones.
pub const CHECKS_PER_S: u32 = 60_000;

const VERSION: u8 = 1;
const SEALED: usize = DATAGRAM_BYTES - 32;
/// Milliseconds of a [`Budget`]'s slice: a flood's first burst must not use up a whole second.
const SLICE_MS: u64 = 100;

/// What a datagram is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Down: poll now.
    Wake = 1,
    /// Up: the device goes off.
    Notice = 2,
}

/// A key of one direction of one link. Never shown.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatagramKey(#[serde(with = "serde_bytes")] pub [u8; 32]);

impl fmt::Debug for DatagramKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Both keys of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkKeys {
    /// From the parent to the child.
    pub wake: DatagramKey,
    /// From the child to the parent.
    pub notice: DatagramKey,
}

/// What a datagram says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// What it is for.
    pub kind: Kind,
    /// The device, whoever sends it.
    pub device: NodeId,
    /// The link whose key seals it.
    pub key: AttachmentKey,
    /// Strictly rising for one key.
    pub counter: u64,
    /// When it was sent: the sender's clock, or its node time if that is ahead. Node time alone lags behind after a long time
    /// off, and the reader judges by its own node time, a lower bound.
    pub at: Millis,
}

/// Why a datagram is ignored. Each has a word for the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ignored {
    /// Over [`DATAGRAM_BYTES_MAX`].
    TooLarge,
    /// Another length, version or kind.
    Malformed,
    /// For a device that is not here.
    OtherDevice,
    /// Of a link that is not the last one.
    OtherLink,
    /// More than [`CHECKS_PER_S`].
    OverRate,
    /// Its seal does not hold.
    BadSeal,
    /// Its counter was met.
    Replayed,
    /// Older than [`AGE_MS_MAX`].
    TooOld,
}

impl Ignored {
    /// Every reason.
    pub const ALL: [Ignored; 8] = [
        Ignored::TooLarge,
        Ignored::Malformed,
        Ignored::OtherDevice,
        Ignored::OtherLink,
        Ignored::OverRate,
        Ignored::BadSeal,
        Ignored::Replayed,
        Ignored::TooOld,
    ];

    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Ignored::TooLarge => "too_large",
            Ignored::Malformed => "malformed",
            Ignored::OtherDevice => "other_device",
            Ignored::OtherLink => "other_link",
            Ignored::OverRate => "over_rate",
            Ignored::BadSeal => "bad_seal",
            Ignored::Replayed => "replayed",
            Ignored::TooOld => "too_old",
        }
    }
}

impl Datagram {
    /// Its bytes under a key.
    pub fn seal(&self, key: &DatagramKey) -> [u8; DATAGRAM_BYTES] {
        let mut bytes = [0; DATAGRAM_BYTES];
        bytes[0] = VERSION;
        bytes[1] = self.kind as u8;
        bytes[2..18].copy_from_slice(self.device.bytes());
        bytes[18..22].copy_from_slice(&self.key.epoch.to_be_bytes());
        bytes[22..30].copy_from_slice(&self.key.attachment.to_be_bytes());
        bytes[30..38].copy_from_slice(&self.counter.to_be_bytes());
        bytes[38..SEALED].copy_from_slice(&self.at.0.to_be_bytes());
        let seal = blake3::keyed_hash(&key.0, &bytes[..SEALED]);
        bytes[SEALED..].copy_from_slice(seal.as_bytes());
        bytes
    }
}

/// A datagram of the right form, by whomever.
#[derive(Clone, Copy, Debug)]
pub struct Claimed<'b> {
    /// What it says.
    pub says: Datagram,
    bytes: &'b [u8; DATAGRAM_BYTES],
}

impl<'b> Claimed<'b> {
    /// Looks at the form alone.
    ///
    /// # Errors
    /// [`Ignored::TooLarge`], [`Ignored::Malformed`].
    pub fn read(bytes: &'b [u8], wanted: Kind) -> Result<Claimed<'b>, Ignored> {
        if bytes.len() > DATAGRAM_BYTES_MAX {
            return Err(Ignored::TooLarge);
        }
        let bytes: &[u8; DATAGRAM_BYTES] = bytes.try_into().map_err(|_| Ignored::Malformed)?;
        if (bytes[0], bytes[1]) != (VERSION, wanted as u8) {
            return Err(Ignored::Malformed);
        }
        fn part<const N: usize>(bytes: &[u8; DATAGRAM_BYTES], at: usize) -> [u8; N] {
            bytes[at..at + N].try_into().expect("within the fixed length")
        }
        let says = Datagram {
            kind: wanted,
            device: NodeId(Uuid::from_bytes(part(bytes, 2))),
            key: AttachmentKey {
                epoch: u32::from_be_bytes(part(bytes, 18)),
                attachment: u64::from_be_bytes(part(bytes, 22)),
            },
            counter: u64::from_be_bytes(part(bytes, 30)),
            at: Millis(i64::from_be_bytes(part(bytes, 38))),
        };
        Ok(Claimed { says, bytes })
    }

    /// Checks the seal in constant time, then that it is fresh: newer than the newest `met`, and not too old by node
    /// time. One from the future passes: only who has the key can date it, and a machine that slept lags behind.
    ///
    /// # Errors
    /// [`Ignored::BadSeal`], [`Ignored::Replayed`], [`Ignored::TooOld`].
    pub fn check(&self, key: &DatagramKey, met: u64, now: Millis) -> Result<(), Ignored> {
        let seal: [u8; 32] = self.bytes[SEALED..].try_into().expect("32 bytes are left");
        // blake3 compares its hashes in constant time.
        if blake3::keyed_hash(&key.0, &self.bytes[..SEALED]) != blake3::Hash::from_bytes(seal) {
            return Err(Ignored::BadSeal);
        }
        if self.says.counter <= met {
            return Err(Ignored::Replayed);
        }
        if now.0.saturating_sub(self.says.at.0) > AGE_MS_MAX {
            return Err(Ignored::TooOld);
        }
        Ok(())
    }
}

/// How many seals may be checked: [`CHECKS_PER_S`], in slices of a tenth of a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    slice: u64,
    used: u32,
}

impl Budget {
    /// Takes one check.
    ///
    /// # Errors
    /// [`Ignored::OverRate`].
    pub fn take(&mut self, now: Mono) -> Result<(), Ignored> {
        let slice = now.0 / SLICE_MS;
        if slice != self.slice {
            (self.slice, self.used) = (slice, 0);
        }
        if self.used >= CHECKS_PER_S / (1_000 / SLICE_MS as u32) {
            return Err(Ignored::OverRate);
        }
        self.used += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: DatagramKey = DatagramKey([7; 32]);

    fn wake(counter: u64, at: i64) -> Datagram {
        Datagram {
            kind: Kind::Wake,
            device: NodeId(Uuid::from_u128(9)),
            key: AttachmentKey { epoch: 2, attachment: 40 },
            counter,
            at: Millis(at),
        }
    }

    fn heard(bytes: &[u8], key: &DatagramKey, met: u64, now: i64) -> Result<Datagram, Ignored> {
        let claimed = Claimed::read(bytes, Kind::Wake)?;
        claimed.check(key, met, Millis(now))?;
        Ok(claimed.says)
    }

    #[test]
    fn adm_16_a_datagram_comes_back_as_it_went_and_only_under_its_key() {
        let sent = wake(5, 1_000);
        let bytes = sent.seal(&KEY);
        assert_eq!(heard(&bytes, &KEY, 4, 1_000), Ok(sent));
        assert_eq!(heard(&bytes, &DatagramKey([8; 32]), 4, 1_000), Err(Ignored::BadSeal));
        assert_eq!(Claimed::read(&bytes, Kind::Notice).err(), Some(Ignored::Malformed), "the other direction");
    }

    #[test]
    fn adm_16_every_flipped_bit_is_noticed() {
        let bytes = wake(5, 1_000).seal(&KEY);
        for bit in 0..DATAGRAM_BYTES * 8 {
            let mut altered = bytes;
            altered[bit / 8] ^= 1 << (bit % 8);
            let wanted = if bit < 16 { Ignored::Malformed } else { Ignored::BadSeal };
            assert_eq!(heard(&altered, &KEY, 4, 1_000), Err(wanted), "bit {bit}");
        }
    }

    #[test]
    fn adm_16_five_minutes_pass_and_a_millisecond_more_does_not() {
        let bytes = wake(5, 1_000).seal(&KEY);
        assert!(heard(&bytes, &KEY, 4, 1_000 + AGE_MS_MAX).is_ok());
        assert_eq!(heard(&bytes, &KEY, 4, 1_001 + AGE_MS_MAX), Err(Ignored::TooOld));
        assert!(heard(&bytes, &KEY, 4, -5_000_000).is_ok(), "a device that slept lags behind");
        let ancient = wake(5, i64::MIN).seal(&KEY);
        assert_eq!(heard(&ancient, &KEY, 4, i64::MAX), Err(Ignored::TooOld));
    }

    #[test]
    fn adm_16_a_counter_that_is_equal_or_less_is_a_replay() {
        let bytes = wake(5, 1_000).seal(&KEY);
        assert!(heard(&bytes, &KEY, 4, 1_000).is_ok());
        assert_eq!(heard(&bytes, &KEY, 5, 1_000), Err(Ignored::Replayed));
        assert_eq!(heard(&bytes, &KEY, 6, 1_000), Err(Ignored::Replayed));
    }

    #[test]
    fn adm_16_over_512_bytes_are_not_looked_at() {
        let long = |n: usize| Claimed::read(&vec![1; n], Kind::Wake).err();
        assert_eq!(long(DATAGRAM_BYTES_MAX), Some(Ignored::Malformed));
        assert_eq!(long(DATAGRAM_BYTES_MAX + 1), Some(Ignored::TooLarge));
        for n in [0, DATAGRAM_BYTES - 1, DATAGRAM_BYTES + 1] {
            assert_eq!(long(n), Some(Ignored::Malformed), "{n} bytes");
        }
    }

    #[test]
    fn adm_16_checks_are_bounded_by_the_second() {
        let mut budget = Budget::default();
        let taken = (0..2 * CHECKS_PER_S).filter(|n| budget.take(Mono(u64::from(*n) * 500 / 60_000)).is_ok()).count();
        assert_eq!(taken as u32, CHECKS_PER_S, "in the one second over which they came");
        assert_eq!(budget.take(Mono(1_000)), Ok(()));
    }

    #[test]
    fn a_key_is_not_shown() {
        assert!(!format!("{:?}", LinkKeys { wake: KEY, notice: KEY }).contains('7'));
    }

    proptest! {
        #[test]
        fn adm_16_strange_bytes_are_ignored_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(heard(&bytes, &KEY, 0, 0).is_err());
        }

        #[test]
        fn adm_16_strange_bytes_of_the_right_form_are_no_better(tail in prop::collection::vec(any::<u8>(), 76)) {
            let bytes = [&[VERSION, Kind::Wake as u8][..], &tail].concat();
            prop_assert_eq!(heard(&bytes, &KEY, 0, 0), Err(Ignored::BadSeal));
        }
    }
}
