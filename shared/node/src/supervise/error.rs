//! Why a supervisor does not take someone on. Faults of those it did take on are in `exit`.

/// Why a child or a kind of worker was not taken on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// Names tell children and kinds of worker apart in reports and in `needs`.
    #[error("child name {0:?} is taken")]
    NameTaken(String),
    /// A child names only those made known before it; so needs never form a circle.
    #[error("child needs {0:?}, which was not added before it")]
    UnknownNeed(String),
    /// The node is stopping or has to end.
    #[error("node is ending")]
    Ending,
}

/// Why a worker may not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// No such kind was added.
    #[error("worker kind {0:?} is not known")]
    UnknownKind(String),
    /// It was past its intensity; an operator releases it.
    #[error("worker is parked")]
    Parked,
    /// As many live as the kind allows.
    #[error("worker kind is at its bound")]
    Full,
    /// A child it needs is down: try again later.
    #[error("a needed child is down")]
    NeedDown,
    /// The node is stopping or has to end.
    #[error("node is ending")]
    Ending,
}
