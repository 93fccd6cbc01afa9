//! Private SSH keys, and the replies of an agent that holds them (draft-ietf-sshm-ssh-agent).

use rbuild_remedy::{CommandRemedy, Remedy};
use ssh_key::{Algorithm, HashAlg, Signature};

/// An unencrypted key in OpenSSH format.
#[derive(Clone)]
pub struct PrivateKey(ssh_key::PrivateKey);

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PrivateKey({})", self.0.fingerprint(HashAlg::Sha256))
    }
}

/// The reason why a private key cannot be used. Its message continues a sentence about the key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("not a private key in OpenSSH format")]
    Format,
    #[error("has a passphrase")]
    Encrypted,
}

impl KeyError {
    /// Returns the remedy, if there is one.
    pub fn remedy(&self) -> Option<Remedy> {
        match self {
            KeyError::Format => Some(CommandRemedy::ConvertKey.into()),
            KeyError::Encrypted => Some(CommandRemedy::AddKeyToAgent.into()),
        }
    }
}

impl PrivateKey {
    /// Parses `-----BEGIN OPENSSH PRIVATE KEY-----`.
    pub fn parse(bytes: &[u8]) -> Result<PrivateKey, KeyError> {
        let key = ssh_key::PrivateKey::from_openssh(bytes).map_err(|_| KeyError::Format)?;
        if key.is_encrypted() {
            return Err(KeyError::Encrypted);
        }
        Ok(PrivateKey(key))
    }

    fn blob(&self) -> Option<Vec<u8>> {
        self.0.public_key().to_bytes().ok()
    }

    /// Signs data. RSA keys use the hash that the flags request; SHA-1 is not supported.
    fn sign(&self, data: &[u8], flags: u32) -> Option<Signature> {
        use signature::Signer;
        match self.0.key_data() {
            ssh_key::private::KeypairData::Rsa(pair) => {
                let hash = if flags & RSA_SHA2_256 != 0 { HashAlg::Sha256 } else { HashAlg::Sha512 };
                rsa_signature(pair, hash, data)
            }
            pair => pair.try_sign(data).ok(),
        }
    }
}

fn rsa_signature(pair: &ssh_key::private::RsaKeypair, hash: HashAlg, data: &[u8]) -> Option<Signature> {
    use rsa::signature::{SignatureEncoding, Signer};
    // ssh-key 0.6 converts RSA keys with the first prime twice, so the key is assembled here.
    let number = |n: &ssh_key::Mpint| n.as_positive_bytes().map(rsa::BigUint::from_bytes_be);
    let (public, private) = (&pair.public, &pair.private);
    let primes = vec![number(&private.p)?, number(&private.q)?];
    let key = rsa::RsaPrivateKey::from_components(number(&public.n)?, number(&public.e)?, number(&private.d)?, primes);
    let key = key.ok()?;
    let bytes = match hash {
        HashAlg::Sha256 => rsa::pkcs1v15::SigningKey::<rsa::sha2::Sha256>::new(key).try_sign(data).ok()?.to_vec(),
        _ => rsa::pkcs1v15::SigningKey::<rsa::sha2::Sha512>::new(key).try_sign(data).ok()?.to_vec(),
    };
    Signature::new(Algorithm::Rsa { hash: Some(hash) }, bytes).ok()
}

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
const RSA_SHA2_256: u32 = 2;

/// Returns true for requests that commands may make: listing keys and signing.
pub(crate) fn is_passed_on(message: &[u8]) -> bool {
    matches!(message.first(), Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)))
}

/// Returns the failure reply.
pub(crate) fn refusal() -> Vec<u8> {
    vec![FAILURE]
}

/// Returns the reply to a message, both without length prefix. Unknown messages get the failure
/// reply.
pub(crate) fn reply(message: &[u8], keys: &[PrivateKey]) -> Vec<u8> {
    let answer = match message.split_first() {
        Some((&REQUEST_IDENTITIES, _)) => identities(keys),
        Some((&SIGN_REQUEST, rest)) => sign(rest, keys),
        _ => None,
    };
    answer.unwrap_or_else(refusal)
}

fn identities(keys: &[PrivateKey]) -> Option<Vec<u8>> {
    let mut out = vec![IDENTITIES_ANSWER];
    out.extend_from_slice(&(keys.len() as u32).to_be_bytes());
    for key in keys {
        put(&mut out, &key.blob()?);
        put(&mut out, key.0.comment().as_bytes());
    }
    Some(out)
}

fn sign(mut rest: &[u8], keys: &[PrivateKey]) -> Option<Vec<u8>> {
    let blob = take(&mut rest)?;
    let data = take(&mut rest)?;
    let flags = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?);
    let key = keys.iter().find(|k| k.blob().as_deref() == Some(blob))?;
    let signature = key.sign(data, flags)?;
    let mut body = Vec::new();
    put(&mut body, signature.algorithm().as_str().as_bytes());
    put(&mut body, signature.as_bytes());
    let mut out = vec![SIGN_RESPONSE];
    put(&mut out, &body);
    Some(out)
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?) as usize;
    let bytes = rest.get(4..4usize.checked_add(length)?)?;
    *rest = &rest[4 + length..];
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use rbuild_testkit::{assert_recorded, variants};

    use super::*;

    #[test]
    fn messages_are_as_recorded() {
        let errors = [PrivateKey::parse(b"no key").unwrap_err(), KeyError::Encrypted];
        let variants = variants!(KeyError { Format, Encrypted });
        assert_recorded!("KeyError", variants.table(&errors, |e| e, KeyError::remedy));
    }
}
