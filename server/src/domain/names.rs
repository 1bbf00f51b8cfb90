//! What nodes and sites may be called, and which hosts a node may say it answers to (ENR-3, ENR-4).

use branchline_protocol::{id::Role, refusal::Refusal};
use rustls::pki_types::DnsName;
use std::net::{IpAddr, SocketAddr};

/// Characters a computer's name may have (ENR-4).
pub const COMPUTER_NAME_CHARS_MAX: usize = 15;
/// Characters the name of a site, relay or gateway may have: a DNS label's.
pub const NAME_CHARS_MAX: usize = 63;
/// Addresses one node may name.
pub const ADDRESSES_MAX: usize = 16;

/// Numbers tried behind a name that is taken, before none is suggested.
const SUFFIX_MAX: u32 = 99;

/// The form in which names are compared: case does not count.
pub fn fold(name: &str) -> String {
    name.to_lowercase()
}

/// Whether a node of this role may be called so. `taken` tells whether another node has the name.
///
/// 422 `bad_name` and `name_too_long` (with a free name that fits), 409 `duplicate_name`.
pub fn check_node_name(role: Role, name: &str, taken: &dyn Fn(&str) -> bool) -> Result<(), Refusal> {
    if name.is_empty() || name.chars().any(char::is_control) {
        let message = "a name needs at least one character and no control characters";
        return Err(Refusal::new(422, "bad_name", message).field("name"));
    }
    let max = if role == Role::Agent { COMPUTER_NAME_CHARS_MAX } else { NAME_CHARS_MAX };
    let count = name.chars().count();
    if count > max {
        let advice = match suggest(name, max, taken) {
            Some(name) => format!("; {name:?} is free"),
            None => String::new(),
        };
        let message = format!("the name has {count} characters, at most {max} are allowed{advice}");
        return Err(Refusal::new(422, "name_too_long", message).field("name"));
    }
    if taken(name) {
        let message = format!("another {role} is called {name:?}; case does not count");
        return Err(Refusal::new(409, "duplicate_name", message).field("name"));
    }
    Ok(())
}

/// Whether a site may be called so: selectors name sites, so nothing that ends a selector's word may be in it.
pub fn check_site_name(name: &str) -> Result<(), Refusal> {
    let allowed = |c: char| !c.is_control() && !c.is_whitespace() && !matches!(c, '(' | ')' | ':' | '/');
    if (1..=NAME_CHARS_MAX).contains(&name.chars().count()) && name.chars().all(allowed) {
        return Ok(());
    }
    let message = format!("a site's name has 1 to {NAME_CHARS_MAX} characters without spaces and without ( ) : /");
    Err(Refusal::new(422, "bad_name", message).field("name"))
}

/// The host of `host`, `host:port`, `address`, `address:port` or `[address]:port`; `None` for any other text and for
/// the address that means "all of mine".
pub fn host_of(address: &str) -> Option<Host> {
    if let Ok(ip) = address.parse::<IpAddr>().or_else(|_| address.parse::<SocketAddr>().map(|a| a.ip())) {
        return if ip.is_unspecified() { None } else { Some(Host::Ip(ip)) };
    }
    let host = match address.split_once(':') {
        Some((host, port)) => port.parse::<u16>().ok().map(|_| host)?,
        None => address,
    };
    DnsName::try_from(host).ok().map(|name| Host::Dns(name.as_ref().to_ascii_lowercase()))
}

/// A host by name or address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// By address.
    Ip(IpAddr),
    /// By name, in lower case.
    Dns(String),
}

/// The hosts of a node's addresses, each once. 422 `bad_address` for one that is none, or for too many.
pub fn hosts_of(addresses: &[String]) -> Result<(Vec<String>, Vec<IpAddr>), Refusal> {
    let bad = |message: String| Refusal::new(422, "bad_address", message).field("addresses");
    if addresses.len() > ADDRESSES_MAX {
        return Err(bad(format!("{} addresses, at most {ADDRESSES_MAX} are allowed", addresses.len())));
    }
    let (mut dns, mut ips) = (Vec::new(), Vec::new());
    for address in addresses {
        match host_of(address) {
            Some(Host::Ip(ip)) if !ips.contains(&ip) => ips.push(ip),
            Some(Host::Dns(name)) if !dns.contains(&name) => dns.push(name),
            Some(_) => {}
            None => return Err(bad(format!("{address:?} is no host name or address that others can reach"))),
        }
    }
    Ok((dns, ips))
}

