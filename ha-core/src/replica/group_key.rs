//! The two group keys on every member, under which keys travel, and how a new member gets them.
//!
//! Both are AES-256 token keys that can do nothing but wrap and unwrap. What is unwrapped under the second can never
//! leave a token: its unwrap template says so, whoever holds the PIN.

use ha_token::{
    Attribute, FieldValue, Mechanism, ObjectHandle, Output, Params, Result, Rv, StructParams, Template,
    TemplateExt, Ulong, UserType, ck,
};

use super::{On, find_all, find_whole, wrapping};

/// `CKA_LABEL` of the group keys and of what is made to move them.
const LABEL: &[u8] = b"pkcs11-ha group key";
const ENROLMENT_LABEL: &[u8] = b"pkcs11-ha enrolment key";

/// What a group key carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Keys that may be extracted.
    Extractable,
    /// Keys that may not.
    NonExtractable,
}

impl Purpose {
    const ALL: [Purpose; 2] = [Purpose::Extractable, Purpose::NonExtractable];

    fn code(self) -> u8 {
        match self {
            Purpose::Extractable => b'x',
            Purpose::NonExtractable => b'n',
        }
    }
}

/// The group keys' handles in one connection of a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupKeys {
    /// For keys that may be extracted.
    pub extractable: ObjectHandle,
    /// For keys that may not.
    pub non_extractable: ObjectHandle,
    /// Whether only a key that the security officer trusts can carry them away.
    pub enrolled: bool,
}

impl GroupKeys {
    /// The key for a purpose.
    pub fn for_key(&self, extractable: bool) -> ObjectHandle {
        if extractable { self.extractable } else { self.non_extractable }
    }
}

/// Whether an object is one of ours, which no application sees: by its label and, for the group keys, by an identity that
/// nobody gives by chance.
pub fn is_ours(label: &[u8], id: &[u8]) -> bool {
    (label == LABEL && id.len() == size_of::<[u8; 16]>() + 1) || label == ENROLMENT_LABEL
}

fn key_id(group: &[u8; 16], purpose: Purpose) -> Vec<u8> {
    let mut id = group.to_vec();
    id.push(purpose.code());
    id
}

fn template(group: &[u8; 16], purpose: Purpose, enrolled: bool) -> Template {
    let mut t = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_AES),
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bool(ck::CKA_PRIVATE, true),
        Attribute::bool(ck::CKA_SENSITIVE, true),
        Attribute::bool(ck::CKA_EXTRACTABLE, true),
        Attribute::bytes(ck::CKA_LABEL, LABEL),
        Attribute::bytes(ck::CKA_ID, key_id(group, purpose)),
        Attribute::bool(ck::CKA_WRAP, true),
        Attribute::bool(ck::CKA_UNWRAP, true),
        Attribute::bool(ck::CKA_ENCRYPT, false),
        Attribute::bool(ck::CKA_DECRYPT, false),
        Attribute::bool(ck::CKA_SIGN, false),
        Attribute::bool(ck::CKA_VERIFY, false),
        Attribute::bool(ck::CKA_DERIVE, false),
    ];
    if enrolled {
        t.push(Attribute::bool(ck::CKA_WRAP_WITH_TRUSTED, true));
    }
    if purpose == Purpose::NonExtractable {
        let forced =
            vec![Attribute::bool(ck::CKA_SENSITIVE, true), Attribute::bool(ck::CKA_EXTRACTABLE, false)];
        t.push(Attribute::template(ck::CKA_UNWRAP_TEMPLATE, forced));
    }
    // Without these two the user may add CKA_DECRYPT, and read every blob. SoftHSM wants MODIFIABLE last.
    t.push(Attribute::bool(ck::CKA_COPYABLE, false));
    t.push(Attribute::bool(ck::CKA_MODIFIABLE, false));
    t
}

