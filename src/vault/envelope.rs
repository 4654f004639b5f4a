//! Client-side encryption as the official SDKs of the kv dialect do it: what they
//! made is opened here, and the other way round.
//!
//! An envelope is base64 of nonce (12 bytes), tag (16), length of the key blob (LEB128 of 32 bits),
//! key blob, ciphertext; AES-256-GCM. The key blob is the data key as only the vault can open it,
//! so an envelope needs nothing beside it but associated data, if there was some. Pure: knows no
//! vault; no input panics.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use zeroize::Zeroizing;

use crate::secret::{SecretBytes, SecretString};
use crate::sys::random;

const NONCE: usize = 12;
const TAG: usize = 16;
/// LEB128 of 32 bits is not longer.
const MAX_LENGTH_BYTES: usize = 5;

/// Why something could not be encrypted or decrypted. Holds none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The text is not the base64 of an envelope.
    #[error("this is not what vaultfs key encrypt or an SDK's vault.encrypt made: {0}")]
    Malformed(&'static str),
    /// The data key is not base64 of 32 bytes.
    #[error("the data key is not 32 bytes in base64")]
    BadKey,
    /// It was changed, or key or associated data are others.
    #[error(
        "it cannot be decrypted: it was damaged, or the data key or the associated data (--aad) is another"
    )]
    Refused,
    /// The system gave no random bytes.
    #[error("the system has no random bytes to give")]
    NoRandomness,
}

/// A data key.
pub struct DataKey(LessSafeKey);

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl DataKey {
    /// A data key from its base64.
    pub fn new(text: &SecretString) -> Result<Self, EnvelopeError> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(64));
        STANDARD.decode_vec(text.expose().trim(), &mut bytes).map_err(|_| EnvelopeError::BadKey)?;
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| EnvelopeError::BadKey)?;
        Ok(Self(LessSafeKey::new(key)))
    }
}

/// Something encrypted, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    nonce: [u8; NONCE],
    tag: [u8; TAG],
    blob: Vec<u8>,
    ciphertext: Vec<u8>,
}

impl Envelope {
    /// Encrypts under `key`, which the vault knows as `blob`; `aad` is needed again to decrypt.
    pub fn seal(key: &DataKey, blob: &[u8], aad: &[u8], plain: &SecretBytes) -> Result<Self, EnvelopeError> {
        let nonce = random::bytes().map_err(|_| EnvelopeError::NoRandomness)?;
        Self::seal_with(nonce, key, blob, aad, plain)
    }

    fn seal_with(
        nonce: [u8; NONCE],
        key: &DataKey,
        blob: &[u8],
        aad: &[u8],
        plain: &SecretBytes,
    ) -> Result<Self, EnvelopeError> {
        let too_long = "the key blob is longer than 4 GiB";
        u32::try_from(blob.len()).map_err(|_| EnvelopeError::Malformed(too_long))?;
        // Wiped if sealing fails half way; what comes out is no secret.
        let mut text = Zeroizing::new(plain.expose().to_vec());
        let sealed = Nonce::assume_unique_for_key(nonce);
        let tag = key.0.seal_in_place_separate_tag(sealed, Aad::from(aad), &mut text);
        let tag = tag.map_err(|_| EnvelopeError::Refused)?;
        let mut bytes = [0; TAG];
        bytes.copy_from_slice(tag.as_ref());
        Ok(Self { nonce, tag: bytes, blob: blob.to_vec(), ciphertext: std::mem::take(&mut *text) })
    }

