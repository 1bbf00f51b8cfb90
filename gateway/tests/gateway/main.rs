//! One gateway between real TLS children and a server's end of the trunk.

mod admission;
mod node;
mod pipe;
mod request;
mod support;
