//! Secrets of join strings: made here, and known to the store by their hash only.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};

/// A new secret: 192 random bits of the operating system's generator as 32 URL-safe characters.
pub fn generate() -> String {
    URL_SAFE_NO_PAD.encode(random::<24>())
}

/// SHA-256 of a secret. Secrets are long and random, so neither salt nor a slow hash is needed to keep them from being
/// guessed, and looking one up by its hash tells a listener nothing about the others.
pub fn hash(secret: &str) -> [u8; 32] {
    sha256(secret.as_bytes())
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_long_url_safe_and_all_different() {
        let secrets: std::collections::BTreeSet<_> = (0..100).map(|_| generate()).collect();
        assert_eq!(secrets.len(), 100);
        for secret in secrets {
            assert_eq!(secret.len(), 32);
            assert!(secret.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{secret}");
        }
    }

    #[test]
    fn the_hash_is_sha256() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(to_hex(&hash("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
