//! PEM text, and files that are either the old or the new whole thing after a crash.

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::Path,
};

/// Who may read a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// Its owner only: mode 0600.
    Owner,
    /// Everyone the folder lets in: mode 0644.
    Everyone,
}

/// Replaces a file: temporary file beside it, fsync, rename, fsync of the folder. One writer at a time.
pub(super) fn replace(path: &Path, bytes: &[u8], audience: Audience) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    // A leftover keeps the mode it was made with, which need not be this one.
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(if audience == Audience::Owner { 0o600 } else { 0o644 });
    }
    #[cfg(not(unix))]
    let _ = audience;
    let mut file = options.open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    rename(Path::new(&temporary), path)
}

/// Renames a file and makes the new name durable.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    if let (true, Some(folder)) = (cfg!(unix), to.parent()) {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// One PEM section with lines of 64 characters.
pub(super) fn to_pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// Certificates as PEM text, in order.
pub fn certificates_to_pem(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|der| to_pem("CERTIFICATE", der)).collect()
}

/// The certificates of a PEM text, in order; other sections are skipped. `None` when a section is damaged or there is
/// no certificate.
pub fn pem_to_certificates(text: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().ok()?;
    if chain.is_empty() { None } else { Some(chain) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_text_comes_back() {
        for size in [1, 47, 48, 49, 96, 500] {
            let der: Vec<u8> = (0..size).map(|i| i as u8).collect();
            let chain = vec![CertificateDer::from(der), CertificateDer::from(vec![7])];
            let text = certificates_to_pem(&chain);
            assert!(text.lines().all(|line| line.len() <= 64));
            assert_eq!(pem_to_certificates(text.as_bytes()), Some(chain));
        }
        assert_eq!(pem_to_certificates(b"no section"), None);
        assert_eq!(pem_to_certificates(b"-----BEGIN CERTIFICATE-----\n"), None);
    }
}
