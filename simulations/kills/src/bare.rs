//! What is on a bare token: by label, without what is the group's own.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use ha_member::{Instance, ModuleConfig, ModuleConnector};
use ha_rig::{PIN, Tokens};
use ha_token::{
    Connector as _, Fetched, Mechanism, ObjectHandle, OpKind, Output, Selector, SessionHandle, Template,
    Token, UserType, ck,
};

use crate::program::MESSAGE;

/// Which of a label's objects one is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Half {
    Private,
    Public,
    /// Of a label that has one object.
    Only,
    /// Without a class that anybody asked for: half made.
    Broken,
}

/// An object.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) half: Half,
    /// As a program's `use` answers; empty where it cannot be used.
    pub(crate) answer: Vec<u8>,
}

/// Everything that a token holds, seen through a connection of its own.
pub(crate) fn shown(tokens: &Tokens, i: usize) -> Result<BTreeMap<String, Vec<Shown>>> {
    let connector = ModuleConnector::new(ModuleConfig {
        path: ha_rig::find_softhsm()?,
        instance: Instance::Private,
        env: vec![("SOFTHSM2_CONF".into(), tokens.conf(i).display().to_string())],
        selector: Selector::default(),
    });
    let token = connector.connect().context("a bare token")?;
    let session = token.open_session(true)?;
    token.login(session, UserType::User, Some(PIN.as_bytes()))?;
    token.find_objects_init(session, &Template::new())?;
    let found = token.find_objects(session, 100_000)?;
    token.find_objects_final(session)?;
    let mut shown: BTreeMap<String, Vec<Shown>> = BTreeMap::new();
    for object in found {
        let label = String::from_utf8_lossy(&value(&*token, session, object, ck::CKA_LABEL)).into_owned();
        let named = |kind| value(&*token, session, object, kind);
        let ids = [named(ck::CKA_ID), named(ck::CKA_APPLICATION)];
        // SoftHSM makes an object and then fills it: one that it was just making is left without a name.
        if !label.is_empty() && !ids.iter().any(|id| ha_core::replica::is_ours(label.as_bytes(), id)) {
            shown.entry(label).or_default().push(look(&*token, session, object));
        }
    }
    connector.disconnect();
    Ok(shown)
}

fn look(token: &dyn Token, session: SessionHandle, object: ObjectHandle) -> Shown {
    let class = value(token, session, object, ck::CKA_CLASS);
    let class = class.try_into().map_or(ha_token::Ulong::MAX, ha_token::Ulong::from_ne_bytes);
    let (half, answer) = match class {
        ck::CKO_PRIVATE_KEY => (Half::Private, sign(token, session, object, ck::CKM_ECDSA)),
        ck::CKO_SECRET_KEY => (Half::Only, sign(token, session, object, ck::CKM_SHA256_HMAC)),
        ck::CKO_DATA => (Half::Only, Some(value(token, session, object, ck::CKA_VALUE))),
        ck::CKO_PUBLIC_KEY => (Half::Public, Some(Vec::new())),
        _ => (Half::Broken, None),
    };
    match answer {
        Some(answer) => Shown { half, answer },
        None => Shown { half: Half::Broken, answer: Vec::new() },
    }
}

fn sign(
    token: &dyn Token,
    session: SessionHandle,
    key: ObjectHandle,
    mechanism: ha_token::Ulong,
) -> Option<Vec<u8>> {
    // SoftHSM ends the process that uses a key without a value.
    if mechanism == ck::CKM_SHA256_HMAC && value(token, session, key, ck::CKA_VALUE_LEN).is_empty() {
        return None;
    }
    token.op_init(session, OpKind::Sign, Some(&mut Mechanism::plain(mechanism)), key).ok()?;
    let mut space = [0; 256];
    let mut out = Output::buffer(&mut space);
    token.op_one_shot(session, OpKind::Sign, MESSAGE, &mut out).ok()?;
    Some(out.written().to_vec())
}

fn value(
    token: &dyn Token,
    session: SessionHandle,
    object: ObjectHandle,
    kind: ha_token::AttributeType,
) -> Vec<u8> {
    match token.get_attributes(session, object, &[kind]).as_deref() {
        Ok([Fetched::Value(value)]) => value.as_bytes().unwrap_or_default().to_vec(),
        _ => Vec::new(),
    }
}
