//! How much a device needs a slot, and how many slots each need keeps (ADM-1, decision 32).

use serde::Serialize;
use std::ops::{Index, IndexMut};

/// How much a device needs to stay attached. Higher goes first in line and may displace what is lower.
///
/// What it is comes from signed documents and orders that the parent holds; what the device itself says only tells
/// [`Need::None`] from [`Need::Ordinary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// It polls.
    None,
    /// It asks for a slot, and nobody has said that it needs one.
    Ordinary,
    /// It is to keep its connection (ADM-1).
    Keep,
    /// An urgent order for it is open.
    Urgent,
}

impl Need {
    /// Those that take a slot, lowest first.
    pub const SLOTTED: [Need; 3] = [Need::Ordinary, Need::Keep, Need::Urgent];

    /// One higher, if there is.
    pub fn raised(self, steps: u8) -> Need {
        (0..steps).fold(self, |need, _| match need {
            Need::None => Need::None,
            Need::Ordinary => Need::Keep,
            Need::Keep | Need::Urgent => Need::Urgent,
        })
    }
}

/// What the open orders of a device ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// An urgent one is open.
    pub urgent: bool,
    /// The device has one that is not over: its slot is not taken from it meanwhile.
    pub in_progress: bool,
}

/// One number for each need that takes a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ByNeed {
    /// [`Need::Ordinary`].
    pub ordinary: u32,
    /// [`Need::Keep`].
    pub keep: u32,
    /// [`Need::Urgent`].
    pub urgent: u32,
}

impl Index<Need> for ByNeed {
    type Output = u32;

    fn index(&self, need: Need) -> &u32 {
        match need {
            Need::None | Need::Ordinary => &self.ordinary,
            Need::Keep => &self.keep,
            Need::Urgent => &self.urgent,
        }
    }
}

impl IndexMut<Need> for ByNeed {
    fn index_mut(&mut self, need: Need) -> &mut u32 {
        match need {
            Need::None | Need::Ordinary => &mut self.ordinary,
            Need::Keep => &mut self.keep,
            Need::Urgent => &mut self.urgent,
        }
    }
}

/// Slots that each need with waiters keeps: 5 % of the cap, a part of a slot being a whole one. Below three slots there is
/// not one for each, and the higher need goes first without bound.
pub(super) fn share(cap: u16) -> u32 {
    if cap < 3 { 0 } else { u32::from(cap).div_ceil(20) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adm_3_a_need_keeps_five_percent_and_all_three_fit_whatever_the_cap() {
        assert_eq!([1, 2, 3, 20, 21, 40, 300].map(share), [0, 0, 1, 1, 2, 2, 15]);
        for cap in 1..=1_000 {
            assert!(3 * share(cap) <= u32::from(cap), "{cap}");
            assert!(cap < 3 || share(cap) * 20 >= u32::from(cap), "{cap}");
        }
    }

    #[test]
    fn a_need_rises_to_the_highest_and_no_device_rises_that_wants_no_slot() {
        assert_eq!(
            [0, 1, 2, 9].map(|n| Need::Ordinary.raised(n)),
            [Need::Ordinary, Need::Keep, Need::Urgent, Need::Urgent]
        );
        assert_eq!(Need::None.raised(5), Need::None);
    }
}
