//! Who has long been at the cap of the back-off does not come in step with the others.

use super::{
    HOUR, MINUTE, SECOND,
    fleet::{Fleet, ROAMING},
    per,
};
use branchline_node::uplink::rhythm::BACKOFF_MS_MAX;

#[test]
fn rly_11_at_the_cap_of_the_back_off_three_thousand_knock_evenly() {
    for seed in 1..=3 {
        let mut fleet = Fleet::settled(seed);
        let gone = fleet.now;
        fleet.gateway_goes(false);
        for (after, hundredths) in [(25 * MINUTE, 100), (2 * HOUR, 35), (4 * HOUR, 35)] {
            fleet.run(gone + after);
            let (from, to) = (fleet.now - 10 * MINUTE, fleet.now);
            let dials = || fleet.children[Fleet::roaming()].iter().flat_map(|c| c.dials.iter().copied());
            let counts = per(10 * SECOND, from, to, dials());
            let mean = counts.iter().sum::<u64>() / counts.len() as u64;
            let (least, most) = (*counts.iter().min().unwrap(), *counts.iter().max().unwrap());
            println!(
                "seed {seed}, {} min at the cap: {least} to {most} dials within 10 s, {mean} the mean",
                after / MINUTE
            );
            let even = ROAMING as u64 * 10 * SECOND / BACKOFF_MS_MAX;
            if after >= HOUR {
                assert!(mean.abs_diff(even) * 10 <= even, "seed {seed}: one dial each in 300 s are {even}, not {mean}");
            }
            assert!(most * 100 <= mean * (100 + hundredths), "seed {seed}, after {} min: {counts:?}", after / MINUTE);
            if after >= HOUR {
                assert!(
                    least * 100 >= mean * (100 - hundredths),
                    "seed {seed}, after {} min: {counts:?}",
                    after / MINUTE
                );
            }
        }
        // When each comes next: spread over all of the wait, not over the jitter of one.
        let next = fleet.children[Fleet::roaming()].iter().filter_map(|c| c.next);
        let tenths = per(BACKOFF_MS_MAX / 10, fleet.now, fleet.now + BACKOFF_MS_MAX, next);
        let early = &tenths[..7];
        let (least, most) = (early.iter().min().unwrap(), early.iter().max().unwrap());
        assert!(*least >= 240 && *most <= 360, "seed {seed}: 300 are even: {tenths:?}");
    }
}
