//! The node's randomness: the one home of chance outside key generation.

use aws_lc_rs::rand::SecureRandom;
use branchline_protocol::time::Millis;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use uuid::Uuid;

/// Where a node's random numbers come from.
pub trait Random: Send + Sync + 'static {
    /// Fills the bytes.
    fn fill(&self, bytes: &mut [u8]);

    /// A random number.
    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_be_bytes(bytes)
    }

    /// Uniform in 0 ..= `max`; the bias of the remainder is below 2^-32 for every `max` the product uses.
    fn up_to(&self, max: u64) -> u64 {
        if max == u64::MAX { self.next_u64() } else { self.next_u64() % (max + 1) }
    }

    /// A new id that sorts by time (UUID version 7).
    fn id(&self, now: Millis) -> Uuid {
        let mut bytes = [0; 10];
        self.fill(&mut bytes);
        uuid::Builder::from_unix_timestamp_millis(now.0.max(0) as u64, &bytes).into_uuid()
    }
}

/// The operating system's randomness.
pub struct SystemRandom(aws_lc_rs::rand::SystemRandom);

impl SystemRandom {
    /// Shared by a process.
    pub fn shared() -> Arc<dyn Random> {
        Arc::new(SystemRandom(aws_lc_rs::rand::SystemRandom::new()))
    }
}

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.fill(bytes).expect("a machine without randomness cannot run a node");
    }
}

/// The same numbers for the same seed (splitmix64). For tests and the simulator, never for secrets.
pub struct SeededRandom(AtomicU64);

impl SeededRandom {
    /// From a seed.
    pub fn shared(seed: u64) -> Arc<dyn Random> {
        Arc::new(SeededRandom(AtomicU64::new(seed)))
    }
}

impl Random for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst).wrapping_add(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_be_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_ids_sort_by_time() {
        let (a, b) = (SeededRandom::shared(7), SeededRandom::shared(7));
        assert_eq!(a.next_u64(), b.next_u64());
        assert!(a.id(Millis(1_000)) < a.id(Millis(2_000)));
        assert!((0..100).all(|_| a.up_to(3) <= 3));
    }
}
