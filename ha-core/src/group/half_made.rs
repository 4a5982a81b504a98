//! What somebody began to make and died over: how it is told from an object, and that it goes.
//!
//! SoftHSM writes an object in several steps. One that was ended between them leaves what every search finds: without a
//! class, or with its names and no value.

use std::time::Duration;

use ha_token::{AttributeType, ObjectHandle, Result, Rv, Ulong, ck};

use super::copies::row_traits;
use super::matching::{NO_TYPE, called};
use super::{Group, Lease, Traits};
use crate::replica::ledger::ObjectRow;
use crate::replica::proof::Outcome;
use crate::replica::{On, find_all, is_secret, proof};

/// No object is half made for so long where somebody is making it.
const HALF_MADE: Duration = Duration::from_millis(500);
/// How many handles are fetched at once.
const BATCH: usize = 64;

/// What identifies an object, and tells whether it is whole.
const TRAITS: [AttributeType; 11] = [
    ck::CKA_CLASS,
    ck::CKA_TOKEN,
    ck::CKA_PRIVATE,
    ck::CKA_KEY_TYPE,
    ck::CKA_ID,
    ck::CKA_LABEL,
    ck::CKA_CERTIFICATE_TYPE,
    ck::CKA_APPLICATION,
    ck::CKA_EC_PARAMS,
    ck::CKA_MODULUS,
    ck::CKA_PRIME,
];

/// What every private key of a type has, and can be read: where it is empty the key has no value yet.
fn domain_of(class: Ulong, key_type: Ulong) -> Option<AttributeType> {
    match key_type {
        _ if class != ck::CKO_PRIVATE_KEY => None,
        ck::CKK_RSA => Some(ck::CKA_MODULUS),
        ck::CKK_EC | ck::CKK_EC_EDWARDS | ck::CKK_EC_MONTGOMERY => Some(ck::CKA_EC_PARAMS),
        ck::CKK_DSA | ck::CKK_DH | ck::CKK_X9_42_DH => Some(ck::CKA_PRIME),
        _ => None,
    }
}

impl Group {
    /// Reads what identifies an object: one call. With it whether it is a token object and a private one.
    ///
    /// # Errors
    /// The member's answer; `CKR_OBJECT_HANDLE_INVALID` for what is half made.
    pub(crate) fn read_traits(&self, on: On<'_>, handle: ObjectHandle) -> Result<(Traits, bool, bool)> {
        self.read_whole(on, handle)?.ok_or(Rv::OBJECT_HANDLE_INVALID)
    }

    /// As [`read_traits`](Self::read_traits). `None` for what is half made, and is no object: it has no class, or is a private
    /// key without a value, and SoftHSM ends the process that uses one. Who was making it may have died. Of a secret key that
    /// cannot be read ([`has_no_value`](Self::has_no_value)).
    ///
    /// # Errors
    /// The member's answer.
    pub(super) fn read_whole(
        &self,
        on: On<'_>,
        handle: ObjectHandle,
    ) -> Result<Option<(Traits, bool, bool)>> {
        let answers = match on.token.get_attributes(on.session, handle, &TRAITS) {
            // What SoftHSM says of one without a class: of what is only read no value can be wrong.
            Err(Rv::ATTRIBUTE_VALUE_INVALID) => return Ok(None),
            answers => answers?,
        };
        let bytes = |i: usize| answers.get(i).and_then(|a| a.bytes()).unwrap_or(&[]);
        let ulong = |i: usize| answers.get(i).and_then(|a| a.value()).and_then(|v| v.as_ulong());
        let flag = |i: usize| bytes(i).first().is_some_and(|b| *b != 0);
        let class = ulong(0).ok_or(Rv::DEVICE_ERROR)?;
        let key_type = ulong(3).or(ulong(6)).unwrap_or(NO_TYPE);
        let domain = answers.iter().zip(TRAITS).find(|(_, kind)| Some(*kind) == domain_of(class, key_type));
        if domain.is_some_and(|(answer, _)| answer.bytes().is_some_and(<[u8]>::is_empty)) {
            return Ok(None);
        }
        let id = if class == ck::CKO_DATA { bytes(7) } else { bytes(4) };
        Ok(Some((Traits { class, key_type, id: id.into(), label: bytes(5).into() }, flag(1), flag(2))))
    }

    /// Whether what has these traits is a secret key without a value, which only its answers tell.
    pub(super) fn has_no_value(&self, lease: &Lease, handle: ObjectHandle, traits: &Traits) -> bool {
        traits.class == ck::CKO_SECRET_KEY
            && self.challenge(lease, traits.class, |c| proof::has_no_value(c, handle)) == Ok(true)
    }

    /// Destroys what is left half made under the names of an object that is to be destroyed, by a process that died: keys that
    /// have no value, of which no proof tells whose they are, but nothing is lost with them; and copies that were not yet told
    /// that they are the token's.
    ///
    /// # Errors
    /// The member's answer.
    pub(super) fn discard_half_made(&self, lease: &Lease, row: &ObjectRow) -> Result<()> {
        let traits = row_traits(row);
        // What has no name might be anybody's.
        if traits.id.is_empty() && traits.label.is_empty() {
            return Ok(());
        }
        let half_made = |handle: &ObjectHandle| match self.read_whole(lease.on(), *handle) {
            Ok(None) => is_secret(traits.class),
            Ok(Some((there, true, _))) => there == traits && self.has_no_value(lease, *handle, &there),
            Ok(Some((there, false, _))) => there == traits && self.is_begun_copy(lease, *handle, row),
            Err(_) => false,
        };
        let mut called_so = called(&traits);
        called_so.retain(|a| a.kind != ck::CKA_TOKEN);
        let mut found = find_all(lease.on(), &called_so, BATCH)?;
        found.retain(half_made);
        if found.is_empty() {
            return Ok(());
        }
        // Another process or thread may be in the middle of it.
        self.world.event().wait(Some(HALF_MADE));
        let still_there = find_all(lease.on(), &called_so, BATCH)?;
        for handle in found.into_iter().filter(|h| still_there.contains(h) && half_made(h)) {
            tracing::warn!(group = %self.config.label, member = lease.member.name(), label = %String::from_utf8_lossy(&traits.label),
                "an object was left half made by a process that died: it is destroyed");
            lease.token().destroy_object(lease.session, handle)?;
        }
        Ok(())
    }

    /// Whether what is called as an object and is not the token's is a copy of it that SoftHSM keeps all the same, and no
    /// application's session object: the copy is made of one, and told only then that it is the token's.
    fn is_begun_copy(&self, lease: &Lease, handle: ObjectHandle, row: &ObjectRow) -> bool {
        // In an instance that is shared it may be the host's.
        let is_ours_or_left =
            lease.member.connector().reinitialises() && lease.link.virtual_of(handle).is_none();
        let proves = |verifier| self.prove(lease, handle, row.class, &verifier) == Ok(Outcome::Same);
        is_ours_or_left && row.verifier().is_some_and(proves)
    }
}
