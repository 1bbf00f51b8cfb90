//! One file a verb.

pub mod agent_host;
pub mod audit;
pub mod backup;
pub mod bundle;
pub mod cancel;
pub mod device;
pub mod devices;
pub mod enrol_token;
pub mod explain;
pub mod inventory;
pub mod job;
pub mod jobs;
pub mod keep;
pub mod load;
pub mod node;
pub mod recovery;
pub mod reissue;
pub mod relay;
pub mod restart;
pub mod restore;
pub mod revoke;
pub mod run;
pub mod settings;
pub mod shim;
pub mod suspend;
mod text;
pub mod tree;
mod wait;

pub use bundle::save as save_bundle;
pub use devices::devices_text;
pub use text::job_text;
pub use wait::{Shown, all_succeeded, for_completion};
