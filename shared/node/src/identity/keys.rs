//! A node's Ed25519 key pair: made where it is used, kept in one file, shown to nobody.

use super::files::{self, Audience};
use aws_lc_rs::{rand::SystemRandom, signature::Ed25519KeyPair};
use branchline_protocol::order::{PublicKey, Signer};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use std::{fmt, fs, io, path::Path, sync::Arc};

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    /// The system gave no randomness.
    #[error("generate a key: the system gave no randomness")]
    NoRandomness,
    /// The bytes are no Ed25519 key in PKCS#8.
    #[error("read a key: not an ed25519 key in pkcs#8")]
    Malformed,
    /// The file could not be read or written.
    #[error("access key file {path}")]
    File {
        /// Which file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl KeyFault {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> KeyFault + '_ {
        move |source| KeyFault::File { path: path.display().to_string(), source }
    }
}

/// An Ed25519 key pair as PKCS#8. Masks itself in `Debug`; cheap to clone.
#[derive(Clone)]
pub struct KeyPair {
    pkcs8: Arc<[u8]>,
    public: PublicKey,
}

impl KeyPair {
    /// A new key from the system's randomness.
    ///
    /// Everywhere else randomness is passed in, so that a run can be repeated. A private key is the exception: a seed
    /// that a caller can choose, log or replay is no secret.
    pub fn generate() -> Result<KeyPair, KeyFault> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyFault::NoRandomness)?;
        KeyPair::from_pkcs8(document.as_ref())
    }

    /// From a PKCS#8 document in DER.
    pub fn from_pkcs8(der: &[u8]) -> Result<KeyPair, KeyFault> {
        let signer = Signer::from_pkcs8(der).ok_or(KeyFault::Malformed)?;
        Ok(KeyPair { pkcs8: der.into(), public: signer.public() })
    }

    /// From the PEM section `PRIVATE KEY`.
    pub fn from_pem(text: &[u8]) -> Result<KeyPair, KeyFault> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(text).map_err(|_| KeyFault::Malformed)?;
        KeyPair::from_pkcs8(der.secret_pkcs8_der())
    }

    /// Reads the file that [`KeyPair::save`] wrote.
    pub fn load(path: &Path) -> Result<KeyPair, KeyFault> {
        KeyPair::from_pkcs8(&fs::read(path).map_err(KeyFault::file(path))?)
    }

    /// Writes the key as PKCS#8 DER, readable by the owner only.
    pub fn save(&self, path: &Path) -> Result<(), KeyFault> {
        files::replace(path, &self.pkcs8, Audience::Owner).map_err(KeyFault::file(path))
    }

    /// Reads the file that [`KeyPair::save_pem`] wrote.
    pub fn load_pem(path: &Path) -> Result<KeyPair, KeyFault> {
        KeyPair::from_pem(&fs::read(path).map_err(KeyFault::file(path))?)
    }

    /// Writes the key as PEM, readable by the owner only.
    pub fn save_pem(&self, path: &Path) -> Result<(), KeyFault> {
        let text = files::to_pem("PRIVATE KEY", &self.pkcs8);
        files::replace(path, text.as_bytes(), Audience::Owner).map_err(KeyFault::file(path))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// What signs envelopes with this key.
    pub fn signer(&self) -> Signer {
        Signer::from_pkcs8(&self.pkcs8).expect("the document was accepted when the pair was made")
    }

    /// The key as rustls takes it.
    pub(super) fn private_key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()).into()
    }

    /// The key as rcgen takes it.
    pub(super) fn certificate_signer(&self) -> rcgen::KeyPair {
        let der = PrivatePkcs8KeyDer::from(&self.pkcs8[..]);
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519)
            .expect("the document was accepted when the pair was made")
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({:?}, secret masked)", self.public)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_from_its_file_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let (der, pem) = (folder.path().join("key.der"), folder.path().join("key.pem"));
        fs::write(folder.path().join("key.der.tmp"), "left by a crash").unwrap();
        key.save(&der).unwrap();
        key.save(&der).unwrap();
        key.save_pem(&pem).unwrap();
        assert_eq!(KeyPair::load(&der).unwrap().public(), key.public());
        assert_eq!(KeyPair::load_pem(&pem).unwrap().public(), key.public());
        #[cfg(unix)]
        for path in [&der, &pem] {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["key.der", "key.pem"]);
        let message = b"message";
        assert!(key.public().verifies(message, &key.signer().sign(message)));
    }

    #[test]
    fn two_keys_differ_and_neither_shows_itself() {
        let (a, b) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        assert_ne!(a.public(), b.public());
        let shown = format!("{a:?}");
        assert!(shown.contains("masked"));
        // 16 bytes of seed in the two ways a derived Debug would print them.
        let seed = &a.pkcs8[16..32];
        let hex: String = seed.iter().map(|b| format!("{b:02x}")).collect();
        assert!(!shown.contains(&hex) && !shown.contains(&format!("{}, {}, {}", seed[0], seed[1], seed[2])));
    }

    #[test]
    fn damaged_or_missing_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.der");
        assert!(matches!(KeyPair::load(&path), Err(KeyFault::File { .. })));
        let key = KeyPair::generate().unwrap();
        fs::write(&path, &key.pkcs8[..key.pkcs8.len() - 1]).unwrap();
        assert!(matches!(KeyPair::load(&path), Err(KeyFault::Malformed)));
    }
}
