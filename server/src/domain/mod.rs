//! What the server decides and may say: keys, documents, tokens, bundles, enrolment. Not here: jobs, links, HTTP.
//!
//! `enrolment`, `names` and `upstreams` are pure; [`Office`] is the one handle that keeps, signs and tells.

pub mod documents;
pub mod enrolment;
mod files;
mod founding;
pub mod names;
mod office;
pub mod reception;
mod settings;
mod tenant_keys;
pub mod tokens;
pub mod upstreams;

pub use founding::{InitWish, OfficeFault};
pub use office::{Office, TenantTls};

#[cfg(test)]
mod tests;
