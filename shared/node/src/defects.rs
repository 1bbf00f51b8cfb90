//! Defects that a simulator seeds into the cores, to prove that it would find them (DESIGN 8). A core is generic over
//! [`Defects`]; production is built with [`NoDefects`], which has none and takes no room, so that what stands behind
//! `D::SEEDED` is not compiled into it at all, down to the defects' names.
//!
//! ```text
//! if !(D::SEEDED && self.defects.has(Defect::FORGETS_TOMBS)) { … the rule … }
//! ```

/// One thing that is wrong on purpose, where the rule lives that it breaks. Its name is how a run asks for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Defect(&'static str);

impl Defect {
    /// Every one.
    pub const ALL: [Defect; 0] = [];

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
