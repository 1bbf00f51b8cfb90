//! A signed envelope in the manner of DSSE: the signed bytes are exactly the transported payload with its type.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Signatures one envelope may carry; one more is refused.
pub const SIGNATURES_MAX: usize = 8;

/// An Ed25519 public key, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

/// The first 8 bytes of the blake3 of a public key: a hint which key to try, never a proof.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub u64);

impl PublicKey {
    /// The key's id.
    pub fn id(&self) -> KeyId {
        let digest = crate::hash::Hash::of(&self.0).0;
        KeyId(u64::from_be_bytes(digest[..8].try_into().expect("8 of 32 bytes")))
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "key {:016x}", self.id().0)
    }
}

impl std::fmt::Debug for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        crate::hash::Hash(self.0).serialize(s)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        crate::hash::Hash::deserialize(d).map(|h| PublicKey(h.0))
    }
}

/// One signature of an envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Which key is said to have signed.
    pub key: KeyId,
    /// 64 bytes of Ed25519.
    pub bytes: Bytes,
}

/// Payload, its type and its signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Names what the payload is, so that one document can never be taken for another.
    pub payload_type: String,
    /// The bytes that were signed, untouched on their way.
    pub payload: Bytes,
    /// At most [`SIGNATURES_MAX`].
    pub signatures: Vec<Signature>,
}

/// A private key that signs envelopes. Never serialised by this crate.
pub struct Signer {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "signer of {:?}, secret masked", self.public)
    }
}

impl Signer {
    /// From a 32-byte seed.
    pub fn from_seed(seed: &[u8; 32]) -> Signer {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).expect("any 32 bytes are an Ed25519 seed");
        let public = PublicKey(pair.public_key().as_ref().try_into().expect("Ed25519 keys are 32 bytes"));
        Signer { pair, public }
    }

    /// From a PKCS#8 document, as rcgen and aws-lc-rs write it.
    pub fn from_pkcs8(der: &[u8]) -> Option<Signer> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok()?;
        let public = PublicKey(pair.public_key().as_ref().try_into().ok()?);
        Some(Signer { pair, public })
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The 64 bytes of signature over `message`.
    pub fn sign(&self, message: &[u8]) -> Bytes {
        Bytes::copy_from_slice(self.pair.sign(message).as_ref())
    }
}

impl PublicKey {
    /// Whether `signature` is this key's over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

impl Envelope {
    /// An envelope over `payload`, signed by one key.
    pub fn sign(payload_type: &str, payload: impl Into<Bytes>, signer: &Signer) -> Envelope {
        let mut envelope =
            Envelope { payload_type: payload_type.into(), payload: payload.into(), signatures: Vec::new() };
        envelope.add_signature(signer);
        envelope
    }

    /// The same envelope with one more signature.
    pub fn add_signature(&mut self, signer: &Signer) {
        let bytes = signer.sign(&self.signed_bytes());
        self.signatures.push(Signature { key: signer.public().id(), bytes });
    }

    /// The first of `keys` with a valid signature here. `None` also when there are more than [`SIGNATURES_MAX`].
    pub fn signed_by<'k>(&self, keys: impl IntoIterator<Item = &'k PublicKey>) -> Option<PublicKey> {
        if self.signatures.len() > SIGNATURES_MAX {
            return None;
        }
        let message = self.signed_bytes();
        for key in keys {
            let id = key.id();
            if self.signatures.iter().any(|s| s.key == id && key.verifies(&message, &s.bytes)) {
                return Some(*key);
            }
        }
        None
    }

    /// The pre-authentication encoding: type and payload, each with its length, so that no two pairs share bytes.
    fn signed_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.payload.len() + self.payload_type.len() + 48);
        out.extend_from_slice(b"DSSEv1 ");
        out.extend_from_slice(self.payload_type.len().to_string().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.payload_type.as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.payload.len().to_string().as_bytes());
        out.push(b' ');
        out.extend_from_slice(&self.payload);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_altered_type_payload_or_signature_is_nobodys() {
        let signer = Signer::from_seed(&[7; 32]);
        let key = signer.public();
        let good = Envelope::sign("order", &b"payload"[..], &signer);
        assert_eq!(good.signed_by([&key]), Some(key));
        let other = Signer::from_seed(&[8; 32]).public();
        assert_eq!(good.signed_by([&other]), None);
        let mut bad = good.clone();
        bad.payload_type = "settings".into();
        assert_eq!(bad.signed_by([&key]), None);
        let mut bad = good.clone();
        bad.payload = Bytes::from_static(b"payloae");
        assert_eq!(bad.signed_by([&key]), None);
        let mut bad = good.clone();
        let mut bytes = bad.signatures[0].bytes.to_vec();
        bytes[9] ^= 1;
        bad.signatures[0].bytes = bytes.into();
        assert_eq!(bad.signed_by([&key]), None);
    }

    #[test]
    fn eight_signatures_pass_and_nine_are_refused() {
        let signers: Vec<Signer> = (0..9u8).map(|i| Signer::from_seed(&[i; 32])).collect();
        let mut envelope = Envelope::sign("order", &b"p"[..], &signers[0]);
        signers[1..8].iter().for_each(|s| envelope.add_signature(s));
        assert!(envelope.signed_by([&signers[7].public()]).is_some());
        envelope.add_signature(&signers[8]);
        assert!(envelope.signed_by([&signers[7].public()]).is_none());
    }
}
