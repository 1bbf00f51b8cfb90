//! `configure`: sets a relay's way up (RLY-2). Validated, dialled as far as the parent's identity, kept as a whole; only
//! then does the running relay follow. Whatever is wrong, the former settings stay.

use crate::{config::Config, upstream::UpstreamSettings, upstream::quoted};
use branchline_node::{
    config::{Mistakes, Reader, parse, read_file},
    identity::{Bundle, Identity, child_config},
    link::{
        dial::{DialFault, Dialler, parent_name},
        names::SystemResolver,
    },
    time::{NodeTime, SystemClock},
};
use branchline_protocol::wire::Preface;
use rustls::pki_types::CertificateDer;
use std::{path::PathBuf, sync::Arc};

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configure {
    /// The relay's configuration file.
    pub config: PathBuf,
    /// `KEY=VALUE`: host, port, via_gateway, upstream, ca.
    pub settings: Vec<String>,
    /// A file with the same keys.
    pub from: Option<PathBuf>,
    /// Nothing is to be set any more: the site's signed list alone says where to go.
    pub reset: bool,
}

/// How the command is written.
pub const USAGE: &str = "configure --config FILE (--from FILE | --reset | host=HOST [port=N] [via_gateway=true|false] \
[ca=PEM_FILE] [upstream=ID])";

impl Configure {
    /// Reads what stands behind `configure`.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Configure, Mistakes> {
        let bad = |what: String| Mistakes::one("", "bad_usage", format!("{what}; usage: {USAGE}"));
        let (mut asked, mut args) = (Configure::default(), args.into_iter());
        while let Some(arg) = args.next() {
            let mut file = || args.next().map(PathBuf::from).ok_or_else(|| bad(format!("{arg} needs a file")));
            match arg.as_str() {
                "--config" => asked.config = file()?,
                "--from" => asked.from = Some(file()?),
                "--reset" => asked.reset = true,
                _ if arg.contains('=') && !arg.starts_with('-') => asked.settings.push(arg),
                _ => return Err(bad(format!("{arg:?} is not understood"))),
            }
        }
        asked.checked()
    }

    /// The same if it asks for one thing.
    pub fn checked(self) -> Result<Configure, Mistakes> {
        let ways = usize::from(self.reset) + usize::from(self.from.is_some()) + usize::from(!self.settings.is_empty());
        if self.config.as_os_str().is_empty() || ways != 1 {
            let what = "name the relay's configuration and one of --from, --reset, settings";
            return Err(Mistakes::one("", "bad_usage", format!("{what}; usage: {USAGE}")));
        }
        Ok(self)
    }

    fn read(&self) -> Result<UpstreamSettings, Mistakes> {
        let table = match &self.from {
            Some(file) => read_file(file)?,
            None => {
                let mut text = String::new();
                for setting in &self.settings {
                    let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
                    // What TOML reads is taken as it is, 443 or true; the rest is text.
                    let plain = value.parse::<i64>().is_ok() || matches!(value, "true" | "false");
                    let value = if plain { value.to_owned() } else { quoted(value) };
                    text += &format!("{} = {value}\n", quoted(key.trim()));
                }
                parse(&text).map_err(|why| Mistakes::one("", "syntax", why))?
            }
        };
        let mut mistakes = Mistakes::default();
        let mut reader = Reader::new(&table, "", &mut mistakes);
        let settings = UpstreamSettings::read(&mut reader);
        reader.finish();
        mistakes.guard(settings)
    }
}

