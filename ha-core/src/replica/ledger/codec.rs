//! Templates as bytes, for the ledger's columns: type, kind and length before each value, all big-endian.

use ha_token::{Attribute, Template, Ulong, Value};

const BYTES: u8 = 0;
const TEMPLATE: u8 = 1;
/// Nested templates have one level in the standard.
const DEPTH: usize = 4;

pub(super) fn encode(template: &Template) -> Vec<u8> {
    let mut out = Vec::new();
    for attribute in template {
        let (tag, bytes) = match &attribute.value {
            Value::Bytes(b) => (BYTES, b.to_vec()),
            Value::Template(t) => (TEMPLATE, encode(t)),
        };
        out.extend_from_slice(&(attribute.kind as u64).to_be_bytes());
        out.push(tag);
        out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        out.extend_from_slice(&bytes);
    }
    out
}

/// `None` for what was not encoded here.
pub(super) fn decode(bytes: &[u8]) -> Option<Template> {
    decode_at(bytes, 0)
}

fn decode_at(mut rest: &[u8], depth: usize) -> Option<Template> {
    if depth > DEPTH {
        return None;
    }
    let mut template = Template::new();
    while !rest.is_empty() {
        let (kind, after) = rest.split_first_chunk::<8>()?;
        let (tag, after) = after.split_first()?;
        let (len, after) = after.split_first_chunk::<4>()?;
        let (value, after) = after.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        let kind = u64::from_be_bytes(*kind) as Ulong;
        template.push(match *tag {
            BYTES => Attribute::bytes(kind, value),
            TEMPLATE => Attribute::template(kind, decode_at(value, depth + 1)?),
            _ => return None,
        });
        rest = after;
    }
    Some(template)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn templates() -> impl Strategy<Value = Template> {
        let leaf = (any::<u32>(), proptest::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(k, v)| Attribute::bytes(k.into(), v));
        let nested = (any::<u32>(), proptest::collection::vec(leaf.clone(), 0..4))
            .prop_map(|(k, t)| Attribute::template(k.into(), t));
        proptest::collection::vec(prop_oneof![leaf, nested], 0..8)
    }

    proptest! {
        #[test]
        fn round_trip(template in templates()) {
            prop_assert_eq!(decode(&encode(&template)), Some(template));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(decode(&bytes));
        }
    }
}
