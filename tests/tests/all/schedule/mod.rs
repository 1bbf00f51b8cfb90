//! Schedules and settings over months, on one clock: the decisions of agents and server as they are, the server's real
//! store and keys; between them nothing but messages.

mod june;
mod world;
