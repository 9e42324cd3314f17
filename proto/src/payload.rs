//! Payloads: typed bodies that travel as `(kind, version, bytes)`.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// Why bytes from a peer or a store could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before the value does, or are not a value of the type.
    #[error("malformed {what}")]
    Malformed {
        /// The type that was being read.
        what: &'static str,
    },
    /// Bytes are left after the value.
    #[error("{extra} bytes left after {what}")]
    Trailing {
        /// The type that was being read.
        what: &'static str,
        /// How many bytes are left.
        extra: usize,
    },
}

/// A typed body. The default form is postcard; a type with bulk bytes may lay them out so that decoding copies nothing.
pub trait Payload: Sized {
    /// Name for errors.
    const WHAT: &'static str;

    /// Appends the encoded form to `out`.
    fn encode(&self, out: &mut Vec<u8>);

    /// Appends the encoded form to `out` as far as it is not bulk, which follows it and is returned: nobody copies it.
    fn encode_head(&self, out: &mut Vec<u8>) -> Bytes {
        self.encode(out);
        Bytes::new()
    }

    /// Reads a value that fills `bytes` exactly.
    fn decode(bytes: &Bytes) -> Result<Self, DecodeError>;
}

/// For a large body among small ones.
impl<T: Payload> Payload for Box<T> {
    const WHAT: &'static str = T::WHAT;

    fn encode(&self, out: &mut Vec<u8>) {
        T::encode(self, out);
    }

    fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        T::decode(bytes).map(Self::new)
    }
}

/// Appends `value` in postcard form.
pub(crate) fn to_postcard<T: Serialize>(value: &T, out: &mut Vec<u8>) {
    let taken = std::mem::take(out);
    *out = postcard::to_extend(value, taken).expect("serialising to memory cannot fail for the types of this crate");
}

/// Reads a postcard value that fills `bytes` exactly.
pub(crate) fn from_postcard<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, DecodeError> {
    let (value, rest) = postcard::take_from_bytes(bytes).map_err(|_| DecodeError::Malformed { what })?;
    if rest.is_empty() { Ok(value) } else { Err(DecodeError::Trailing { what, extra: rest.len() }) }
}

/// Gives types the postcard form of [`Payload`].
macro_rules! postcard_payload {
    ($($type:ty),+ $(,)?) => {$(
        impl $crate::Payload for $type {
            const WHAT: &'static str = stringify!($type);
            fn encode(&self, out: &mut Vec<u8>) {
                $crate::payload::to_postcard(self, out);
            }
            fn decode(bytes: &bytes::Bytes) -> Result<Self, $crate::DecodeError> {
                $crate::payload::from_postcard(bytes, Self::WHAT)
            }
        }
    )+};
}
pub(crate) use postcard_payload;

/// Defines an enum of payloads, each with its kind and version. Unknown pairs decode to `Unknown` and can be passed on.
macro_rules! payloads {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$vmeta:meta])* $kind:literal / $version:literal => $variant:ident($type:ty),)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum $name {
            $($(#[$vmeta])* $variant($type),)+
            /// A kind or version this build does not know; kept as it came.
            Unknown {
                /// The kind.
                kind: u16,
                /// The version.
                version: u8,
                /// The body as it came.
                bytes: bytes::Bytes,
            },
        }

        impl $name {
            /// Every kind and version this build knows, in order, with the name of its type.
            pub const KNOWN: &'static [(u16, u8, &'static str)] = &[$(($kind, $version, stringify!($variant))),+];

            /// Kind and version of this value.
            pub fn kind(&self) -> (u16, u8) {
                match self {
                    $(Self::$variant(_) => ($kind, $version),)+
                    Self::Unknown { kind, version, .. } => (*kind, *version),
                }
            }

            /// Appends the body (without kind and version) to `out`.
            pub fn encode_body(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(value) => $crate::Payload::encode(value, out),)+
                    Self::Unknown { bytes, .. } => out.extend_from_slice(bytes),
                }
            }

            /// Appends the body as [`Payload::encode_head`](crate::Payload::encode_head) does.
            pub fn encode_body_head(&self, out: &mut Vec<u8>) -> bytes::Bytes {
                match self {
                    $(Self::$variant(value) => $crate::Payload::encode_head(value, out),)+
                    Self::Unknown { bytes, .. } => bytes.clone(),
                }
            }

            /// Reads a body of the given kind and version. An unknown pair is not an error.
            pub fn decode_body(kind: u16, version: u8, bytes: &bytes::Bytes) -> Result<Self, $crate::DecodeError> {
                match (kind, version) {
                    $(($kind, $version) => <$type as $crate::Payload>::decode(bytes).map(Self::$variant),)+
                    _ => Ok(Self::Unknown { kind, version, bytes: bytes.clone() }),
                }
            }
        }

        $(impl From<$type> for $name {
            fn from(value: $type) -> Self {
                Self::$variant(value)
            }
        })+
    };
}
pub(crate) use payloads;
