//! Storms of a whole fleet in virtual time: 7,000 agents below 40 relays and 3,000 that roam through the gateway to one
//! server with 300 slots. What decides is what runs in production: the children's path and rhythm; rate and admission of
//! relays and server with their leases; the gateway's limit per source, its answer without a server and its trunks'
//! back-off. Between them there is nothing but the clock.

mod away;
mod child;
mod fleet;
mod house;
mod relays;
mod spread;

use std::collections::BTreeMap;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// How many of these instants fall into each stretch of so many milliseconds between two instants; stretches without any
/// count, too.
fn per(stretch_ms: u64, from: u64, to: u64, instants: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut counts = vec![0; (to - from).div_ceil(stretch_ms).max(1) as usize];
    for at in instants.into_iter().filter(|at| (from..to).contains(at)) {
        counts[((at - from) / stretch_ms) as usize] += 1;
    }
    counts
}

/// The most of these instants, in their order, that lie within any second.
fn most_in_a_second(instants: &[u64]) -> usize {
    let within = |(n, from): (usize, &u64)| instants[n..].partition_point(|to| to - from < SECOND);
    instants.iter().enumerate().map(within).max().unwrap_or(0)
}

/// The stretches in a row whose counts are above twice the mean of all: each such row is a peak.
fn peaks(counts: &[u64]) -> Vec<std::ops::Range<usize>> {
    let above = |n: &usize| counts[*n] * counts.len() as u64 > 2 * counts.iter().sum::<u64>();
    let mut peaks: Vec<std::ops::Range<usize>> = Vec::new();
    for n in (0..counts.len()).filter(above) {
        match peaks.last_mut() {
            Some(last) if last.end == n => last.end = n + 1,
            _ => peaks.push(n..n + 1),
        }
    }
    peaks
}

/// Counts by a key.
fn by<K: Ord>(keys: impl IntoIterator<Item = K>) -> BTreeMap<K, u64> {
    let mut counts = BTreeMap::new();
    keys.into_iter().for_each(|key| *counts.entry(key).or_insert(0) += 1);
    counts
}

/// The instant by which so many hundredths of them have passed.
fn hundredth(instants: &[u64], hundredths: usize) -> u64 {
    let mut sorted = instants.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * hundredths).div_ceil(100) - 1]
}
