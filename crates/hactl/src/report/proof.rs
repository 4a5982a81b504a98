//! One copy's proof, in words and bytes that need no software of ours.

use std::time::{Duration, UNIX_EPOCH};

use ha_core::group::Shown;
use ha_core::replica::proof::Exchange;
use ha_core::replica::verifier::{Digested, SecretMethod, Verifier};
use ha_token::{Ulong, mechanism_name};
use serde::Serialize;

use crate::output::hex;

/// What was asked and answered. Bytes are in hexadecimal digits.
#[derive(Serialize)]
pub(super) struct Proof {
    /// When the answer was there.
    pub(super) time: String,
    pub(super) kind: &'static str,
    /// By its name in the standard, or its number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mechanism: Option<String>,
    /// Whether a session object answered that was copied from the key.
    pub(super) by_session_copy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) challenge: Option<String>,
    /// As the member gave it, or a digest of it where the kind says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) answer: Option<String>,
    /// What the answer has to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expected: Option<String>,
    /// What of the challenge is signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<&'static str>,
    /// A signature as other software takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) signature: Option<String>,
    /// What was encrypted, with its padding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) block: Option<String>,
    /// The throw-away pair of a key agreement, as a DER `ECPrivateKey`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) throw_away_key: Option<String>,
    /// A command that succeeds where the answer is right, in a folder with `key.pem` and a file for each field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) verify: Option<String>,
}

/// The kinds of proof, and what each is.
pub(super) const KINDS: [(&str, &str); 15] = [
    (
        "public-key",
        "No question: the public key that can be read of the copy (answer, as DER SubjectPublicKeyInfo). It is compared with the one that is expected.",
    ),
    (
        "content",
        "No question: SHA-256 of what can be read of an object that is no key (answer). It is compared with the one that is expected.",
    ),
    (
        "signature",
        "The key signed the challenge, a message that was drawn for this check. Only who has the private key can, and anybody can verify it.",
    ),
    (
        "decryption",
        "The challenge is what is in block, encrypted to the public key. The key opened it: the answer is what the block ends with.",
    ),
    (
        "unwrapping",
        "As decryption, by unwrapping: the answer is the value of the throw-away key that came out.",
    ),
    (
        "key-agreement",
        "The challenge is the public point of a pair made for this question. The answer is SHA-256 of the secret that the key agreed on with it; the throw-away key and the public key give the same secret.",
    ),
    (
        "mac",
        "A MAC of the challenge. Equal answers mean equal keys; but an HMAC does not tell a key from itself padded with zeros, so lengths are compared too.",
    ),
    ("encryption", "The challenge encrypted block by block. Equal answers mean equal keys."),
    ("block-decryption", "The challenge decrypted block by block. Equal answers mean equal keys."),
    (
        "key-wrap",
        "The key may wrap and nothing else: a throw-away key whose value is the challenge, wrapped by a mechanism that gives the same bytes each time. Equal answers mean equal keys.",
    ),
    (
        "key-digest",
        "The digest of the challenge with the key's value behind it (C_DigestKey). Equal answers mean equal keys, to the byte.",
    ),
    (
        "derivation",
        "The key may derive and nothing else: the value of a throw-away key that is the challenge encrypted under it. Equal answers mean equal keys.",
    ),
    (
        "fixed-signature",
        "A private key whose public key is not known: its signature of the challenge, which is the same each time. Equal answers mean equal keys.",
    ),
    (
        "fixed-agreement",
        "A private key whose public key is not known, or cannot be computed with: SHA-256 of the end of the secret that it agrees on with the challenge, a peer's public value. Equal answers mean equal keys.",
    ),
    (
        "rewrapping",
        "SHA-256 of the key wrapped under the group's own key, by a mechanism that gives the same bytes each time. Equal answers mean equal keys. The wrapped key is not here.",
    ),
];

