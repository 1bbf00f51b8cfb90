//! What can go wrong, and how often each is tried.

use std::collections::BTreeMap;

/// Kinds of fault. A fault counts once it hit something in flight: a message, an un-synced write, a live process, a
/// running job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A connection breaks with frames under way, which are lost.
    Cut,
    /// A connection breaks just after a message was read: its answer is lost, it is sent again.
    Resend,
    /// Nothing arrives any more and neither end is told.
    HalfOpen,
    /// Frames under way are late; those of other links overtake them.
    Delay,
    /// A relay's uplink, or a handful of agents, have no network for a while.
    Partition,
    /// An agent's process dies.
    CrashAgent,
    /// A relay's process dies.
    CrashRelay,
    /// The server's process dies.
    CrashServer,
    /// The gateway's process dies, and with it every link through it.
    CrashGateway,
    /// A machine loses its power with un-synced writes, all of which are lost.
    LostWrite,
    /// The same; some of them reached the disk.
    TornWrite,
    /// A process dies after the write and before anybody is told.
    UntoldWrite,
    /// A write meets a full disk.
    FullDisk,
    /// A wall clock is set.
    ClockJump,
    /// A process stands still, as by SIGSTOP.
    Freeze,
    /// A machine sleeps: its monotonic clock stands still too.
    Sleep,
    /// A device changes its network: another relay, the gateway, or the server itself.
    Move,
    /// A machine's disk is that of an older snapshot.
    Restore,
    /// A relay's disk is replaced, and the relay enrols anew.
    DiskLoss,
    /// A job's processes are killed in mid-run.
    JobCut,
}

impl Fault {
    /// Every kind with how often it is tried: many a try finds nothing to hit.
    pub const MIX: [(Fault, u64); 20] = [
        (Fault::Cut, 25),
        (Fault::Resend, 16),
        (Fault::HalfOpen, 9),
        (Fault::Delay, 30),
        (Fault::Partition, 9),
        (Fault::CrashAgent, 5),
        (Fault::CrashRelay, 3),
        (Fault::CrashServer, 2),
        (Fault::CrashGateway, 2),
        (Fault::LostWrite, 6),
        (Fault::TornWrite, 5),
        (Fault::UntoldWrite, 6),
        (Fault::FullDisk, 3),
        (Fault::ClockJump, 3),
        (Fault::Freeze, 3),
        (Fault::Sleep, 3),
        (Fault::Move, 7),
        (Fault::Restore, 3),
        (Fault::DiskLoss, 3),
        (Fault::JobCut, 6),
    ];

    /// Its word in the report.
    pub fn word(self) -> &'static str {
        match self {
            Fault::Cut => "cut",
            Fault::Resend => "resend",
            Fault::HalfOpen => "half_open",
            Fault::Delay => "delay",
            Fault::Partition => "partition",
            Fault::CrashAgent => "crash_agent",
            Fault::CrashRelay => "crash_relay",
            Fault::CrashServer => "crash_server",
            Fault::CrashGateway => "crash_gateway",
            Fault::LostWrite => "lost_write",
            Fault::TornWrite => "torn_write",
            Fault::UntoldWrite => "untold_write",
            Fault::FullDisk => "full_disk",
            Fault::ClockJump => "clock_jump",
            Fault::Freeze => "freeze",
            Fault::Sleep => "sleep",
            Fault::Move => "move",
            Fault::Restore => "restore",
            Fault::DiskLoss => "disk_loss",
            Fault::JobCut => "job_cut",
        }
    }
}

/// Faults that hit something, by kind.
pub type Counts = BTreeMap<&'static str, u64>;
