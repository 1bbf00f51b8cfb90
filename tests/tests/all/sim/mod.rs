//! The simulator: a few seeds of it, that it repeats itself, and that its model of the server's store is true.

mod command;
mod model_store;
mod runs;
