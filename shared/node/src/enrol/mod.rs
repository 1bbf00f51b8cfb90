//! Enrolment: a new node makes its key, shows its token to the server and comes back with a certificate; whoever lies
//! between only copies bytes (DESIGN 3, 6; ENR-1, ENR-7, GW-7).

mod child;
mod exchange;
mod splice;

pub use child::{EnrolFault, Enrolled, enrol, enrol_or_load};
pub use exchange::{read_message, write_message};
pub use splice::{SPLICE_BYTES_MAX, SPLICE_S, SPLICES_AT_ONCE, splice};
