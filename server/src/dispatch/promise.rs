//! How long a job takes to reach a device at the most, by how the device is reached (pure).

use branchline_protocol::wire::Reach;

/// Milliseconds within which an order reaches a device that holds a slot (ADM-13): it crosses links that are up, and each
/// node on the way writes it down first.
pub const PERSISTENT_MS: u64 = 5_000;

/// Milliseconds from issue to the device at the most, while the way to it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// Of an urgent job.
    pub urgent_ms: u64,
    /// Of a normal job.
    pub normal_ms: u64,
}

/// What is promised of a device that is online. One poll serves all classes, so that both are the same: the interval that
/// its parent leases, which is that of the most pressing class it can do, and the tenth by which polls vary (ADM-8 to
/// ADM-10). A wake packet may be lost, so it promises nothing that a poll does not. `None`: the interval is not known yet.
pub fn promise(reach: Reach, poll_interval_ms: Option<u64>) -> Option<Promise> {
    let ms = match reach {
        Reach::Persistent => PERSISTENT_MS,
        _ => poll_interval_ms.map(|ms| ms.saturating_add(ms.div_ceil(10)))?,
    };
    Some(Promise { urgent_ms: ms, normal_ms: ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adm_9_adm_10_the_promise_of_each_default_interval() {
        let ms = |reach, interval_s: Option<u64>| promise(reach, interval_s.map(|s| s * 1_000)).map(|p| p.urgent_ms);
        assert_eq!(ms(Reach::Persistent, None), Some(5_000));
        assert_eq!(ms(Reach::Polling, Some(3_600)), Some(66 * 60_000), "a normal job at most 66 min");
        assert_eq!(ms(Reach::Polling, Some(600)), Some(11 * 60_000), "a lock at most 11 min");
        assert_eq!(ms(Reach::Wakeable, Some(900)), Some(990_000), "delete_path at most 16.5 min");
        assert_eq!(ms(Reach::Polling, None), None);
    }
}