    /// Takes a text apart; white space around it does not count.
    pub fn parse(text: &str) -> Result<Self, EnvelopeError> {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| EnvelopeError::Malformed("it is not base64"))?;
        let short = || EnvelopeError::Malformed("it is too short");
        let (nonce, rest) = bytes.split_first_chunk::<NONCE>().ok_or_else(short)?;
        let (tag, rest) = rest.split_first_chunk::<TAG>().ok_or_else(short)?;
        let (len, rest) = read_length(rest)?;
        let (blob, ciphertext) = rest.split_at_checked(len).ok_or_else(short)?;
        Ok(Self { nonce: *nonce, tag: *tag, blob: blob.to_vec(), ciphertext: ciphertext.to_vec() })
    }

    /// The data key as only the vault can open it, in base64.
    pub fn blob(&self) -> String {
        STANDARD.encode(&self.blob)
    }

    /// Decrypts.
    pub fn open(mut self, key: &DataKey, aad: &[u8]) -> Result<SecretBytes, EnvelopeError> {
        let nonce = Nonce::assume_unique_for_key(self.nonce);
        let (tag, from) = (Tag::from(self.tag), 0..);
        let opened = key.0.open_in_place_separate_tag(nonce, Aad::from(aad), tag, &mut self.ciphertext, from);
        opened.map_err(|_| EnvelopeError::Refused)?;
        Ok(SecretBytes::new(self.ciphertext))
    }

    /// The text of it.
    pub fn to_text(&self) -> String {
        let room = NONCE + TAG + MAX_LENGTH_BYTES + self.blob.len() + self.ciphertext.len();
        let mut bytes = Vec::with_capacity(room);
        bytes.extend_from_slice(&self.nonce);
        bytes.extend_from_slice(&self.tag);
        // `seal` and `parse` let no longer one in.
        write_length(u32::try_from(self.blob.len()).unwrap_or(u32::MAX), &mut bytes);
        bytes.extend_from_slice(&self.blob);
        bytes.extend_from_slice(&self.ciphertext);
        STANDARD.encode(bytes)
    }
}

fn write_length(mut len: u32, bytes: &mut Vec<u8>) {
    loop {
        let low = (len & 0x7f) as u8;
        len >>= 7;
        if len == 0 {
            return bytes.push(low);
        }
        bytes.push(low | 0x80);
    }
}

