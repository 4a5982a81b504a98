//! What was on a token before it became a member's: nobody of the group may touch it.

use ha_token::{Attribute, Mechanism, Result, UserType, ck};
use serde::{Deserialize, Serialize};

use crate::history::PIN;
use crate::plan::Kind;
use crate::token::{Device, Inspected};

/// What the labels of these objects begin with.
const LABEL: &[u8] = b"from-before-";

/// No process of a history has this number.
const NOBODY: u32 = u32::MAX;

/// A secret key that a member's token has before the group knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Before {
    /// The member.
    pub member: usize,
    /// What it is: `Mac`, or `Aes`.
    pub kind: Kind,
}

impl Before {
    /// Puts it on the member's token.
    ///
    /// # Errors
    /// The token's answer.
    pub(crate) fn put(self, device: &Device, number: usize) -> Result<()> {
        let connector = device.connector_of(NOBODY);
        let token = connector.connect().expect("a token that nobody has used can be connected");
        let session = token.open_session(true)?;
        token.login(session, UserType::User, Some(PIN.as_bytes()))?;
        let (mechanism, kind, flag) = match self.kind {
            Kind::Aes => (ck::CKM_AES_KEY_GEN, ck::CKK_AES, ck::CKA_ENCRYPT),
            _ => (ck::CKM_GENERIC_SECRET_KEY_GEN, ck::CKK_GENERIC_SECRET, ck::CKA_SIGN),
        };
        let label = [LABEL, number.to_string().as_bytes()].concat();
        let template = vec![
            Attribute::ulong(ck::CKA_KEY_TYPE, kind),
            Attribute::ulong(ck::CKA_VALUE_LEN, 32),
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bool(flag, true),
            Attribute::bytes(ck::CKA_LABEL, label),
        ];
        token.generate_key(session, &mut Mechanism::plain(mechanism), &template)?;
        token.logout(session)?;
        token.close_session(session)
    }
}

/// Whether an object was there before, by its label.
pub(crate) fn is_from_before(label: &[u8]) -> bool {
    label.starts_with(LABEL)
}

/// How many of a token's objects were there before.
pub(crate) fn count(objects: &[Inspected]) -> usize {
    objects.iter().filter(|object| is_from_before(&object.label)).count()
}
