//! The string that lets somebody in: where the mesh is, how to know it, and what to say.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;

use crate::{Error, secret};

/// SHA-256 of a CA's public key (its SubjectPublicKeyInfo in DER): who holds the pin knows the CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pin(pub [u8; 32]);

impl Pin {
    /// The pin of a CA's certificate; `None` when it cannot be read.
    pub(crate) fn of(ca: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(ca).ok()?;
        Some(Self(secret::sha256(parsed.public_key().raw)))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&secret::to_hex(&self.0))
    }
}

impl FromStr for Pin {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::BadPin(text.into());
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

/// `ado1:<host:port,...>:<pin>:<secret>`. Whoever holds it may enrol, so `Debug` does not show the secret; `Display` is
/// the string itself.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinString {
    /// `host:port` of the mesh's controllers, at least one. IPv6 addresses stand in brackets.
    pub addresses: Vec<String>,
    /// The mesh's CA.
    pub pin: Pin,
    /// What the controller asks for.
    pub secret: String,
}

const SCHEME: &str = "ado1:";

impl fmt::Display for JoinString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}:{}:{}", self.addresses.join(","), self.pin, self.secret)
    }
}

impl fmt::Debug for JoinString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinString").field("addresses", &self.addresses).field("pin", &self.pin).finish_non_exhaustive()
    }
}

impl FromStr for JoinString {
    type Err = Error;

    /// Errors name the part that is wrong, and never show the secret.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |why: &str| Error::BadJoinString(why.into());
        let rest = text.trim().strip_prefix(SCHEME).ok_or_else(|| wrong("it does not start with ado1:"))?;
        // From the right: addresses have colons, the other parts have none.
        let mut parts = rest.rsplitn(3, ':');
        let (Some(secret), Some(pin), Some(addresses)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong("parts are missing"));
        };
        if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
            return Err(wrong("the secret (the last part) is empty or damaged"));
        }
        let pin =
            pin.parse().map_err(|_| wrong("the CA hash (the part before the last) has not 64 hexadecimal digits"))?;
        let addresses: Vec<_> = addresses.split(',').map(str::to_owned).collect();
        match addresses.iter().find(|address| !is_address(address)) {
            Some(bad) => Err(Error::BadJoinString(format!("the address `{bad}` is not host:port"))),
            None => Ok(Self { addresses, pin, secret: secret.into() }),
        }
    }
}

/// Whether `text` is `host:port`: a DNS name or IPv4 address, or an IPv6 address in brackets, and a port above 0.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_is_right = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.split('%').next().is_some_and(|v6| v6.parse::<Ipv6Addr>().is_ok()),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)),
    };
    host_is_right && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIN: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn check(addresses: &[&str]) {
        let join = JoinString {
            addresses: addresses.iter().map(|address| (*address).into()).collect(),
            pin: PIN.parse().unwrap(),
            secret: secret::generate(),
        };
        let text = join.to_string();
        assert_eq!(text.parse::<JoinString>().unwrap(), join, "{text}");
        assert_eq!(format!(" {text}\r\n").parse::<JoinString>().unwrap(), join, "pasted with white space");
        assert!(!format!("{join:?}").contains(&join.secret));
        // Whatever is cut off, at either end, is noticed, unless only the secret is shorter.
        for cut in 1..text.len() {
            assert!(text[cut..].parse::<JoinString>().is_err(), "{}", &text[cut..]);
            let short = text[..cut].parse::<JoinString>();
            assert!(short.is_err() || cut > text.len() - join.secret.len(), "{}", &text[..cut]);
        }
    }

    #[test]
    fn round_trips() {
        check(&["127.0.0.1:1"]);
        check(&["[::1]:7420"]);
        check(&["[fe80::1%eth0]:7420"]);
        check(&["controller.example.org:7420", "10.0.0.1:65535", "[2001:db8::2]:443"]);
    }

    #[test]
    fn pins_round_trip() {
        let pin: Pin = PIN.parse().unwrap();
        assert_eq!(pin.to_string(), PIN);
        assert_eq!(PIN.to_uppercase().parse::<Pin>().unwrap(), pin);
        for bad in [
            "",
            "00",
            &PIN[1..],
            &format!("{PIN}00"),
            &PIN.replace('f', "g"),
            &PIN.replace("ff", "é"),
            &PIN.replace("00", "+0"),
        ] {
            assert!(bad.parse::<Pin>().unwrap_err().to_string().contains("64 hexadecimal"), "{bad}");
        }
    }

    #[test]
    fn errors_name_the_part() {
        let check = |text: String, part: &str| {
            let error = text.parse::<JoinString>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("hush"), "the secret is shown: {error}");
        };
        check("".into(), "does not start with ado1:");
        check(format!("ado2:a:1:{PIN}:hush"), "does not start with ado1:");
        check("ado1:".into(), "parts are missing");
        check(format!("ado1:{PIN}:hush"), "parts are missing");
        check(format!("ado1:a:1:{PIN}:"), "secret");
        check(format!("ado1:a:1:{PIN}:hush!"), "secret");
        check(format!("ado1:a:1:{PIN}:hush\nhush"), "secret");
        check("ado1:a:1:0011:hush".into(), "CA hash");
        for bad in [
            "", ",", "a", ":1", "a:", "a:0", "a:65536", "a:+1", "a b:1", "::1:1", "[::1]", "[]:1", "[a]:1", "a:1,",
            "a:1,,b:1",
        ] {
            check(format!("ado1:{bad}:{PIN}:hush"), "is not host:port");
        }
    }
}
