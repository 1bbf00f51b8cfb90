//! What the server decides and may say: keys, documents, tokens, bundles, enrolment. Not here: jobs, links, HTTP.
//!
//! `enrolment`, `names` and `upstreams` are pure; [`Office`] is the one handle that keeps, signs and tells.

pub mod documents;
pub mod enrolment;
mod files;
mod founding;
mod keep_connection;
pub mod names;
mod office;
pub mod reception;
mod recovery;
mod settings;
mod tenant_keys;
pub mod tokens;
pub mod upstreams;

pub(crate) use files::{rename, sync_folder};
pub use founding::{InitWish, OfficeFault};
pub use office::{Office, TenantTls};
pub use recovery::raise_term;

#[cfg(test)]
mod tests;