fn suggest(name: &str, max: usize, taken: &dyn Fn(&str) -> bool) -> Option<String> {
    let cut = |chars: usize| {
        let head: String = name.chars().take(chars).collect();
        head.trim_end_matches(|c: char| c.is_whitespace() || c == '-').to_owned()
    };
    let numbered = (2..=SUFFIX_MAX).map(|n| {
        let suffix = format!("-{n}");
        (cut(max - suffix.len()), suffix)
    });
    std::iter::once((cut(max), String::new()))
        .chain(numbered)
        .filter(|(head, _)| !head.is_empty())
        .map(|(head, suffix)| head + &suffix)
        .find(|name| !taken(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(_: &str) -> bool {
        false
    }

    #[track_caller]
    fn refused(role: Role, name: &str) -> Refusal {
        check_node_name(role, name, &free).unwrap_err()
    }

    #[test]
    fn enr_4_fifteen_characters_pass_whatever_their_bytes_and_sixteen_do_not() {
        assert_eq!(check_node_name(Role::Agent, &"a".repeat(15), &free), Ok(()));
        assert_eq!(check_node_name(Role::Agent, &"端".repeat(15), &free), Ok(()));
        let no = refused(Role::Agent, "reception-desk-9");
        assert_eq!((no.status, &no.code[..], no.field.as_deref()), (422, "name_too_long", Some("name")));
        assert!(no.message.contains("\"reception-desk\" is free"), "{no}");
        assert_eq!(refused(Role::Agent, &"端".repeat(16)).code, "name_too_long");
    }

    #[test]
    fn enr_4_empty_names_and_control_characters_are_refused() {
        for name in ["", "a\nb", "\u{7f}", "a\u{0}"] {
            let no = refused(Role::Agent, name);
            assert_eq!((no.status, &no.code[..]), (422, "bad_name"), "{name:?}");
        }
    }

    #[test]
    fn enr_4_the_suggestion_is_free() {
        let taken = |name: &str| ["accounting-pc-0", "accounting-pc-2"].contains(&name);
        let no = check_node_name(Role::Agent, "accounting-pc-017", &taken).unwrap_err();
        assert!(no.message.contains("\"accounting-pc-3\" is free"), "{no}");
        let no = check_node_name(Role::Agent, "accounting-pc-017", &|_| true).unwrap_err();
        assert!(!no.message.contains("is free"), "{no}");
    }

    #[test]
    fn relays_and_gateways_may_have_longer_names() {
        assert_eq!(check_node_name(Role::Relay, &"r".repeat(63), &free), Ok(()));
        assert_eq!(refused(Role::Relay, &"r".repeat(64)).code, "name_too_long");
    }

    #[test]
    fn a_taken_name_is_a_conflict() {
        let no = check_node_name(Role::Agent, "PC-1", &|name| fold(name) == "pc-1").unwrap_err();
        assert_eq!((no.status, &no.code[..]), (409, "duplicate_name"));
    }

    #[test]
    fn sites_are_words_of_a_selector() {
        for good in ["osaka", "大阪", "hq-2", &"s".repeat(63)] {
            assert_eq!(check_site_name(good), Ok(()), "{good}");
        }
        for bad in ["", "new york", "a(b", "a)", "a:b", "a/b", "a\tb", &"s".repeat(64)] {
            assert_eq!(check_site_name(bad).unwrap_err().status, 422, "{bad:?}");
        }
    }

    #[test]
    fn hosts_are_names_or_reachable_addresses() {
        let ip = |text: &str| Some(Host::Ip(text.parse().unwrap()));
        assert_eq!(host_of("127.0.0.1:13000"), ip("127.0.0.1"));
        assert_eq!(host_of("10.0.0.1"), ip("10.0.0.1"));
        assert_eq!(host_of("[::1]:443"), ip("::1"));
        assert_eq!(host_of("::1"), ip("::1"));
        assert_eq!(host_of("Relay.Example:13000"), Some(Host::Dns("relay.example".into())));
        for bad in ["", "0.0.0.0:1", "::", "a b", "host:", "host:70000", "a:b:c", "https://host", "bücher"] {
            assert_eq!(host_of(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn sixteen_addresses_pass_and_seventeen_do_not() {
        let addresses = |n: usize| (0..n).map(|i| format!("10.0.0.{}:13000", i + 1)).collect::<Vec<_>>();
        assert_eq!(hosts_of(&addresses(16)).unwrap().1.len(), 16);
        assert_eq!(hosts_of(&addresses(17)).unwrap_err().code, "bad_address");
        let twice = ["h:1".to_owned(), "H:2".to_owned(), "10.0.0.1:1".to_owned(), "10.0.0.1:2".to_owned()];
        assert_eq!(hosts_of(&twice).unwrap(), (vec!["h".to_owned()], vec!["10.0.0.1".parse().unwrap()]));
    }
}
