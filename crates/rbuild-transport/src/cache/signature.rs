//! Signatures of the records of caches: Ed25519, with keys in OpenSSH or PEM format.

use std::sync::Arc;

use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rbuild_image::BlobDigest;

/// The reason why a key cannot be used. Its message continues a sentence about the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordKeyError {
    /// Anything but a key of that kind.
    #[error("not an Ed25519 {0} key in OpenSSH or PEM format")]
    Format(&'static str),
    /// A key that its owner alone can decrypt.
    #[error("has a passphrase")]
    Encrypted,
}

/// The keys for the records of a cache. Without any, records are neither signed nor verified.
#[derive(Debug, Clone, Default)]
pub struct RecordKeys {
    /// Signs the records that are written.
    own: Option<Arc<SigningKey>>,
    /// Keys whose signatures are valid.
    trusted: Vec<VerifyingKey>,
}

/// No keys.
static NONE: RecordKeys = RecordKeys { own: None, trusted: Vec::new() };

impl RecordKeys {
    /// Returns the keys of a cache that is neither signed nor verified.
    pub fn none() -> &'static RecordKeys {
        &NONE
    }

    /// Adds the private key that signs records. Its own signatures are valid.
    ///
    /// # Errors
    ///
    /// Fails if the text is not an Ed25519 private key without a passphrase.
    pub fn signing_with(mut self, text: &[u8]) -> Result<RecordKeys, RecordKeyError> {
        let key = private_key(text)?;
        self.trusted.push(key.verifying_key());
        self.own = Some(Arc::new(key));
        Ok(self)
    }

    /// Adds public keys whose signatures are valid: one in PEM format, or one a line in that of
    /// OpenSSH.
    ///
    /// # Errors
    ///
    /// Fails if there is no key in the text, or anything else.
    pub fn trusting(mut self, text: &str) -> Result<RecordKeys, RecordKeyError> {
        self.trusted.extend(public_keys(text)?);
        Ok(self)
    }

    /// Returns true if only signed records are used.
    pub fn are_required(&self) -> bool {
        !self.trusted.is_empty()
    }

    /// Returns the signature of records with that digest, if they are signed.
    pub(crate) fn sign(&self, records: &BlobDigest) -> Option<String> {
        self.own.as_ref().map(|key| format!("{:X}", key.sign(statement(records).as_bytes())).to_lowercase())
    }

    /// Returns true if records with that digest and signature may be used.
    pub(crate) fn accept(&self, records: &BlobDigest, signature: Option<&str>) -> bool {
        if !self.are_required() {
            return true;
        }
        let Some(signature) = signature.and_then(|text| text.parse::<Signature>().ok()) else { return false };
        let statement = statement(records);
        self.trusted.iter().any(|key| key.verify_strict(statement.as_bytes(), &signature).is_ok())
    }
}

/// Returns the text that is signed. It cannot be mistaken for one of another protocol.
fn statement(records: &BlobDigest) -> String {
    format!("rbuild cache records 1\n{records}\n")
}

fn private_key(text: &[u8]) -> Result<SigningKey, RecordKeyError> {
    let other = RecordKeyError::Format("private");
    if let Ok(key) = ssh_key::PrivateKey::from_openssh(text) {
        if key.is_encrypted() {
            return Err(RecordKeyError::Encrypted);
        }
        let pair = key.key_data().ed25519().ok_or(other)?;
        return SigningKey::try_from(pair).map_err(|_| other);
    }
    let text = str::from_utf8(text).map_err(|_| other)?.trim_end();
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") {
        return Err(RecordKeyError::Encrypted);
    }
    SigningKey::from_pkcs8_pem(text).map_err(|_| other)
}

fn public_keys(text: &str) -> Result<Vec<VerifyingKey>, RecordKeyError> {
    let other = RecordKeyError::Format("public");
    if text.trim_start().starts_with("-----BEGIN") {
        return VerifyingKey::from_public_key_pem(text.trim()).map(|key| vec![key]).map_err(|_| other);
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<VerifyingKey> = lines
        .map(|line| {
            let key = ssh_key::PublicKey::from_openssh(line).ok()?;
            VerifyingKey::try_from(key.key_data().ed25519()?).ok()
        })
        .collect::<Option<_>>()
        .ok_or(other)?;
    if keys.is_empty() { Err(other) } else { Ok(keys) }
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, no_remedy, variants};

    use super::*;

    /// Keys for tests: `ssh-keygen -t ed25519`, and `openssl genpkey -algorithm ed25519`.
    const OPENSSH: &str = include_str!("signature/test-key");
    const OPENSSH_PUBLIC: &str = include_str!("signature/test-key.pub");
    const PEM: &str = include_str!("signature/test-key.pem");
    const PEM_PUBLIC: &str = include_str!("signature/test-key-pub.pem");
    const ENCRYPTED: &str = include_str!("signature/test-key-encrypted");

    fn keys() -> RecordKeys {
        RecordKeys::default()
    }

    #[test]
    fn records_are_accepted_with_a_signature_of_a_trusted_key() {
        let (records, other) = (BlobDigest::of(b"records"), BlobDigest::of(b"other"));
        assert_eq!(keys().sign(&records), None);
        assert!(keys().accept(&records, None) && !keys().are_required());
        for (private, public, stranger) in [(OPENSSH, OPENSSH_PUBLIC, PEM_PUBLIC), (PEM, PEM_PUBLIC, OPENSSH_PUBLIC)] {
            let own = keys().signing_with(private.as_bytes()).unwrap();
            let signature = own.sign(&records).unwrap();
            assert_eq!(own.sign(&records).as_ref(), Some(&signature), "equal records have equal signatures");
            let trusting = keys().trusting(public).unwrap();
            for keys in [&own, &trusting, &trusting.clone().trusting(stranger).unwrap()] {
                assert!(keys.accept(&records, Some(&signature)));
                assert!(!keys.accept(&other, Some(&signature)) && !keys.accept(&records, None));
                assert!(!keys.accept(&records, Some("")) && !keys.accept(&records, Some(&signature[2..])));
            }
            assert!(!keys().trusting(stranger).unwrap().accept(&records, Some(&signature)));
        }
        let both = keys().trusting(&format!("# writers\n{OPENSSH_PUBLIC}\n\n{OPENSSH_PUBLIC}")).unwrap();
        assert!(both.accept(&records, keys().signing_with(OPENSSH.as_bytes()).unwrap().sign(&records).as_deref()));
    }

    #[test]
    fn messages_are_as_recorded() {
        let errors = ["", ENCRYPTED].map(|text| keys().signing_with(text.as_bytes()).map(drop).unwrap_err());
        let variants = variants!(RecordKeyError { Format, Encrypted });
        assert_recorded!("RecordKeyError", variants.table(&errors, |e| e, no_remedy));
    }

    #[test]
    fn other_keys_are_refused() {
        let private = |text: &str| keys().signing_with(text.as_bytes()).map(drop).unwrap_err();
        for text in ["", "x", OPENSSH_PUBLIC, PEM_PUBLIC, &OPENSSH[..200]] {
            assert_eq!(private(text), RecordKeyError::Format("private"), "{text}");
        }
        assert_eq!(private(ENCRYPTED), RecordKeyError::Encrypted);
        for text in ["", "\n# none\n", "x", OPENSSH, PEM, "ssh-rsa AAAA"] {
            let found = keys().trusting(text).map(drop);
            assert_eq!(found, Err(RecordKeyError::Format("public")), "{text}");
        }
    }
}