/// Does it. Answers what is in force now; `None`: nothing is set.
///
/// # Errors
/// Every mistake of the settings at once (`unknown_key`, `missing`, `out_of_range`, `unreadable` …), or one of
/// `bad_configuration`, `bad_bundle`, `not_listed`, `unreachable`, `refused`, `other_identity`, `not_kept`.
pub fn configure(asked: &Configure) -> Result<Option<UpstreamSettings>, Mistakes> {
    let config = Config::read(&asked.config)?;
    if asked.reset {
        let file = UpstreamSettings::file(&config.state_dir);
        return match std::fs::remove_file(&file) {
            Ok(()) => Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Mistakes::one("", "not_kept", format!("{}: {e}", file.display()))),
        };
    }
    let settings = asked.read()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Mistakes::one("", "system", e.to_string()))?;
    runtime.block_on(dial(&config, &settings))?;
    settings
        .keep(&config.state_dir)
        .map_err(|e| Mistakes::one("", "not_kept", format!("{}: {e}", config.state_dir.display())))?;
    Ok(Some(settings))
}

/// Whether the parent that is meant answers there and proves who it is.
async fn dial(config: &Config, settings: &UpstreamSettings) -> Result<(), Mistakes> {
    let bad = |why: String| Mistakes::one("bundle", "bad_bundle", format!("{}: {why}", config.bundle.display()));
    let text = std::fs::read_to_string(&config.bundle).map_err(|e| bad(e.to_string()))?;
    let bundle = Bundle::open(&text).map_err(|e| bad(e.to_string()))?;
    let trust = bundle.trust_document().map_err(|e| bad(e.to_string()))?;
    let listed = settings.parent(&bundle.upstreams).map(|up| up.id);
    // The bundle names the server even where another parent lies between.
    let parent = listed.or((settings.upstream.is_none_or(|id| id == bundle.server)).then_some(bundle.server));
    let parent = parent.ok_or_else(|| {
        let message = "the relay's bundle names no such parent: only parents on its signed list are accepted";
        Mistakes::one("upstream", "not_listed", message)
    })?;
    let time = Arc::new(NodeTime::new(SystemClock::shared()));
    let outer = UpstreamSettings::outer(Some(settings), &bundle.outer_roots, time.clone());
    let outer = outer.map_err(|why| Mistakes::one("ca", "bad_certificate", why))?;
    let roots: Vec<CertificateDer<'_>> = trust.cas.iter().map(|ca| CertificateDer::from(ca.to_vec())).collect();
    // A relay that has not enrolled yet has none: who the parent is shows all the same.
    let identity = Identity::load(&config.state_dir.join("identity")).ok();
    let tls = child_config(identity.as_ref(), &roots, time).map_err(|e| bad(e.to_string()))?;
    let (bind_source, link_token) = (config.bind_source, bundle.link_token.clone());
    let dialler = Dialler { bind_source, outer, link_token, ..Dialler::new(SystemResolver::shared()) };
    let name = parent_name(parent, &bundle.tenant);
    match dialler.secure(&settings.route(), Preface::Uplink, &tls, name).await {
        Ok(_) => Ok(()),
        Err(e) => Err(Mistakes::one("host", code(&e), told(&e, settings))),
    }
}

fn code(fault: &DialFault) -> &'static str {
    match fault {
        _ if fault.is_impostor() => "other_identity",
        DialFault::Gateway { .. } | DialFault::Busy { .. } | DialFault::Preface(_) => "refused",
        _ => "unreachable",
    }
}

fn told(fault: &DialFault, settings: &UpstreamSettings) -> String {
    let who = if fault.is_impostor() { "somebody else answers there" } else { "no link to the parent" };
    format!("{who} ({:?}): {fault}; nothing was changed", settings.route())
}

/// The command as a process: what to print on stdout or stderr, and the exit code.
pub fn command(args: impl IntoIterator<Item = String>) -> (String, i32) {
    match Configure::parse(args).and_then(|asked| configure(&asked)) {
        Ok(set) => (summary(set.as_ref()), 0),
        Err(mistakes) => (mistakes.to_string(), branchline_node::node::exit_code::CONFIGURATION),
    }
}

/// What is in force, for people.
pub fn summary(set: Option<&UpstreamSettings>) -> String {
    match set {
        Some(settings) => format!("kept: {:?}; a running relay follows within seconds", settings.route()),
        None => "nothing is set: the site's signed list says where to go".into(),
    }
}
