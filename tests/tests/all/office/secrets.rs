//! Keys stay where they were made.

use super::*;
use base64::{Engine, prelude::BASE64_STANDARD};
use std::path::Path;

/// A private key's forms as they could lie in a file.
struct Secret {
    file: PathBuf,
    forms: Vec<Vec<u8>>,
}

/// Every private key below a folder.
fn secrets_below(folder: &Path) -> Vec<Secret> {
    let is_key = |f: &Path| {
        let name = f.file_name().unwrap().to_str().unwrap_or_default();
        name.ends_with(".key") || name.ends_with("key.pem")
    };
    files_below(folder).into_iter().filter(|f| is_key(f)).map(|file| secret(&file)).collect()
}

fn secret(file: &Path) -> Secret {
    let bytes = std::fs::read(file).unwrap();
    let der = match std::str::from_utf8(&bytes) {
        Ok(pem) if pem.contains("-----BEGIN") => {
            let body: String = pem.lines().filter(|l| !l.starts_with("-----")).collect();
            BASE64_STANDARD.decode(body).unwrap()
        }
        _ => bytes,
    };
    // An Ed25519 key's PKCS#8 holds the seed as an octet string in an octet string of 34 bytes.
    let at = der.windows(4).position(|w| w == [0x04, 0x22, 0x04, 0x20]).expect("a PKCS#8 Ed25519 key");
    let seed = der[at + 4..at + 36].to_vec();
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let mut forms = vec![hex(&seed).into_bytes(), hex(&seed).to_uppercase().into_bytes()];
    forms.push(BASE64_STANDARD.encode(&seed).trim_end_matches('=').as_bytes()[..40].to_vec());
    // Inside a longer base64 text the seed may begin at any of three places; the edges are its neighbours' too.
    for lead in 0..3 {
        let shifted = BASE64_STANDARD.encode([&vec![0; lead][..], &seed].concat());
        forms.push(shifted.as_bytes()[4..40].to_vec());
    }
    forms.push(seed);
    Secret { file: file.to_path_buf(), forms }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = vec![];
    for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        if entry.is_dir() { files.extend(files_below(&entry)) } else { files.push(entry) }
    }
    files
}

/// Files below a folder that hold a secret, in whatever form. PEM breaks lines, so they are joined first.
fn holders(folder: &Path, secrets: &[Secret]) -> Vec<(PathBuf, PathBuf)> {
    let mut found = vec![];
    for file in files_below(folder) {
        let raw = std::fs::read(&file).unwrap_or_default();
        let joined: Vec<u8> = raw.iter().copied().filter(|b| !matches!(b, b'\n' | b'\r')).collect();
        for secret in secrets {
            let holds =
                |form: &Vec<u8>| [&raw, &joined].iter().any(|text| text.windows(form.len()).any(|w| w == &form[..]));
            if secret.forms.iter().any(holds) {
                found.push((file.clone(), secret.file.clone()));
            }
        }
    }
    found
}

#[test]
fn gw_7_the_gateways_state_holds_no_private_key_of_the_server_or_a_ca() {
    let office = satellite_office();
    let secrets = secrets_below(&office.node_state("hq"));
    let names: Vec<String> = secrets.iter().map(|s| s.file.display().to_string()).collect();
    for tenant in ["main", "system"] {
        for key in ["root.key", "signing.key", "key.pem", "ca/ca-key.pem"] {
            let wanted = format!("tenants/{tenant}/{key}");
            assert!(names.iter().any(|n| n.ends_with(&wanted)), "no {wanted} among {names:?}");
        }
    }
    // The search finds what is there: each key at least where it belongs.
    let at_home = holders(&office.node_state("hq"), &secrets);
    assert!(
        secrets.iter().all(|s| at_home.iter().any(|(file, secret)| file == &s.file && secret == &s.file)),
        "{at_home:?}"
    );
    for node in ["dmz", "osaka", "osaka-pc-01", "roaming-01"] {
        assert_eq!(holders(&office.node_state(node), &secrets), [], "{node} holds a key of the server");
    }
    for folder in ["bundles", "config", "logs"] {
        assert_eq!(holders(&office.state().join(folder), &secrets), [], "{folder} hold a key of the server");
    }
}

#[test]
fn gw_7_gateway_and_server_have_keys_of_their_own() {
    let office = satellite_office();
    let folders = [
        office.node_state("hq"),
        office.node_state("dmz"),
        office.node_state("osaka"),
        office.node_state("osaka-pc-01"),
    ];
    let secrets: Vec<Vec<Secret>> = folders.iter().map(|f| secrets_below(f)).collect();
    assert!(secrets.iter().all(|s| !s.is_empty()), "each node has a key");
    for (n, own) in secrets.iter().enumerate() {
        for (m, folder) in folders.iter().enumerate().filter(|(m, _)| *m != n) {
            assert_eq!(holders(folder, own), [], "a key of {} lies at {}", folders[n].display(), folders[m].display());
        }
    }
}
