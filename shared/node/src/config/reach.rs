//! How a node may reach its upstream.

/// Which of its upstreams' routes a child may use (TOP-3, TOP-4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Straight to the parent's link port only: an inside node with the gateway switched off.
    Direct,
    /// Through a gateway only: an outside node.
    Gateway,
    /// Straight first, through a gateway otherwise.
    #[default]
    Any,
}

impl Reach {
    /// The words of the configuration.
    pub const WORDS: [(&'static str, Reach); 3] =
        [("direct", Reach::Direct), ("gateway", Reach::Gateway), ("any", Reach::Any)];

    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Reach::Direct => "direct",
            Reach::Gateway => "gateway",
            Reach::Any => "any",
        }
    }
}
