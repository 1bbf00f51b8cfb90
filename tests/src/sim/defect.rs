//! What is wrong on purpose, to prove that the simulator finds what it is for: defects of the cores, which are seeded
//! through their type parameter, and defects of the world around them. Never in production.

use branchline_node::defects::{self, Defects};

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// One of a production core's own.
    InCore(defects::Defect),
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

/// Those of the world, by name.
const OF_THE_WORLD: [(&str, Defect); 13] = [
    ("TellsBeforeSync", Defect::TellsBeforeSync),
    ("NoSync", Defect::NoSync),
    ("HalfBatches", Defect::HalfBatches),
    ("AttachmentNotKept", Defect::AttachmentNotKept),
    ("LosesOrders", Defect::LosesOrders),
    ("LateCleanup", Defect::LateCleanup),
    ("ForgetsFolders", Defect::ForgetsFolders),
    ("StartsAgain", Defect::StartsAgain),
    ("NoNodeTime", Defect::NoNodeTime),
    ("ServerTellsEarly", Defect::ServerTellsEarly),
    ("ServerForgetsNumber", Defect::ServerForgetsNumber),
    ("ServerForgetsStreams", Defect::ServerForgetsStreams),
    ("ServerForgetsEnds", Defect::ServerForgetsEnds),
];

impl Defect {
    /// Every one with its name, those of the cores first.
    pub fn all() -> Vec<(&'static str, Defect)> {
        let of_cores = defects::Defect::ALL.into_iter().map(|defect| (defect.name(), Defect::InCore(defect)));
        of_cores.chain(OF_THE_WORLD).collect()
    }

    /// The defect of this name.
    pub fn named(name: &str) -> Option<Defect> {
        Defect::all().into_iter().find(|(of, _)| *of == name).map(|(_, defect)| defect)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Defect::all().into_iter().find(|(_, defect)| *defect == self).map_or("", |(name, _)| name)
    }
}

impl std::fmt::Debug for Defect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What the cores of a run are built with: at most one defect, chosen when the run begins.
#[derive(Clone, Copy, Default)]
pub struct Seeded(Option<defects::Defect>);

impl Seeded {
    /// For the cores of a run with this defect.
    pub fn of(defect: Option<Defect>) -> Seeded {
        Seeded(match defect {
            Some(Defect::InCore(defect)) => Some(defect),
            _ => None,
        })
    }
}

impl Defects for Seeded {
    const SEEDED: bool = true;

    fn has(self, defect: defects::Defect) -> bool {
        self.0 == Some(defect)
    }
}
