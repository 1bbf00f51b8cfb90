//! Temporary.
#[path = "all/office/mod.rs"]
mod office;