/// The group's keys on a member, if both are there.
///
/// # Errors
/// The member's answer.
pub fn find(on: On<'_>, group: &[u8; 16]) -> Result<Option<GroupKeys>> {
    let mut handles = Vec::new();
    let mut enrolled = true;
    for purpose in Purpose::ALL {
        let found = find_whole(on, &called(group, purpose), 8, &|_| false)?;
        let Some(handle) = found.first().copied() else { return Ok(None) };
        enrolled &=
            on.read(handle, &[ck::CKA_WRAP_WITH_TRUSTED])?.get_bool(ck::CKA_WRAP_WITH_TRUSTED) == Some(true);
        handles.push(handle);
    }
    match handles.as_slice() {
        [extractable, non_extractable] => {
            Ok(Some(GroupKeys { extractable: *extractable, non_extractable: *non_extractable, enrolled }))
        }
        _ => Ok(None),
    }
}

/// Makes the group's keys on its first member. Half-made ones of an earlier try are destroyed first.
///
/// # Errors
/// The member's answer.
pub fn create(on: On<'_>, group: &[u8; 16], enrolled: bool) -> Result<GroupKeys> {
    clear(on, group)?;
    let make = |purpose| {
        strongest(template(group, purpose, enrolled), enrolled, &mut |t| {
            let mut t = t.clone();
            // Ahead of CKA_COPYABLE and CKA_MODIFIABLE, which stay last.
            t.insert(2, Attribute::ulong(ck::CKA_VALUE_LEN, 32));
            on.token.generate_key(on.session, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &t)
        })
    };
    let extractable = make(Purpose::Extractable)?;
    let non_extractable = make(Purpose::NonExtractable)?;
    Ok(GroupKeys { extractable, non_extractable, enrolled })
}

/// Makes a group key with its unwrap template. p11-kit before 0.25 cannot carry one to its server: in a group that
/// enrolled itself, where the PIN opens the keys anyway, it is then made without, and said so. A ceremony does not
/// bend.
fn strongest(
    template: Template,
    enrolled: bool,
    make: &mut dyn FnMut(&Template) -> Result<ObjectHandle>,
) -> Result<ObjectHandle> {
    match make(&template) {
        Err(rv) if !enrolled && template.get(ck::CKA_UNWRAP_TEMPLATE).is_some() => {
            let mut plain = template;
            plain.retain(|a| a.kind != ck::CKA_UNWRAP_TEMPLATE);
            let made = make(&plain)?;
            tracing::warn!(%rv, "a member cannot hold CKA_UNWRAP_TEMPLATE: there, keys that may not be extracted are protected by their own attributes only");
            Ok(made)
        }
        answer => answer,
    }
}

/// Destroys what a member has of group keys that the ledger does not know.
///
/// # Errors
/// The member's answer: some may be left.
pub fn clear(on: On<'_>, group: &[u8; 16]) -> Result<()> {
    for purpose in Purpose::ALL {
        for handle in find_all(on, &called(group, purpose), 8)? {
            on.token.destroy_object(on.session, handle)?;
        }
    }
    Ok(())
}

/// How many objects a member has that are called as the group's keys are.
///
/// # Errors
/// The member's answer.
pub fn count(on: On<'_>, group: &[u8; 16]) -> Result<usize> {
    let of = |purpose| Ok(find_all(on, &called(group, purpose), 8)?.len());
    Purpose::ALL.into_iter().map(of).sum()
}

/// What a group key is found by.
fn called(group: &[u8; 16], purpose: Purpose) -> Template {
    vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attribute::bytes(ck::CKA_ID, key_id(group, purpose)),
    ]
}

