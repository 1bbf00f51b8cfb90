//! How a configuration is read: read → parse → validate → resolve → build, with every mistake told at once.
//!
//! ```text
//! read_file ──► toml::Table ──► Reader (one per table) ──► a whole value ──► Mistakes::guard ──► the value, or Mistakes
//! ```
//!
//! A getter of [`Reader`] always returns a value. After a mistake that value is a harmless placeholder which nobody
//! sees: [`Mistakes::guard`] gives the finished configuration out only if no mistake was found. So a node's `read`
//! function is one struct literal, and running code never meets an `Option` that only means "not filled in".
//!
//! ```
//! use branchline_node::config::{Mistakes, Reader};
//! struct Config { name: String, slots: u16 }
//! let table = "name = \"hq\"".parse().unwrap();
//! let mut mistakes = Mistakes::default();
//! let mut r = Reader::new(&table, "", &mut mistakes);
//! let config = Config { name: r.required("name"), slots: r.number_or("slots", 300, 1..=u16::MAX) };
//! r.finish();
//! assert_eq!(mistakes.guard(config).unwrap().slots, 300);
//! ```

mod duration;
mod file;
mod link_rate;
mod mistakes;
mod private;
mod reach;
mod reader;
mod slots;
mod stamp;
mod udp_port;
mod value;

pub use duration::{BadDuration, DURATION_MAX, duration_text, parse_duration};
pub use file::{load, parse, read_file};
pub use link_rate::{LinkRate, link_rate};
pub use mistakes::{Mistake, Mistakes};
pub use private::private_or_off;
pub use reach::Reach;
pub use reader::{Reader, nearest};
pub use slots::{SLOTS_DEFAULT, slots};
pub use stamp::Stamp;
pub use udp_port::udp_port;
pub use value::{FromValue, HostPort};
