//! Defects seeded into the world around the production cores, to prove that the simulator finds what it is for. Never
//! in production: the cores know nothing of them.

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// A store answers that a batch is durable as soon as it has it.
    TellsBeforeSync,
    /// A store's sync does not reach the disk.
    NoSync,
    /// A crash leaves half of a batch.
    HalfBatches,
    /// A store forgets the attachment number.
    AttachmentNotKept,
    /// A parent loses orders on their way to a child whose link goes on.
    LosesOrders,
    /// The end of an older link is taken for the end of the newer one.
    LateCleanup,
    /// What a job left in its folder is gone after a restart of the agent.
    ForgetsFolders,
    /// A job of which nothing is left is started once more.
    StartsAgain,
    /// A device goes by its own clock.
    NoNodeTime,
    /// The server answers before its store has written.
    ServerTellsEarly,
    /// The server's counter of orders is not kept.
    ServerForgetsNumber,
    /// The server's stream positions are not kept.
    ServerForgetsStreams,
    /// The server's store loses one end in three.
    ServerForgetsEnds,
}

impl Defect {
    /// Every one.
    pub const ALL: [Defect; 13] = [
        Defect::TellsBeforeSync,
        Defect::NoSync,
        Defect::HalfBatches,
        Defect::AttachmentNotKept,
        Defect::LosesOrders,
        Defect::LateCleanup,
        Defect::ForgetsFolders,
        Defect::StartsAgain,
        Defect::NoNodeTime,
        Defect::ServerTellsEarly,
        Defect::ServerForgetsNumber,
        Defect::ServerForgetsStreams,
        Defect::ServerForgetsEnds,
    ];

    /// The defect of this name, as `{:?}` writes it.
    pub fn named(name: &str) -> Option<Defect> {
        Defect::ALL.into_iter().find(|defect| format!("{defect:?}") == name)
    }
}
