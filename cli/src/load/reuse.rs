//! The folder in which a measurement keeps its nodes, so that the next one need not enrol them again.

use crate::{
    failure::Failure,
    verbs::load::{Args, Below},
};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Says for which tree a folder was made.
const FILE: &str = "load.json";

/// A tree, as far as its nodes differ by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    mode: String,
    relays: u32,
    agents: u32,
    /// Whether the agents' journals were on no disk.
    volatile_agents: bool,
}

impl Made {
    /// What these options ask for.
    pub fn of(args: &Args) -> Made {
        let mode = args.mode.to_possible_value().map_or_else(String::new, |mode| mode.get_name().to_owned());
        let below = if args.below == Some(Below::Gateway) { " --below gateway" } else { "" };
        Made { mode: mode + below, relays: args.relays, agents: args.agents, volatile_agents: args.volatile_agents }
    }

    fn options(&self) -> String {
        let volatile = if self.volatile_agents { " --volatile-agents" } else { "" };
        format!("--mode {} --relays {} --agents {}{volatile}", self.mode, self.relays, self.agents)
    }

    /// Checks that the folder is new, empty, or of such a tree, and returns it absolute. Whoever uses it then keeps
    /// [`Made::mark`] in it.
    pub fn fits(&self, folder: &Path) -> Result<PathBuf, Failure> {
        let wrong = |code: &str, why: String| {
            let message = format!("cannot use the state folder {}: {why}", folder.display());
            Failure::wrong(code, message).field("state")
        };
        let unusable = |e: std::io::Error| wrong("bad_state", e.to_string());
        match std::fs::read_dir(folder).map(|mut entries| entries.next().is_some()) {
            Ok(true) => match std::fs::read(folder.join(FILE)) {
                Ok(text) => {
                    let made: Made = serde_json::from_slice(&text)
                        .map_err(|e| wrong("bad_state", format!("its {FILE} is no use ({e}); remove the folder")))?;
                    if made != *self {
                        let (made, wanted) = (made.options(), self.options());
                        let why = format!("it was made by {made}, and this is {wanted}; use another --state");
                        return Err(wrong("other_state", why));
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    return Err(wrong("state_not_empty", "it is not empty, and no measurement made it".into()));
                }
                Err(e) => return Err(unusable(e)),
            },
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(unusable(e)),
            _ => {}
        }
        std::path::absolute(folder).map_err(unusable)
    }

    /// Its name and content.
    pub fn mark(&self) -> (&'static str, String) {
        (FILE, serde_json::to_string(self).expect("plain data"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Made {
        Made { mode: "fanout".into(), relays: 2, agents: 3, volatile_agents: false }
    }

    #[test]
    fn a_folder_is_used_again_by_the_same_tree_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert_eq!(made().fits(path).unwrap(), path, "an empty one");
        let absent = path.join("absent");
        assert_eq!(made().fits(&absent).unwrap(), absent);
        let (name, text) = made().mark();
        std::fs::write(path.join(name), text).unwrap();
        std::fs::write(path.join("ports.json"), "").unwrap();
        assert_eq!(made().fits(path).unwrap(), path, "the same tree");
        for other in [
            Made { mode: "links".into(), ..made() },
            Made { relays: 1, ..made() },
            Made { relays: 3, ..made() },
            Made { agents: 2, ..made() },
            Made { agents: 4, ..made() },
            Made { volatile_agents: true, ..made() },
        ] {
            let failure = other.fits(path).unwrap_err();
            let told = (failure.exit, failure.code.as_str(), failure.field.as_deref());
            assert_eq!(told, (2, "other_state", Some("state")), "{other:?}");
            assert!(failure.message.contains(&made().options()), "{failure}");
            assert!(failure.message.contains(&other.options()), "{failure}");
        }
    }

    #[test]
    fn a_folder_that_no_measurement_made_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::write(path.join("x"), "").unwrap();
        assert_eq!(made().fits(path).unwrap_err().code, "state_not_empty");
        std::fs::write(path.join(FILE), "{}").unwrap();
        assert_eq!(made().fits(path).unwrap_err().code, "bad_state");
        assert_eq!(made().fits(&path.join("x")).unwrap_err().code, "bad_state", "a file");
    }
}