fn read_length(bytes: &[u8]) -> Result<(usize, &[u8]), EnvelopeError> {
    let bad = EnvelopeError::Malformed("the length of its key is no number of 32 bits");
    let mut len = 0u64;
    for (i, byte) in bytes.iter().take(MAX_LENGTH_BYTES).enumerate() {
        len |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            let len = u32::try_from(len).map_err(|_| bad)?;
            return Ok((len as usize, &bytes[i + 1..]));
        }
    }
    Err(bad)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> DataKey {
        DataKey::new(&SecretString::new(STANDARD.encode([byte; 32]))).unwrap()
    }

    fn plain(bytes: &[u8]) -> SecretBytes {
        SecretBytes::from(bytes)
    }

    /// Made with Python's cryptography by the layout of the official SDKs.
    const FOREIGN: &str = "AAECAwQFBgcICQoLNhMqd21ZA+mquY72VhYymARibG9imTT4sFk7";

    #[test]
    fn what_was_sealed_opens_with_the_same_key_and_data_alone() {
        for blob in [&b""[..], b"blob", &[7; 127], &[7; 128], &[7; 20_000]] {
            let sealed = Envelope::seal(&key(1), blob, b"aad", &plain(b"secret\0\xff")).unwrap();
            let text = sealed.to_text();
            let read = Envelope::parse(&format!(" {text}\n")).unwrap();
            assert_eq!(read, sealed);
            assert_eq!(STANDARD.decode(read.blob()).unwrap(), blob);
            assert_eq!(read.clone().open(&key(1), b"aad").unwrap(), plain(b"secret\0\xff"));
            assert_eq!(read.clone().open(&key(2), b"aad"), Err(EnvelopeError::Refused));
            assert_eq!(read.open(&key(1), b""), Err(EnvelopeError::Refused));
        }
        let twice = [(); 2].map(|()| Envelope::seal(&key(1), b"", b"", &plain(b"x")).unwrap());
        assert_ne!(twice[0].nonce, twice[1].nonce);
    }

    #[test]
    fn the_layout_is_that_of_the_sdks() {
        let nonce = std::array::from_fn(|i| i as u8);
        let sealed = Envelope::seal_with(nonce, &key(9), b"blob", b"aad", &plain(b"secret")).unwrap();
        assert_eq!(sealed.to_text(), FOREIGN);
        let long = Envelope::seal(&key(9), &[0x42; 200], b"", &plain(b"")).unwrap();
        assert_eq!(STANDARD.decode(long.to_text()).unwrap()[28..31], [0xc8, 0x01, 0x42]);
    }

    #[test]
    fn what_is_no_envelope_is_named() {
        for text in ["", "x", "####", "AAAA", &STANDARD.encode([0x80; 40]), &STANDARD.encode([0xff; 40])] {
            assert!(matches!(Envelope::parse(text), Err(EnvelopeError::Malformed(_))), "{text}");
        }
        let mut overlong = vec![0; 28];
        overlong.extend([0x80, 0x80, 0x80, 0x80, 0x10]);
        assert!(Envelope::parse(&STANDARD.encode(overlong)).is_err(), "33 bits");
        for bad in ["", "x", "AAAA", &STANDARD.encode([0; 31]), &STANDARD.encode([0; 33])] {
            assert_eq!(DataKey::new(&SecretString::new(bad.into())).unwrap_err(), EnvelopeError::BadKey);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(envelope) = Envelope::parse(&STANDARD.encode(&bytes)) {
                prop_assert_eq!(Envelope::parse(&envelope.to_text()), Ok(envelope.clone()));
                prop_assert_eq!(envelope.open(&key(1), b""), Err(EnvelopeError::Refused));
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in any::<String>()) {
            let _ = Envelope::parse(&text);
            let _ = DataKey::new(&SecretString::new(text));
        }

        #[test]
        fn anything_sealed_comes_back(
            blob in prop::collection::vec(any::<u8>(), 0..300),
            aad in prop::collection::vec(any::<u8>(), 0..50),
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let text = Envelope::seal(&key(3), &blob, &aad, &plain(&bytes)).unwrap().to_text();
            let read = Envelope::parse(&text).unwrap();
            prop_assert_eq!(read.blob(), STANDARD.encode(&blob));
            prop_assert_eq!(read.open(&key(3), &aad).unwrap(), plain(&bytes));
        }
    }
    /// Envelopes with a piece of them changed, cut off or doubled, and texts that are none.
    fn bent() -> impl Strategy<Value = String> {
        let bytes = |n| prop::collection::vec(any::<u8>(), 0..n);
        let length = prop_oneof![(0u32..300).boxed(), any::<u32>().boxed()];
        let whole = (bytes(40), length, bytes(300)).prop_map(|(head, len, tail)| {
            let mut envelope = head;
            write_length(len, &mut envelope);
            envelope.extend(tail);
            STANDARD.encode(envelope)
        });
        let sealed = (bytes(200), bytes(100))
            .prop_map(|(blob, text)| Envelope::seal(&key(1), &blob, b"", &plain(&text)).unwrap().to_text());
        let text = prop_oneof![
            whole.boxed(),
            sealed.boxed(),
            any::<String>().boxed(),
            "[A-Za-z0-9+/=]{0,99}".boxed()
        ];
        (text, any::<prop::sample::Index>(), any::<Option<char>>(), any::<bool>()).prop_map(
            |(text, at, other, cut)| {
                let at = at.index(text.chars().count() + 1);
                let (mut bent, rest): (String, String) =
                    (text.chars().take(at).collect(), text.chars().skip(at).collect());
                bent.extend(other);
                if !cut {
                    bent.push_str(&rest);
                }
                bent
            },
        )
    }

    #[test]
    #[ignore = "ten minutes of made-up envelopes: run by scripts/test --all"]
    fn envelopes_for_ten_minutes() {
        crate::vault::testing::fuzz::for_ten_minutes("envelope", &bent(), |text| {
            let _ = DataKey::new(&SecretString::new(text.clone()));
            if let Ok(envelope) = Envelope::parse(&text) {
                prop_assert_eq!(Envelope::parse(&envelope.to_text()), Ok(envelope.clone()));
                prop_assert_eq!(envelope.clone().open(&key(2), b""), Err(EnvelopeError::Refused));
                let _ = envelope.open(&key(1), b"");
            }
            Ok(())
        });
    }
}