/// The RSA pair that a joining member makes to be given the group keys.
pub struct EnrolmentKey {
    public: ObjectHandle,
    private: ObjectHandle,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

impl EnrolmentKey {
    /// SHA-256 of the public key, for pinning.
    pub fn fingerprint(&self) -> [u8; 32] {
        use sha2::{Digest, Sha256};
        Sha256::new().chain_update(&self.modulus).chain_update(&self.exponent).finalize().into()
    }
}

/// Makes the enrolment pair on the joining member: session objects, good for unwrapping only.
///
/// # Errors
/// The member's answer.
pub fn begin_enrolment(to: On<'_>) -> Result<EnrolmentKey> {
    let public = vec![
        Attribute::bool(ck::CKA_TOKEN, false),
        Attribute::ulong(ck::CKA_MODULUS_BITS, 2048),
        Attribute::bytes(ck::CKA_PUBLIC_EXPONENT, [1, 0, 1]),
        Attribute::bytes(ck::CKA_LABEL, ENROLMENT_LABEL),
        Attribute::bool(ck::CKA_WRAP, true),
        Attribute::bool(ck::CKA_ENCRYPT, false),
        Attribute::bool(ck::CKA_VERIFY, false),
    ];
    let private = vec![
        Attribute::bool(ck::CKA_TOKEN, false),
        Attribute::bool(ck::CKA_PRIVATE, true),
        Attribute::bool(ck::CKA_SENSITIVE, true),
        Attribute::bool(ck::CKA_EXTRACTABLE, false),
        Attribute::bytes(ck::CKA_LABEL, ENROLMENT_LABEL),
        Attribute::bool(ck::CKA_UNWRAP, true),
        Attribute::bool(ck::CKA_DECRYPT, false),
        Attribute::bool(ck::CKA_SIGN, false),
    ];
    let (public, private) = to.token.generate_key_pair(
        to.session,
        &mut Mechanism::plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN),
        &public,
        &private,
    )?;
    let read = to.read(public, &[ck::CKA_MODULUS, ck::CKA_PUBLIC_EXPONENT])?;
    let part = |kind| read.get_bytes(kind).map(<[u8]>::to_vec).ok_or(Rv::GENERAL_ERROR);
    Ok(EnrolmentKey {
        public,
        private,
        modulus: part(ck::CKA_MODULUS)?,
        exponent: part(ck::CKA_PUBLIC_EXPONENT)?,
    })
}

fn carrier(key: &EnrolmentKey, token: bool, trusted: bool) -> Template {
    let mut t = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY),
        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_RSA),
        Attribute::bool(ck::CKA_TOKEN, token),
        Attribute::bool(ck::CKA_PRIVATE, false),
        Attribute::bytes(ck::CKA_LABEL, ENROLMENT_LABEL),
        Attribute::bytes(ck::CKA_ID, key.fingerprint()),
        Attribute::bytes(ck::CKA_MODULUS, &*key.modulus),
        Attribute::bytes(ck::CKA_PUBLIC_EXPONENT, &*key.exponent),
        Attribute::bool(ck::CKA_WRAP, true),
        Attribute::bool(ck::CKA_ENCRYPT, false),
        Attribute::bool(ck::CKA_VERIFY, false),
    ];
    if trusted {
        t.push(Attribute::bool(ck::CKA_TRUSTED, true));
    }
    t
}

/// The ceremony's one step that needs the security officer: the joining member's public key becomes a trusted one on a
/// member that has the group keys. Nobody may be logged in to that token.
///
/// # Errors
/// The member's answer; `CKR_PIN_INCORRECT` for a wrong SO PIN.
pub fn trust(token: &dyn ha_token::Token, so_pin: &[u8], key: &EnrolmentKey) -> Result<()> {
    let session = token.open_session(true)?;
    let made = token.login(session, UserType::So, Some(so_pin)).and_then(|()| {
        let made = token.create_object(session, &carrier(key, true, true));
        let out = token.logout(session);
        made.and(out)
    });
    let closed = token.close_session(session);
    made.and(closed)
}

/// Why the group keys could not be moved: the answer of one of the two members.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotMoved {
    /// Of the one that has them.
    Giver(Rv),
    /// Of the one that is to be given them.
    Receiver(Rv),
}

impl NotMoved {
    /// The answer, whoever gave it.
    pub fn rv(self) -> Rv {
        match self {
            NotMoved::Giver(rv) | NotMoved::Receiver(rv) => rv,
        }
    }
}

