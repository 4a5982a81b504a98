//! What a host cannot afford to lose, on each member's token: what the ledger knows of each object, in private data objects
//! beside the [marker](super::marker), from which a ledger that was lost is made again.
//!
//! Objects share a few of them, by the first bits of their identities: as many bits as keep each small. One that is written
//! anew is there before the one that it replaces goes, and says in which epoch it was written.

use ha_token::{Attribute, ObjectHandle, Result, Rv, Template, TemplateExt, ck};
use serde::{Deserialize, Serialize};

use super::ledger::{ObjectId, Record};
use super::marker::APPLICATION;
use super::{On, create_whole, find_all};

/// `CKA_LABEL` of what is ours, up to the bucket's name.
const LABEL: &str = "pkcs11-ha record ";
/// The format of what is written.
const VERSION: u8 = 1;
/// How many objects are to share a data object, on the average.
const SHARED_BY: usize = 16;
/// How many more bits there are at once: each time all is written anew. And how many there are at the most.
const STEP: u8 = 1;
const MOST_BITS: u8 = 12;

/// The objects whose identities begin with the same bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Bucket {
    bits: u8,
    prefix: u16,
}

impl Bucket {
    /// An object's.
    pub fn of(id: ObjectId, bits: u8) -> Bucket {
        let [first, second, ..] = id.0;
        let prefix = u16::from_be_bytes([first, second]);
        Bucket { bits, prefix: prefix.checked_shr(u32::from(16 - bits.min(16))).unwrap_or(0) }
    }

    /// All of them.
    pub fn all(bits: u8) -> impl Iterator<Item = Bucket> {
        (0..1u32 << bits.min(MOST_BITS)).map(move |prefix| Bucket { bits, prefix: prefix as u16 })
    }

    /// The first identity and the last one that belong to it.
    pub fn range(self) -> ([u8; 16], [u8; 16]) {
        let unused = 16 - u32::from(self.bits.min(16));
        let first = (u32::from(self.prefix) << unused) as u16;
        let last = first | (((1u32 << unused) - 1) as u16);
        let filled = |head: u16, rest: u8| {
            let mut id = [rest; 16];
            let [a, b] = head.to_be_bytes();
            (id[0], id[1]) = (a, b);
            id
        };
        (filled(first, 0), filled(last, 0xff))
    }

    fn name(self) -> String {
        format!("{LABEL}{}/{:03x}", self.bits, self.prefix)
    }

    fn from_name(label: &[u8]) -> Option<Bucket> {
        let name = std::str::from_utf8(label).ok()?.strip_prefix(LABEL)?;
        let (bits, prefix) = name.split_once('/')?;
        Some(Bucket { bits: bits.parse().ok()?, prefix: u16::from_str_radix(prefix, 16).ok()? })
    }
}

/// How many bits so many objects want, where there were `before`.
pub fn bits_for(objects: usize, before: u8) -> u8 {
    let mut bits = before.min(MOST_BITS);
    while bits < MOST_BITS && objects > SHARED_BY << bits {
        bits = (bits + STEP).min(MOST_BITS);
    }
    bits
}

/// Whether a data object of ours with this label is one of them.
pub(super) fn is_ours(label: &[u8]) -> bool {
    label.starts_with(LABEL.as_bytes())
}

#[derive(Serialize, Deserialize)]
struct Chunk {
    epoch: u64,
    records: Vec<Record>,
}

fn encode(epoch: u64, records: Vec<Record>) -> Result<Vec<u8>> {
    // What is in memory is written into memory: nothing of that can fail.
    let body = postcard::to_stdvec(&Chunk { epoch, records }).map_err(|_| Rv::GENERAL_ERROR)?;
    Ok([vec![VERSION], body].concat())
}

fn decode(bytes: &[u8]) -> Option<Chunk> {
    let (version, body) = bytes.split_first()?;
    if *version != VERSION { None } else { postcard::from_bytes(body).ok() }
}

fn called(name: Option<&str>) -> Template {
    let mut template = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bytes(ck::CKA_APPLICATION, APPLICATION),
    ];
    template.extend(name.map(|name| Attribute::bytes(ck::CKA_LABEL, name)));
    template
}

/// Every data object of ours on a token, the marker too.
///
/// # Errors
/// The member's answer.
pub fn all(on: On<'_>) -> Result<Vec<ObjectHandle>> {
    find_all(on, &called(None), 64)
}