impl Proof {
    /// Of what a copy showed; `verifier` is what it is judged by. Where nothing was asked there is only something to say.
    pub(super) fn of(shown: &Shown, verifier: Option<&Verifier>) -> (Option<Proof>, Option<String>) {
        let proof = Proof {
            time: time(shown.at),
            kind: "",
            mechanism: shown.evidence.exchange.mechanism().map(mechanism),
            by_session_copy: shown.evidence.by_copy,
            challenge: None,
            answer: None,
            expected: None,
            digest: None,
            signature: None,
            block: None,
            throw_away_key: None,
            verify: None,
        };
        let text = |bytes: &[u8]| Some(hex(bytes));
        // Some curves have no name that other software reads.
        let info = verifier.and_then(Verifier::public_key_info);
        let with_key = |command: String| info.is_some().then_some(command);
        let proof = match &shown.evidence.exchange {
            Exchange::Read { there: Verifier::Content { digest } } => Proof {
                kind: "content",
                answer: text(digest),
                expected: match verifier {
                    Some(Verifier::Content { digest }) => text(digest),
                    _ => None,
                },
                verify: Some(EQUAL.into()),
                ..proof
            },
            Exchange::Read { there } => Proof {
                kind: "public-key",
                answer: there.public_key_info().as_deref().and_then(text),
                expected: info.as_deref().and_then(text),
                verify: with_key("openssl pkey -pubin -in key.pem -outform DER | cmp - answer".into()),
                ..proof
            },
            Exchange::Signature { message, digested, signature, .. } => Proof {
                kind: "signature",
                challenge: text(message),
                answer: text(signature),
                signature: verifier.and_then(|v| v.portable_signature(signature)).as_deref().and_then(text),
                digest: Some(digest(*digested)),
                verify: with_key(of_signature(*digested)),
                ..proof
            },
            Exchange::Opening { unwrapped, block, sealed, expected, opened, .. } => Proof {
                kind: if *unwrapped { "unwrapping" } else { "decryption" },
                challenge: text(sealed),
                answer: opened.as_deref().and_then(text),
                expected: text(expected),
                block: text(block),
                verify: with_key(format!(
                    "{EQUAL} && tail -c {} block | cmp - answer && openssl pkeyutl -encrypt -pubin -inkey key.pem -pkeyopt rsa_padding_mode:none -in block | cmp - challenge",
                    expected.len()
                )),
                ..proof
            },
            Exchange::Agreement { peer, throw_away, expected, answer, .. } => Proof {
                kind: "key-agreement",
                challenge: text(peer),
                answer: text(answer),
                expected: text(expected),
                throw_away_key: text(throw_away),
                verify: with_key(
                    "openssl pkeyutl -derive -inkey throw_away_key -keyform DER -peerkey key.pem | openssl dgst -sha256 -binary | cmp - answer"
                        .into(),
                ),
                ..proof
            },
            Exchange::Answer { method, question, expected, answer } => Proof {
                kind: of_method(*method),
                challenge: text(question),
                answer: text(answer),
                expected: text(expected),
                verify: Some(EQUAL.into()),
                ..proof
            },
            Exchange::AgreedAgain { peer, expected, answer, .. } => Proof {
                kind: "fixed-agreement",
                challenge: text(peer),
                answer: text(answer),
                expected: text(expected),
                verify: Some(EQUAL.into()),
                ..proof
            },
            Exchange::Wrapped { expected, answer, .. } => Proof {
                kind: "rewrapping",
                answer: text(answer),
                expected: text(expected),
                verify: Some(EQUAL.into()),
                ..proof
            },
            Exchange::Length { expected, there } => {
                return (None, Some(format!("it has {there} bytes and should have {expected}")));
            }
            Exchange::NoValue => return (None, Some("it has no value".into())),
        };
        (Some(proof), None)
    }
}

/// Where the answer itself is known beforehand.
const EQUAL: &str = "cmp answer expected";

fn digest(digested: Digested) -> &'static str {
    match digested {
        Digested::Whole => "none",
        Digested::Sha224 => "sha224",
        Digested::Sha256 => "sha256",
        Digested::Sha384 => "sha384",
        Digested::Sha512 => "sha512",
        Digested::Sha256Begin => "sha256-first-20-bytes",
    }
}

fn of_signature(digested: Digested) -> String {
    match digested {
        Digested::Whole => "openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in challenge -sigfile signature".into(),
        Digested::Sha256Begin => "openssl dgst -sha256 -binary challenge | head -c 20 > digest && openssl pkeyutl -verify -pubin -inkey key.pem -in digest -sigfile signature".into(),
        Digested::Sha224 | Digested::Sha256 | Digested::Sha384 | Digested::Sha512 => {
            format!("openssl dgst -{} -verify key.pem -signature signature challenge", digest(digested))
        }
    }
}

fn of_method(method: SecretMethod) -> &'static str {
    match method {
        SecretMethod::Mac(_) => "mac",
        SecretMethod::Encrypt(_) => "encryption",
        SecretMethod::Decrypt(_) => "block-decryption",
        SecretMethod::Wrap(_) => "key-wrap",
        SecretMethod::Sign(_) => "fixed-signature",
        SecretMethod::Digest(_) => "key-digest",
        SecretMethod::Derive(_) => "derivation",
    }
}

fn mechanism(number: Ulong) -> String {
    mechanism_name(number).map_or_else(|| format!("0x{number:x}"), str::to_owned)
}

/// Wall-clock time since the Unix epoch, as RFC 3339 writes it.
pub(super) fn time(at: Duration) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + at).to_string()
}
