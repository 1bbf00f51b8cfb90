//! How many may be attached at once, and for how long a freed slot is kept for the one it was promised to.

use branchline_protocol::refusal::Refusal;

/// The most slots of one node that need no explicit permission (ADM-2, ADM-6).
pub const SLOTS_MAX_PLAIN: u16 = 300;
/// The longest poll interval: 7 days (ADM-14).
pub const POLL_INTERVAL_MS_MAX: u64 = 7 * 24 * 3_600_000;

/// A node's number of persistent device slots: 1 to 300, or to 65,535 with `allow_above_300` (ADM-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cap(u16);

impl Cap {
    /// Checks a number as it stands in a configuration or in the settings.
    ///
    /// # Errors
    /// 422 `slots_out_of_range` on field `slots` for anything outside the range.
    pub fn new(slots: i64, allow_above_300: bool) -> Result<Self, Refusal> {
        let max = if allow_above_300 { u16::MAX } else { SLOTS_MAX_PLAIN };
        match u16::try_from(slots) {
            Ok(cap) if cap >= 1 && cap <= max => Ok(Cap(cap)),
            _ => {
                let hint = if allow_above_300 { "" } else { "; more needs allow_above_300 = true" };
                let message = format!("slots must be 1 to {max}, got {slots}{hint}");
                Err(Refusal::new(422, "slots_out_of_range", message).field("slots"))
            }
        }
    }

    /// The number of slots.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for Cap {
    fn default() -> Self {
        Cap(SLOTS_MAX_PLAIN)
    }
}

/// What an [`Admission`](super::Admission) decides by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmissionConfig {
    pub(super) cap: Cap,
    pub(super) poll_interval_ms: u64,
    pub(super) reservation_wakeable_ms: u64,
    /// Set by hand; else by the waiter's own interval.
    pub(super) reservation_polling_ms: Option<u64>,
    pub(super) relay_pool: u16,
    pub(super) poll_pool: u16,
    pub(super) bulk_pool: u16,
}

impl AdmissionConfig {
    /// `cap` slots and the default rest: hourly polls, a freed slot kept for 3 s (wakeable) or one poll interval and
    /// a tenth (polling), 512 relays, 64 polls and 32 bulk links at once.
    pub fn new(cap: Cap) -> Self {
        AdmissionConfig {
            cap,
            poll_interval_ms: 3_600_000,
            reservation_wakeable_ms: 3_000, // ADM-3: a wakeable waiter holds the slot within 5 s, or the next one is tried
            reservation_polling_ms: None,
            relay_pool: 512,
            poll_pool: 64,
            bulk_pool: 32,
        }
    }

    /// The same with another poll interval; a slot freed for a polling waiter is kept for that and a tenth.
    ///
    /// # Errors
    /// 422 `poll_interval_out_of_range` for 0 and for more than 7 days. (The lower bound of 60 s for settings made by
    /// an administrator is the settings' own: a test may poll faster.)
    pub fn poll_interval_ms(mut self, ms: u64) -> Result<Self, Refusal> {
        if ms == 0 || ms > POLL_INTERVAL_MS_MAX {
            let message = format!("poll interval must be 1 to {POLL_INTERVAL_MS_MAX} ms, got {ms}");
            return Err(Refusal::new(422, "poll_interval_out_of_range", message).field("poll_interval_ms"));
        }
        self.poll_interval_ms = ms;
        Ok(self)
    }

    /// The same with another number of slots.
    pub fn with_cap(self, cap: Cap) -> Self {
        AdmissionConfig { cap, ..self }
    }

    /// The same with other times, in milliseconds, for which a freed slot stays reserved for its waiter. Each is at
    /// least 1: a reservation that lapses as it is made would pass down the line without end.
    pub fn reservation_ms(mut self, wakeable: u64, polling: u64) -> Self {
        self.reservation_wakeable_ms = wakeable.max(1);
        self.reservation_polling_ms = Some(polling.max(1));
        self
    }

    /// For how long a freed slot is kept for one that polls at this interval, or at the node's own.
    pub(super) fn polling_reservation_ms(&self, interval_ms: Option<u64>) -> u64 {
        self.reservation_polling_ms.unwrap_or_else(|| {
            let ms = interval_ms.unwrap_or(self.poll_interval_ms);
            // One interval and a tenth: polls carry up to 10 % of jitter (ADM-8), and a live waiter must not miss its slot
            // by it.
            ms.saturating_add(ms.div_ceil(10))
        })
    }

    /// The same with other pools: relay uplinks, polls and bulk links at once. 0 closes a pool.
    pub fn pools(mut self, relays: u16, polls: u16, bulk: u16) -> Self {
        (self.relay_pool, self.poll_pool, self.bulk_pool) = (relays, polls, bulk);
        self
    }
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        AdmissionConfig::new(Cap::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adm_6_a_cap_is_1_to_300() {
        for good in [1, 299, 300] {
            assert_eq!(Cap::new(good, false).map(Cap::get), Ok(good as u16));
        }
        for bad in [i64::MIN, -1, 0, 301, 65_535, 65_536, i64::MAX] {
            let refusal = Cap::new(bad, false).expect_err("outside the range");
            assert_eq!((refusal.status, refusal.code.as_str()), (422, "slots_out_of_range"), "{bad}");
            assert_eq!(refusal.field.as_deref(), Some("slots"), "{bad}");
        }
    }

    #[test]
    fn adm_6_above_300_only_with_the_switch() {
        for good in [1, 300, 301, 65_535] {
            assert_eq!(Cap::new(good, true).map(|c| i64::from(c.get())), Ok(good));
        }
        for bad in [-1, 0, 65_536] {
            assert_eq!(Cap::new(bad, true).expect_err("outside the range").code, "slots_out_of_range", "{bad}");
        }
    }

    #[test]
    fn the_defaults_are_pinned() {
        let expected = AdmissionConfig {
            cap: Cap(300),
            poll_interval_ms: 3_600_000,
            reservation_wakeable_ms: 3_000,
            reservation_polling_ms: None,
            relay_pool: 512,
            poll_pool: 64,
            bulk_pool: 32,
        };
        assert_eq!(AdmissionConfig::default(), expected);
    }

    #[test]
    fn a_poll_interval_at_its_bounds_and_one_past_them() {
        let interval = |ms| AdmissionConfig::default().poll_interval_ms(ms);
        assert_eq!(interval(1).map(|c| c.polling_reservation_ms(None)), Ok(2));
        assert_eq!(interval(600_000).map(|c| c.polling_reservation_ms(None)), Ok(660_000));
        assert_eq!(interval(600_000).map(|c| c.polling_reservation_ms(Some(900_000))), Ok(990_000), "the waiter's own");
        assert_eq!(interval(1).map(|c| c.reservation_ms(1, 0).polling_reservation_ms(Some(900_000))), Ok(1), "by hand");
        assert!(interval(POLL_INTERVAL_MS_MAX).is_ok());
        for bad in [0, POLL_INTERVAL_MS_MAX + 1, u64::MAX] {
            let refusal = interval(bad).expect_err("outside the range");
            assert_eq!(refusal.field.as_deref(), Some("poll_interval_ms"), "{bad}");
        }
    }
}
