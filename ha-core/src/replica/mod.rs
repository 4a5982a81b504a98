//! Copying keys, proving copies, the ledger.
//!
//! What works on tokens here are straight-line procedures over one or two open, logged-in sessions: which members,
//! what after a failure, and what the ledger is told, the group decides.

pub mod group_key;
pub mod ledger;
pub mod life;
pub mod marker;
pub mod proof;
pub mod records;
pub mod verifier;
pub mod wrapping;

use std::collections::HashSet;

use ha_token::{
    Attribute, AttributeType, Fetched, MechanismInfo, ObjectHandle, Result, Rv, SessionHandle, Template,
    Token, Ulong, ck,
};

/// What a public key's value stands in.
pub const PUBLIC_VALUE: [AttributeType; 8] = [
    ck::CKA_MODULUS,
    ck::CKA_PUBLIC_EXPONENT,
    ck::CKA_EC_PARAMS,
    ck::CKA_EC_POINT,
    ck::CKA_PRIME,
    ck::CKA_SUBPRIME,
    ck::CKA_BASE,
    ck::CKA_VALUE,
];

/// A backing session on one member.
#[derive(Clone, Copy)]
pub struct On<'a> {
    /// The member's token.
    pub token: &'a dyn Token,
    /// The session, logged in if the work needs it.
    pub session: SessionHandle,
    /// The token's mechanisms, as it told them when it was connected, sorted by type.
    pub mechanisms: &'a [(Ulong, MechanismInfo)],
}

/// A token's mechanisms, sorted by type: what [`On::mechanisms`] wants.
///
/// # Errors
/// The member's answer.
pub fn mechanisms_of(token: &dyn Token) -> Result<Vec<(Ulong, MechanismInfo)>> {
    let kinds = token.mechanism_list()?.into_iter();
    let mut all = kinds.map(|kind| Ok((kind, token.mechanism_info(kind)?))).collect::<Result<Vec<_>>>()?;
    all.sort_by_key(|m| m.0);
    Ok(all)
}

/// Whether a token with these mechanisms, sorted by type, has one for the operations that `flags` name (0: for any).
pub fn supports(mechanisms: &[(Ulong, MechanismInfo)], mechanism: Ulong, flags: Ulong) -> bool {
    match mechanisms.binary_search_by_key(&mechanism, |m| m.0) {
        Ok(i) => mechanisms.get(i).is_some_and(|m| m.1.flags & flags == flags),
        Err(_) => false,
    }
}

impl On<'_> {
    /// Whether the token has the mechanism, for the operations that `flags` name (0: for any).
    pub fn supports(&self, mechanism: Ulong, flags: Ulong) -> bool {
        supports(self.mechanisms, mechanism, flags)
    }

    /// Attributes as a template: those that can be read.
    ///
    /// # Errors
    /// The member's answer.
    pub fn read(&self, object: ObjectHandle, types: &[AttributeType]) -> Result<Template> {
        let fetched = self.token.get_attributes(self.session, object, types)?;
        Ok(types
            .iter()
            .zip(fetched)
            .filter_map(|(kind, f)| match f {
                Fetched::Value(value) => Some(Attribute { kind: *kind, value }),
                Fetched::Sensitive | Fetched::Invalid => None,
            })
            .collect())
    }

    /// Destroys an object that is not wanted any more; failing leaves a session object that goes with its session.
    pub fn discard(&self, object: ObjectHandle) {
        if let Err(rv) = self.token.destroy_object(self.session, object) {
            tracing::debug!(%rv, "a throw-away object could not be destroyed");
        }
    }
}

/// As [`find_all`], and none that is half made: a thread of ours may be making one that was found. What is `known` is whole
/// when it is found, or by then.
///
/// # Errors
/// The member's answer.
pub fn find_whole(
    on: On<'_>,
    template: &Template,
    batch: usize,
    known: &dyn Fn(ObjectHandle) -> bool,
) -> Result<Vec<ObjectHandle>> {
    let before = on.token.whole_objects();
    let mut found = find_all(on, template, batch)?;
    if found.is_empty() || (before.is_some() && on.token.whole_objects() == before) {
        return Ok(found);
    }
    if !found.iter().all(|handle| known(*handle)) {
        on.token.await_whole_objects();
    }
    // It may be another one than it seemed. What is half made only now was not found before.
    let whole: HashSet<_> = find_all(on, template, batch)?.into_iter().collect();
    found.retain(|handle| whole.contains(handle));
    Ok(found)
}

/// Every handle that matches, fetched `batch` at a time. The search is ended again, also after an error.
///
/// # Errors
/// The member's answer.
pub fn find_all(on: On<'_>, template: &Template, batch: usize) -> Result<Vec<ObjectHandle>> {
    begin_search(on, template)?;
    let mut found = Vec::new();
    let answer = loop {
        match on.token.find_objects(on.session, batch) {
            Ok(some) if some.is_empty() => break Ok(()),
            Ok(some) => found.extend(some),
            Err(rv) => break Err(rv),
        }
    };
    let ended = on.token.find_objects_final(on.session);
    answer.and(ended)?;
    Ok(found)
}

/// How often a search is begun that fails for no reason of its own. SoftHSM wants one that failed ended, too.
const BEGINNINGS: usize = 5;

fn begin_search(on: On<'_>, template: &Template) -> Result<()> {
    let mut answer = Err(Rv::GENERAL_ERROR);
    for _ in 0..BEGINNINGS {
        answer = on.token.find_objects_init(on.session, template);
        match answer {
            // One that could not be ended is still there: nobody else searches in a session of ours.
            Err(Rv::OPERATION_ACTIVE) => on.token.find_objects_final(on.session)?,
            // SoftHSM takes an object that somebody is making for a private one until it says that it is not, and cannot
            // decrypt the label that it has by then.
            Err(Rv::GENERAL_ERROR) => {}
            answer => return answer,
        }
    }
    answer
}

/// Makes a data object, and reads it again: a token that is full may have made a part of it, and say that all is well.
///
/// # Errors
/// The member's answer; `CKR_DEVICE_MEMORY` for what is not as it was given, which is destroyed again.
fn create_whole(on: On<'_>, template: &Template, value: &[u8]) -> Result<()> {
    let made = on.token.create_object(on.session, template)?;
    let read = on.read(made, &[ck::CKA_VALUE])?;
    if read.first().and_then(|there| there.value.as_bytes()) == Some(value) {
        return Ok(());
    }
    on.discard(made);
    Err(Rv::DEVICE_MEMORY)
}

/// Whether an object of these names is one of the group's own, which no application sees. `id`: `CKA_ID`, or `CKA_APPLICATION`
/// of a data object.
pub fn is_ours(label: &[u8], id: &[u8]) -> bool {
    group_key::is_ours(label, id) || marker::is_ours(label, id)
}

/// Whether objects of this class hold a value that must not be seen.
pub fn is_secret(class: Ulong) -> bool {
    matches!(class, ck::CKO_PRIVATE_KEY | ck::CKO_SECRET_KEY)
}
