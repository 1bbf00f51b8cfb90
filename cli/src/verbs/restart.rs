//! `restart --on SELECTOR [--wait]`

use super::run::Ordering;
use crate::{answer::Answer, failure::Failure, session::Session};

/// The verb, as the server knows it.
const VERB: &str = "restart";

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    ordering: Ordering,
}

/// Orders the restart, and waits until every machine is back if asked to.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    args.ordering.order(&args.ordering.request(VERB)?, session)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn it_says_which_devices_and_for_how_long() {
        let request = |on: Option<&str>, life| {
            let ordering = Ordering { on: on.map(str::to_owned), wait: false, timeout: None, life };
            ordering.request(VERB)
        };
        let whole = request(Some("site:osaka"), Some(Duration::from_millis(1_500))).unwrap();
        assert_eq!(whole, json!({ "on": "site:osaka", "verb": "restart", "life_s": 2 }));
        for on in [None, Some(" "), Some("site:")] {
            assert_eq!(request(on, None).unwrap_err().field.as_deref(), Some("on"), "{on:?}");
        }
    }
}
