//! What a child's lease says of how it is reached, when it is due, and since when it holds a slot or waits for one.

use branchline_protocol::{
    id::Role,
    time::Millis,
    wire::{Lease, Reach, SlotStanding},
};

/// How a child is reached.
pub(super) fn reach(lease: Option<Lease>, wakeable: bool) -> Reach {
    match (lease, wakeable) {
        (None, _) => Reach::Persistent,
        (Some(_), true) => Reach::Wakeable,
        (Some(_), false) => Reach::Polling,
    }
}

/// When a child that was in contact at `at` is due again, as it counts itself.
pub(super) fn due(lease: Lease, at: Millis) -> Millis {
    at.plus(i64::try_from(lease.next_ms(at)).unwrap_or(i64::MAX))
}

/// The slot that a child holds or waits for from `at` on. Whoever held or waited before goes on since then: a newer link
/// takes over the older one's slot or place in line. Relays hold no slot (ADM-7).
pub(super) fn standing(
    before: Option<SlotStanding>,
    role: Role,
    lease: Option<Lease>,
    at: Millis,
) -> Option<SlotStanding> {
    let waiter = lease.map_or(0, |lease| lease.waiter);
    if role == Role::Relay || lease.is_some() && waiter == 0 {
        return None;
    }
    let same = before.filter(|before| (before.waiter == 0) == (waiter == 0));
    Some(SlotStanding { since: same.map_or(at, |before| before.since), waiter })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Directory,
            tests::{attach, node},
        },
        *,
    };

    fn lease(waiter: u32) -> Option<Lease> {
        Some(Lease { interval_ms: 1_000, phase_ms: 3, waiter })
    }

    #[test]
    fn con_4_who_waits_does_so_since_its_first_poll_and_who_holds_since_it_came() {
        let mut d = Directory::default();
        let mut come = |attachment: u64, lease: Option<Lease>| {
            let child = attach(7, Role::Agent, attachment, attachment);
            assert!(d.attach(super::super::Attach { lease, ..child }));
            let entry = d.get(node(7)).unwrap();
            (entry.reach, entry.slot.map(|slot| (slot.since.0, slot.waiter)), entry.poll_interval_ms)
        };
        assert_eq!(come(10, lease(5)), (Reach::Polling, Some((10, 5)), Some(1_000)));
        assert_eq!(come(20, lease(2)), (Reach::Polling, Some((10, 2)), Some(1_000)), "it waits since 10");
        assert_eq!(come(30, None), (Reach::Persistent, Some((30, 0)), None));
        assert_eq!(come(40, None), (Reach::Persistent, Some((30, 0)), None), "a newer link, the same slot");
        assert_eq!(come(50, lease(0)), (Reach::Polling, None, Some(1_000)), "it wants none");
        d.lease(node(7), Lease { waiter: 9, ..lease(0).unwrap() }, false, Millis(60));
        let told = d.changes().pop().unwrap();
        assert_eq!(
            (told.slot, told.next_contact),
            (Some(SlotStanding { since: Millis(60), waiter: 9 }), Some(Millis(1_003)))
        );
    }

    #[test]
    fn a_relay_holds_no_slot_and_a_wake_port_makes_wakeable() {
        assert_eq!(standing(None, Role::Relay, None, Millis(1)), None);
        assert_eq!(reach(lease(0), true), Reach::Wakeable);
        assert_eq!(reach(None, true), Reach::Persistent);
    }

    #[test]
    fn adm_15_a_contact_between_two_polls_leaves_the_next_one_where_it_is() {
        let lease = Lease { interval_ms: 3_600_000, phase_ms: 300_000, waiter: 0 };
        assert_eq!([500_000, 601_000, 3_600_000].map(|at| due(lease, Millis(at)).0), [3_900_000; 3]);
        assert_eq!(due(lease, Millis(3_721_000)).0, 7_500_000, "that one was the poll");
        let endless = Lease { interval_ms: u64::MAX, phase_ms: u64::MAX, waiter: 0 };
        assert!(due(endless, Millis(i64::MAX)).0 > 0 && due(endless, Millis(0)).0 <= Lease::INTERVAL_MS_MAX as i64 * 2);
    }
}
