//! `settings [show|set …]`

use super::text::cell;
use crate::{answer::Answer, failure::Failure, session::Session};
use serde_json::{Map, Value, json};

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do [default: show]
    #[command(subcommand)]
    pub what: Option<What>,
}

/// Show or change.
#[derive(Debug, clap::Subcommand)]
pub enum What {
    /// Show the settings in force
    Show,
    /// Change some; what is not named stays as it was
    Set(Changes),
}

/// What may be changed.
#[derive(Debug, Default, clap::Args)]
#[group(required = true, multiple = true)]
pub struct Changes {
    /// Seconds between normal polls, 60 to 604800
    #[arg(long, value_name = "SECONDS")]
    pub poll_normal: Option<u64>,
    /// Seconds between urgent polls, 60 to 604800
    #[arg(long, value_name = "SECONDS")]
    pub poll_urgent: Option<u64>,
    /// Seconds between erase polls, 60 to 604800
    #[arg(long, value_name = "SECONDS")]
    pub poll_erase: Option<u64>,
    /// Sections to collect, e.g. os,software; `all` for every one
    #[arg(long, value_name = "SECTION", value_delimiter = ',')]
    pub collect: Option<Vec<String>>,
    /// `daily`, `monthly DAY HH:MM` or `cron MINUTE HOUR DAY MONTH WEEKDAY`, in each device's own time
    #[arg(long, value_name = "SCHEDULE")]
    pub schedule: Option<String>,
    /// Hour of the daily collection, 0 to 23
    #[arg(long, value_name = "HOUR")]
    pub inventory_hour: Option<u64>,
    /// Whether a device that was off makes up for a collection at its next start
    #[arg(long, value_name = "true|false")]
    pub catch_up_missed: Option<bool>,
    /// Whether a device collects once more when newer settings reach it
    #[arg(long, value_name = "true|false")]
    pub collect_on_return: Option<bool>,
}

/// Shows the settings, changed first if asked to.
pub fn run(args: &Args, session: &Session) -> Result<Answer, Failure> {
    let client = session.client()?;
    let settings = match &args.what {
        None | Some(What::Show) => client.get("/settings", &[])?,
        Some(What::Set(changes)) => client.put("/settings", &changes.body())?,
    };
    let text = settings_text(&settings);
    Ok(Answer::done(settings, text))
}

impl Changes {
    fn body(&self) -> Value {
        let collect = self.collect.as_ref().map(|sections| match &sections[..] {
            [all] if all == "all" => json!([]),
            sections => json!(sections),
        });
        let fields = [
            ("poll_normal_s", self.poll_normal.map(Value::from)),
            ("poll_urgent_s", self.poll_urgent.map(Value::from)),
            ("poll_erase_s", self.poll_erase.map(Value::from)),
            ("collect", collect),
            ("schedule", self.schedule.clone().map(Value::from)),
            ("inventory_hour", self.inventory_hour.map(Value::from)),
            ("catch_up_missed", self.catch_up_missed.map(Value::from)),
            ("collect_on_return", self.collect_on_return.map(Value::from)),
        ];
        let named = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Value::Object(named.collect::<Map<_, _>>())
    }
}

fn settings_text(settings: &Value) -> String {
    let shown = |value: &Value| match value.as_array() {
        Some(list) if list.is_empty() => "all".to_owned(),
        Some(list) => list.iter().map(cell).collect::<Vec<_>>().join(", "),
        None => cell(value),
    };
    let lines = settings.as_object().into_iter().flatten();
    lines.map(|(key, value)| format!("{:<18}{}\n", key.replace('_', " "), shown(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adm_14_only_what_is_named_is_sent_and_all_means_every_section() {
        let changes = Changes {
            poll_normal: Some(600),
            collect: Some(vec!["all".into()]),
            schedule: Some("monthly 3 10:00".into()),
            catch_up_missed: Some(false),
            ..Changes::default()
        };
        let expected = json!({
            "poll_normal_s": 600, "collect": [], "schedule": "monthly 3 10:00", "catch_up_missed": false
        });
        assert_eq!(changes.body(), expected);
        let some = Changes { collect: Some(vec!["os".into(), "software".into()]), ..Changes::default() };
        assert_eq!(some.body(), json!({"collect": ["os", "software"]}));
    }

    #[test]
    fn settings_are_shown_line_by_line() {
        let text = settings_text(&json!({"version": 2, "collect": [], "schedule": "daily"}));
        assert_eq!(text, "version           2\ncollect           all\nschedule          daily\n");
    }
}
