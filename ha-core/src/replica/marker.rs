//! The marker: one small private data object on each member's token, that says whose it is and how far destruction had come
//! there, so that a token which was set back, or belongs to another group, is known for it.
//!
//! It is text, a word and its value on each line, for who looks at the bare token; words that are not known are passed over.

use std::fmt::Write as _;

use ha_token::{Attribute, ObjectHandle, Result, Rv, Template, TemplateExt, ck};

use super::ledger::Identity;
use super::{On, create_whole, find_all, records};

/// `CKA_APPLICATION` of what is ours.
pub(super) const APPLICATION: &[u8] = b"pkcs11-ha";
/// `CKA_LABEL` of the marker.
const LABEL: &[u8] = b"pkcs11-ha marker";
/// The first line, with the version of what follows.
const HEAD: &str = "pkcs11-ha marker 1";

/// What a marker says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Marker {
    /// The group, its ledger and the virtual token's serial number.
    pub identity: Identity,
    /// Which batch of destructions had been made on this token. The higher of two is the later.
    pub epoch: u64,
    /// The group's label when it was written.
    pub label: String,
    /// Its members then.
    pub members: Vec<String>,
    /// By how many bits the [`records`] beside it are shared out; `None` where there are none.
    pub record_bits: Option<u8>,
}

/// The markers that a token holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Markers {
    /// What the latest one says that can be read.
    pub latest: Option<Marker>,
    /// All of them: more than one where somebody died while he wrote it.
    pub handles: Vec<ObjectHandle>,
}

/// Whether a data object of these names is the marker, or one of the [`records`], which no application sees.
pub fn is_ours(label: &[u8], application: &[u8]) -> bool {
    application == APPLICATION && (label == LABEL || records::is_ours(label))
}

fn called() -> Template {
    vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bytes(ck::CKA_APPLICATION, APPLICATION),
        Attribute::bytes(ck::CKA_LABEL, LABEL),
    ]
}

/// The markers on a token. The user is logged in.
///
/// # Errors
/// The member's answer.
pub fn find(on: On<'_>) -> Result<Markers> {
    let mut markers = Markers::default();
    for handle in find_all(on, &called(), 8)? {
        let read = match on.read(handle, &[ck::CKA_VALUE]) {
            // Another process has just written another one.
            Err(Rv::OBJECT_HANDLE_INVALID) => continue,
            read => read?,
        };
        let said = read.get_bytes(ck::CKA_VALUE).and_then(Marker::from_bytes);
        if said.as_ref().is_some_and(|said| markers.latest.as_ref().is_none_or(|l| l.epoch < said.epoch)) {
            markers.latest = said;
        }
        markers.handles.push(handle);
    }
    Ok(markers)
}

/// Writes a marker, and then destroys those that were there.
///
/// # Errors
/// The member's answer. One of them is there all the same.
pub fn write(on: On<'_>, marker: &Marker, before: &Markers) -> Result<()> {
    let value = marker.to_bytes();
    let mut template = called();
    template.extend([
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bool(ck::CKA_PRIVATE, true),
        Attribute::bytes(ck::CKA_VALUE, &*value),
    ]);
    create_whole(on, &template, &value)?;
    before.handles.iter().try_for_each(|handle| on.token.destroy_object(on.session, *handle))
}

/// Destroys a token's markers, and the records with them.
///
/// # Errors
/// The member's answer: some may be left.
pub fn clear(on: On<'_>) -> Result<()> {
    records::all(on)?.into_iter().try_for_each(|handle| on.token.destroy_object(on.session, handle))
}

impl Marker {
    fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!(
            "{HEAD}\ngroup {}\nledger {}\nserial {}\nepoch {}\nlabel {}\n",
            hex(&self.identity.group),
            hex(&self.identity.ledger),
            self.identity.serial,
            self.epoch,
            self.label
        );
        for member in &self.members {
            _ = writeln!(text, "member {member}");
        }
        if let Some(bits) = self.record_bits {
            _ = writeln!(text, "records {bits}");
        }
        text.into_bytes()
    }

    /// `None` for what is no marker, or one that says not enough.
    fn from_bytes(bytes: &[u8]) -> Option<Marker> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.lines();
        lines.next().filter(|head| *head == HEAD)?;
        let (mut group, mut ledger, mut serial, mut epoch) = (None, None, None, None);
        let (mut label, mut members, mut record_bits) = (String::new(), Vec::new(), None);
        for (word, value) in lines.filter_map(|line| line.split_once(' ')) {
            match word {
                "group" => group = from_hex(value),
                "ledger" => ledger = from_hex(value),
                "serial" => serial = Some(value.to_owned()),
                "epoch" => epoch = value.parse().ok(),
                "label" => value.clone_into(&mut label),
                "member" => members.push(value.to_owned()),
                "records" => record_bits = value.parse().ok(),
                _ => {}
            }
        }
        let identity = Identity { group: group?, ledger: ledger?, serial: serial? };
        Some(Marker { identity, epoch: epoch?, label, members, record_bits })
    }
}

fn hex(bytes: &[u8; 16]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            (group, ledger) in any::<([u8; 16], [u8; 16])>(),
            epoch in any::<u64>(),
            label in "[^\\r\\n]{0,12}",
            members in proptest::collection::vec("[^\\r\\n]{1,8}", 0..4),
            record_bits in any::<Option<u8>>(),
        ) {
            let identity = Identity { group, ledger, serial: "00ff".into() };
            let marker = Marker { identity, epoch, label, members, record_bits };
            prop_assert_eq!(Marker::from_bytes(&marker.to_bytes()), Some(marker));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(Marker::from_bytes(&bytes));
        }

        #[test]
        fn no_text_panics(text in "(pkcs11-ha marker 1\n)?((group|ledger|epoch|label|member|x) ?[0-9a-zé]{0,34}\n){0,6}") {
            drop(Marker::from_bytes(text.as_bytes()));
        }
    }

    /// What is on tokens is read by every later version.
    #[test]
    fn the_format_stays() {
        let text = "pkcs11-ha marker 1\ngroup 000102030405060708090a0b0c0d0e0f\nledger 0f0e0d0c0b0a09080706050403020100\n\
                    serial 0123456789abcdef\nepoch 7\nlabel ha1\nmember a\nmember b\nrecords 4\n";
        let identity = Identity {
            group: std::array::from_fn(|i| i as u8),
            ledger: std::array::from_fn(|i| 15 - i as u8),
            serial: "0123456789abcdef".into(),
        };
        let members = vec!["a".into(), "b".into()];
        let marker = Marker { identity, epoch: 7, label: "ha1".into(), members, record_bits: Some(4) };
        assert_eq!(marker.to_bytes(), text.as_bytes());
        let newer = format!("{text}another word\n");
        assert_eq!(Marker::from_bytes(newer.as_bytes()), Some(marker));
    }
}
