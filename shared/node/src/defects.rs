//! Defects that a simulator seeds into the cores, to prove that it would find them (DESIGN 8). A core is generic over
//! [`Defects`]; production is built with [`NoDefects`], which has none and takes no room, so that what stands behind
//! `D::SEEDED` is not compiled into it at all, down to the defects' names.
//!
//! ```text
//! if !(D::SEEDED && self.defects.has(Defect::OVERLOOKS_MOVES)) { … the rule … }
//! ```

/// One thing that is wrong on purpose, where the rule lives that it breaks. Its name is how a run asks for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Defect(&'static str);

impl Defect {
    /// A relay answers *taken* before the order is on its disk.
    pub const TAKES_BEFORE_COMMIT: Defect = Defect("TakesBeforeCommit");
    /// A relay answers *stored* before the record is on its disk.
    pub const STORES_BEFORE_COMMIT: Defect = Defect("StoresBeforeCommit");
    /// The server answers *settled* before its store has written.
    pub const SETTLES_BEFORE_COMMIT: Defect = Defect("SettlesBeforeCommit");
    /// The server accepts a job before its store has written.
    pub const ACCEPTS_BEFORE_COMMIT: Defect = Defect("AcceptsBeforeCommit");
    /// The server sends an order before its store has written.
    pub const SENDS_BEFORE_COMMIT: Defect = Defect("SendsBeforeCommit");
    /// A device answers *taken* before the order is in its journal.
    pub const JOURNALS_AFTER_TAKEN: Defect = Defect("JournalsAfterTaken");
    /// A device starts a job before its intent is in the journal.
    pub const JOURNALS_AFTER_START: Defect = Defect("JournalsAfterStart");
    /// A device takes an order that its journal knows.
    pub const TAKES_TWICE: Defect = Defect("TakesTwice");
    /// A device or relay deletes what its parent has stored and the server has not settled.
    pub const DELETES_ON_STORED: Defect = Defect("DeletesOnStored");
    /// A device does not offer its records again to a relay with another disk or memory.
    pub const TRUSTS_ANY_MEMORY: Defect = Defect("TrustsAnyMemory");
    /// A parent does not notice that a child relay's disk is another one.
    pub const OVERLOOKS_NEW_DISK: Defect = Defect("OverlooksNewDisk");
    /// A parent leaves an order with the relay that its device has left.
    pub const OVERLOOKS_MOVES: Defect = Defect("OverlooksMoves");
    /// The end of an older link is taken for that of the newer one.
    pub const LATE_CLEANUP_IN_CORE: Defect = Defect("LateCleanupInCore");
    /// Attachments are compared without the epoch they are counted in.
    pub const NO_EPOCH_IN_ATTACHMENT: Defect = Defect("NoEpochInAttachment");
    /// A device forgets a cancel that comes before its order.
    pub const FORGETS_EARLY_CANCEL: Defect = Defect("ForgetsEarlyCancel");
    /// A relay gives a cancelled order back that a child may have.
    pub const GIVES_BACK_HELD: Defect = Defect("GivesBackHeld");
    /// The server ends a cancelled order that somebody below may have.
    pub const CANCELS_HELD: Defect = Defect("CancelsHeld");
    /// Relays and devices take, keep and run what is late.
    pub const EXPIRES_AT_SERVER_ONLY: Defect = Defect("ExpiresAtServerOnly");
    /// The server ends a late order that somebody below may have.
    pub const EXPIRES_HELD: Defect = Defect("ExpiresHeld");
    /// What waited for a device is not offered to it when it is revived.
    pub const REVIVES_SILENTLY: Defect = Defect("RevivesSilently");
    /// The server shows a child up whose link is gone.
    pub const KEEPS_PRESENCE: Defect = Defect("KeepsPresence");
    /// A relay does not tell its parent who came and went.
    pub const TELLS_NO_PRESENCE: Defect = Defect("TellsNoPresence");

    /// Every one.
    pub const ALL: [Defect; 22] = [
        Defect::TAKES_BEFORE_COMMIT,
        Defect::STORES_BEFORE_COMMIT,
        Defect::SETTLES_BEFORE_COMMIT,
        Defect::ACCEPTS_BEFORE_COMMIT,
        Defect::SENDS_BEFORE_COMMIT,
        Defect::JOURNALS_AFTER_TAKEN,
        Defect::JOURNALS_AFTER_START,
        Defect::TAKES_TWICE,
        Defect::DELETES_ON_STORED,
        Defect::TRUSTS_ANY_MEMORY,
        Defect::OVERLOOKS_NEW_DISK,
        Defect::OVERLOOKS_MOVES,
        Defect::LATE_CLEANUP_IN_CORE,
        Defect::NO_EPOCH_IN_ATTACHMENT,
        Defect::FORGETS_EARLY_CANCEL,
        Defect::GIVES_BACK_HELD,
        Defect::CANCELS_HELD,
        Defect::EXPIRES_AT_SERVER_ONLY,
        Defect::EXPIRES_HELD,
        Defect::REVIVES_SILENTLY,
        Defect::KEEPS_PRESENCE,
        Defect::TELLS_NO_PRESENCE,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        self.0
    }
}

/// Which defects a core has.
pub trait Defects: Copy + Default + 'static {
    /// Whether there may be any. Asked first at each place, so that without it the place is not there.
    const SEEDED: bool;

    /// Whether this one is there.
    fn has(self, defect: Defect) -> bool;
}

/// None: what production is built with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoDefects;

impl Defects for NoDefects {
    const SEEDED: bool = false;

    #[inline(always)]
    fn has(self, _: Defect) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn production_has_no_defect_and_no_room_for_one() {
        assert_eq!(size_of::<NoDefects>(), 0);
        const { assert!(!NoDefects::SEEDED) };
        assert!(Defect::ALL.iter().all(|defect| !NoDefects.has(*defect)));
    }

    #[test]
    fn every_defect_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = Defect::ALL.iter().map(|defect| defect.name()).collect();
        assert_eq!(names.len(), Defect::ALL.len());
    }
}
