//! `restart --on SELECTOR [--wait]`

use super::run::{order, selector, whole_seconds};
use crate::{answer::Answer, failure::Failure, session::Session};
use serde_json::{Value, json};
use std::time::Duration;

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which devices (required): all, site:NAME, relay:NAME, device:ID, tag:NAME, with and, or, not
    #[arg(long, value_name = "SELECTOR")]
    pub on: Option<String>,
    /// Wait until every machine is back; exit 1 unless all are
    #[arg(long)]
    pub wait: bool,
    /// How long --wait waits [default: 5m]
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = crate::args::duration)]
    pub timeout: Option<Duration>,
    /// How long a device may take to fetch it [default: the server's, 30d]
    #[arg(long, value_name = "TIME", value_parser = crate::args::duration)]
    pub life: Option<Duration>,
}

/// Orders the restart, and waits for the machines if asked to.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    order(&request(args)?, args.wait, args.timeout, session)
}

fn request(args: &Args) -> Result<Value, Failure> {
    selector(args.on.as_deref())?;
    let mut request = json!({ "on": args.on, "verb": "restart" });
    if let Some(life) = args.life {
        request["life_s"] = json!(whole_seconds(life));
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_which_devices_and_for_how_long() {
        let args = |on: Option<&str>, life| Args { on: on.map(str::to_owned), wait: false, timeout: None, life };
        let whole = request(&args(Some("site:osaka"), Some(Duration::from_millis(1_500)))).unwrap();
        assert_eq!(whole, json!({ "on": "site:osaka", "verb": "restart", "life_s": 2 }));
        for on in [None, Some(" "), Some("site:")] {
            assert_eq!(request(&args(on, None)).unwrap_err().field.as_deref(), Some("on"), "{on:?}");
        }
    }
}