/// Moves the group keys from a member to the one that made `key`; destroys the pair and its public key afterwards.
///
/// # Errors
/// The members' answers. Nothing of the group keys is then left on the joining member.
pub fn transfer(
    from: On<'_>,
    keys: &GroupKeys,
    to: On<'_>,
    group: &[u8; 16],
    key: &EnrolmentKey,
) -> std::result::Result<GroupKeys, NotMoved> {
    let carriers = if keys.enrolled {
        find_all(
            from,
            &vec![
                Attribute::ulong(ck::CKA_CLASS, ck::CKO_PUBLIC_KEY),
                Attribute::bytes(ck::CKA_ID, key.fingerprint()),
            ],
            8,
        )
    } else {
        from.token.create_object(from.session, &carrier(key, false, false)).map(|carrier| vec![carrier])
    };
    let moved = match carriers.as_deref() {
        Err(rv) => Err(NotMoved::Giver(*rv)),
        Ok([]) => Err(NotMoved::Giver(Rv::KEY_HANDLE_INVALID)),
        Ok([carrier, ..]) => clear(to, group)
            .map_err(NotMoved::Receiver)
            .and_then(|()| carry(from, keys, *carrier, to, group, key)),
    };
    for carrier in carriers.into_iter().flatten() {
        from.discard(carrier);
    }
    to.discard(key.private);
    to.discard(key.public);
    if moved.is_err() {
        _ = clear(to, group);
    }
    moved
}

fn carry(
    from: On<'_>,
    keys: &GroupKeys,
    carrier: ObjectHandle,
    to: On<'_>,
    group: &[u8; 16],
    key: &EnrolmentKey,
) -> std::result::Result<GroupKeys, NotMoved> {
    use NotMoved::{Giver, Receiver};
    let mut handles = Vec::new();
    for (purpose, handle) in Purpose::ALL.into_iter().zip([keys.extractable, keys.non_extractable]) {
        let mut space = vec![0; 1024];
        let mut out = Output::buffer(&mut space);
        from.token.wrap_key(from.session, &mut oaep(), carrier, handle, &mut out).map_err(Giver)?;
        let made = strongest(template(group, purpose, keys.enrolled), keys.enrolled, &mut |t| {
            to.token.unwrap_key(to.session, &mut oaep(), key.private, out.written(), t)
        });
        handles.push(made.map_err(Receiver)?);
    }
    let [extractable, non_extractable] = handles.try_into().map_err(|_| Receiver(Rv::GENERAL_ERROR))?;
    let there = GroupKeys { extractable, non_extractable, enrolled: keys.enrolled };
    for (mine, theirs) in
        [(keys.extractable, there.extractable), (keys.non_extractable, there.non_extractable)]
    {
        if fingerprint(from, mine).map_err(Giver)? != fingerprint(to, theirs).map_err(Receiver)? {
            return Err(Receiver(Rv::ENCRYPTED_DATA_INVALID));
        }
    }
    Ok(there)
}

/// What a group key makes of a known throw-away key: the same on every member that has the same one.
///
/// # Errors
/// The member's answer.
pub fn fingerprint(on: On<'_>, key: ObjectHandle) -> Result<Vec<u8>> {
    let known = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_AES),
        Attribute::bool(ck::CKA_TOKEN, false),
        Attribute::bool(ck::CKA_SENSITIVE, false),
        Attribute::bool(ck::CKA_EXTRACTABLE, true),
        Attribute::bytes(ck::CKA_VALUE, *b"pkcs11-ha fingerprint of a group"),
    ];
    let known = on.token.create_object(on.session, &known)?;
    let wrapped = wrapping::wrap(on, key, known, ck::CKM_AES_KEY_WRAP);
    on.discard(known);
    wrapped
}

/// RSA-OAEP with SHA-1, which every token that has OAEP at all has. Its security does not rest on collisions.
fn oaep() -> Mechanism {
    let field = |name, value| ha_token::Field { name, value };
    Mechanism {
        kind: ck::CKM_RSA_PKCS_OAEP,
        params: Params::Struct(Box::new(StructParams {
            layout: "CK_RSA_PKCS_OAEP_PARAMS",
            fields: vec![
                field("hashAlg", FieldValue::Ulong(ck::CKM_SHA_1)),
                field("mgf", FieldValue::Ulong(ck::CKG_MGF1_SHA1)),
                field("source", FieldValue::Ulong(ck::CKZ_DATA_SPECIFIED as Ulong)),
                field("pSourceData", FieldValue::Bytes(None)),
            ],
        })),
    }
}