/// Writes what is known of a bucket's objects in place of what was there. The user is logged in.
///
/// # Errors
/// The member's answer. What was there before, or what is written now, is there all the same.
pub fn write(on: On<'_>, bucket: Bucket, epoch: u64, records: Vec<Record>) -> Result<()> {
    let template = called(Some(&bucket.name()));
    let before = find_all(on, &template, 8)?;
    if !records.is_empty() {
        let value = encode(epoch, records)?;
        let mut template = template;
        template.extend([
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bool(ck::CKA_PRIVATE, true),
            Attribute::bytes(ck::CKA_VALUE, &*value),
        ]);
        create_whole(on, &template, &value)?;
    }
    before.into_iter().try_for_each(|handle| on.token.destroy_object(on.session, handle))
}

/// Destroys what was written for another number of bits.
///
/// # Errors
/// The member's answer.
pub fn clear_others(on: On<'_>, bits: u8) -> Result<()> {
    for handle in all(on)? {
        let read = on.read(handle, &[ck::CKA_LABEL])?;
        let bucket = read.get_bytes(ck::CKA_LABEL).and_then(Bucket::from_name);
        if bucket.is_some_and(|bucket| bucket.bits != bits) {
            on.token.destroy_object(on.session, handle)?;
        }
    }
    Ok(())
}

/// What a token says of the group's objects.
#[derive(Default)]
pub struct Records {
    /// Each object once.
    pub records: Vec<Record>,
    /// How many of the data objects cannot be read.
    pub damaged: usize,
}

/// Reads what was written for so many bits: the latest of each bucket.
///
/// # Errors
/// The member's answer.
pub fn read(on: On<'_>, bits: u8) -> Result<Records> {
    let mut latest: std::collections::BTreeMap<Bucket, Chunk> = std::collections::BTreeMap::new();
    let mut damaged = 0;
    for handle in all(on)? {
        let read = on.read(handle, &[ck::CKA_LABEL, ck::CKA_VALUE])?;
        let Some(bucket) = read.get_bytes(ck::CKA_LABEL).and_then(Bucket::from_name) else { continue };
        if bucket.bits != bits {
            continue;
        }
        match read.get_bytes(ck::CKA_VALUE).and_then(decode) {
            Some(chunk) if latest.get(&bucket).is_none_or(|there| there.epoch < chunk.epoch) => {
                latest.insert(bucket, chunk);
            }
            Some(_) => {}
            None => damaged += 1,
        }
    }
    Ok(Records { records: latest.into_values().flat_map(|chunk| chunk.records).collect(), damaged })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_object_has_one_bucket(id in any::<[u8; 16]>(), bits in 0u8..=MOST_BITS) {
            let bucket = Bucket::of(ObjectId(id), bits);
            let (first, last) = bucket.range();
            prop_assert!(first <= id && id <= last);
            prop_assert_eq!(Bucket::all(bits).filter(|b| b.range().0 <= id && id <= b.range().1).count(), 1);
            prop_assert_eq!(Bucket::from_name(bucket.name().as_bytes()), Some(bucket));
            prop_assert!(is_ours(bucket.name().as_bytes()));
        }

        #[test]
        fn there_are_never_fewer_bits_and_never_too_many_objects(objects in 0usize..40_000, before in 0u8..=MOST_BITS) {
            let bits = bits_for(objects, before);
            prop_assert!(bits >= before && bits <= MOST_BITS);
            prop_assert!(bits == MOST_BITS || objects <= SHARED_BY << bits);
            prop_assert_eq!(bits_for(objects, bits), bits);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(decode(&bytes));
            _ = Bucket::from_name(&bytes);
        }
    }

    /// What is on tokens is read by every later version.
    #[test]
    fn the_format_stays() {
        let record = Record {
            id: [1; 16],
            destroyed: false,
            class: 3,
            key_type: 3,
            ckaid: vec![9],
            label: b"k".to_vec(),
            private: true,
            verifier: Some(vec![7, 7]),
            template: vec![],
            blob: Some((0x2109, true, vec![5])),
            copies: vec!["a".into()],
        };
        let bytes = encode(300, vec![record.clone()]).unwrap();
        let mut golden = vec![1, 0xac, 2, 1];
        golden.extend([1; 16]);
        golden.extend([0, 3, 3, 1, 9, 1, b'k', 1, 1, 2, 7, 7, 0, 1, 0x89, 0x42, 1, 1, 5, 1, 1, b'a']);
        assert_eq!(bytes, golden);
        let chunk = decode(&golden).unwrap();
        assert_eq!((chunk.epoch, chunk.records), (300, vec![record]));
        golden[0] = 2;
        assert!(decode(&golden).is_none(), "of a newer version");
    }
}
