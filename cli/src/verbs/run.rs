//! `run --on SELECTOR [--wait] (-- ARGV… | --script FILE)`

use super::{
    job::device_names,
    text::job_text,
    wait::{Shown, all_succeeded, for_completion},
};
use crate::{
    answer::Answer,
    failure::{Failure, exit_code},
    session::Session,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use branchline_node::config::duration_text;
use branchline_protocol::{job::SCRIPT_BYTES_MAX, selector::Selector};
use serde_json::{Value, json};
use std::{path::PathBuf, time::Duration};

/// Unless told otherwise `--wait` waits this long.
const TIME_OUT: Duration = Duration::from_secs(300);

/// What every order has.
#[derive(Debug, clap::Args)]
pub struct Ordering {
    /// Which devices (required): all, site:NAME, relay:NAME, device:ID, tag:NAME, with and, or, not
    #[arg(long, value_name = "SELECTOR")]
    pub on: Option<String>,
    /// Wait until every device ended; exit 1 unless all succeeded
    #[arg(long)]
    pub wait: bool,
    /// How long --wait waits [default: 5m]
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = crate::args::duration)]
    pub timeout: Option<Duration>,
    /// How long a device may take to fetch it [default: the server's, 30d]
    #[arg(long, value_name = "TIME", value_parser = crate::args::duration)]
    pub life: Option<Duration>,
}

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub ordering: Ordering,
    /// How pressing it is: sets the poll that fetches it
    #[arg(long, value_parser = ["normal", "urgent", "erase"])]
    pub class: Option<String>,
    /// How long it may run on a device before it is killed
    #[arg(long, value_name = "TIME", value_parser = crate::args::duration)]
    pub time_out: Option<Duration>,
    /// A script to run instead of a command line, at most 1 MB
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// What runs the script [default: /bin/sh]
    #[arg(long, value_name = "PATH")]
    pub interpreter: Option<String>,
    /// The command line; runs without a shell
    #[arg(last = true, value_name = "ARGV")]
    pub argv: Vec<String>,
}

/// Orders the job, and waits for it if asked to.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    args.ordering.order(&request(args)?, session)
}

impl Ordering {
    /// What of the body of POST /jobs every verb has, or what is wrong with the command line.
    pub fn request(&self, verb: &str) -> Result<Value, Failure> {
        selector(self.on.as_deref())?;
        let mut request = json!({ "on": self.on, "verb": verb });
        if let Some(life) = self.life {
            request["life_s"] = json!(whole_seconds(life));
        }
        Ok(request)
    }

    /// Orders a job, and waits for it if asked to.
    pub fn order(&self, request: &Value, session: &Session) -> Result<Answer, Failure> {
        let client = session.client()?;
        let detail: &[_] = if self.wait { &[("results", "none")] } else { &[] };
        let mut job = client.post("/jobs", detail, request)?;
        if !self.wait {
            let text = format!("job {} ordered: branchline job {0}\n", super::text::cell(&job["id"]));
            return Ok(Answer::done(job, text));
        }
        let id = job["id"].as_str().ok_or_else(|| Failure::ended("bad_answer", "the job has no id"))?.to_string();
        let time_out = self.timeout.unwrap_or(TIME_OUT);
        job = for_completion(&client, &id, time_out, &mut Shown::on_stderr())?;
        if job["complete"].as_bool() != Some(true) {
            eprintln!(
                "branchline: job {id} is not complete after {}; see it with: branchline job {id}",
                duration_text(time_out)
            );
        }
        let names = device_names(&client);
        let text = job_text(&job, &|id| names.get(id).cloned());
        let exit = if all_succeeded(&job) { exit_code::DONE } else { exit_code::ENDED_BADLY };
        Ok(Answer { json: job, text, exit })
    }
}

/// The selector of `--on`, which must be there and be one.
pub fn selector(on: Option<&str>) -> Result<Selector, Failure> {
    let on = on.map(str::trim).filter(|on| !on.is_empty()).ok_or_else(|| {
        Failure::wrong("on_required", "say which devices: --on SELECTOR, such as --on all or --on site:osaka")
            .field("on")
    })?;
    on.parse().map_err(|e| Failure::wrong("bad_selector", format!("--on {on:?}: {e}")).field("on"))
}

/// The body of POST /jobs, or what is wrong with the command line.
pub fn request(args: &Args) -> Result<Value, Failure> {
    let mut request = args.ordering.request("run_script")?;
    request["args"] = match (&args.script, args.argv.as_slice()) {
        (None, []) => {
            return Err(Failure::wrong("nothing_to_run", "say what to run: -- ARGV… or --script FILE").field("argv"));
        }
        (Some(_), [_, ..]) => {
            return Err(
                Failure::wrong("contradiction", "say either -- ARGV… or --script FILE, not both").field("script")
            );
        }
        (None, argv) => {
            if args.interpreter.is_some() {
                let message = "a command line after -- runs without an interpreter";
                return Err(Failure::wrong("contradiction", message).field("interpreter"));
            }
            json!({ "argv": argv })
        }
        (Some(file), []) => {
            let unreadable = |e: std::io::Error| {
                Failure::wrong("unreadable", format!("cannot read the script {}: {e}", file.display())).field("script")
            };
            // The length first: a file far over the bound is not worth reading.
            let length = std::fs::metadata(file).map_err(unreadable)?.len();
            let content =
                if length > SCRIPT_BYTES_MAX as u64 { vec![] } else { std::fs::read(file).map_err(unreadable)? };
            let length = length.max(content.len() as u64);
            if length > SCRIPT_BYTES_MAX as u64 {
                let message = format!("the script has {length} bytes, at most {SCRIPT_BYTES_MAX} are allowed");
                return Err(Failure::wrong("too_large", message).field("script"));
            }
            let mut script = json!({ "script_base64": BASE64_STANDARD.encode(content) });
            if let Some(interpreter) = &args.interpreter {
                script["interpreter"] = json!(interpreter);
            }
            script
        }
    };
    if let Some(class) = &args.class {
        request["class"] = json!(class);
    }
    if let Some(time_out) = args.time_out {
        request["time_out_s"] = json!(whole_seconds(time_out));
    }
    Ok(request)
}

/// The API counts seconds; a part of one counts whole, so that 500ms is not none.
pub fn whole_seconds(time: Duration) -> u64 {
    time.as_millis().div_ceil(1_000) as u64
}
