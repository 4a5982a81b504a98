//! Slots, PINs and configurations that the tests share.

use std::sync::Arc;

use ha_core::provider::{Provider, connector};
use ha_rig::{PIN, SO_PIN, Tokens, Watch};
use ha_token::*;

use crate::watched::wait;

pub const USER: UserType = UserType::User;
pub const WRONG: &[u8] = b"9999";
pub const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// Members that are in quarantine are looked at again without much ado.
pub const SOON: &str = "[group.recovery]\ninterval = \"5ms\"\nmax_interval = \"20ms\"";
pub const NO_THREADS: &str = "[group.recovery]\nmode = \"manual\"\ninterval = \"1ms\"";

pub fn open(provider: &Provider) -> (Arc<dyn Token>, SessionHandle) {
    let slot = Arc::clone(provider.slot(0).unwrap());
    let s = slot.open_session(true).unwrap();
    (slot, s)
}

pub fn pin() -> Option<&'static [u8]> {
    Some(PIN.as_bytes())
}

pub fn all_up(provider: &Provider) {
    wait(&provider.groups()[0], "every member is up", |g| g.up().count() == g.members.len());
}

/// How often this PIN was sent since the last look, for whatever.
pub fn times(watch: &Watch, pin: &[u8]) -> usize {
    watch.sent().iter().filter(|(_, _, p)| p.as_deref() == Some(pin)).count()
}

/// Changes a token's user PIN as another process would.
pub fn rotate(tokens: &Tokens, member: usize, old: &[u8], new: &[u8]) {
    let config = ha_core::config::Config::parse(&tokens.config(false, "")).unwrap();
    let other = connector(&config.groups[0].members[member]);
    let token = other.connect().unwrap();
    let s = token.open_session(true).unwrap();
    token.set_pin(s, Some(old), Some(new)).unwrap();
    other.disconnect();
}

/// Gives a token a new user PIN as its security officer would. SoftHSM has the new one before it tells that it counts no wrong
/// ones any more, and after that where the PIN is [rotated](rotate).
pub fn renew(tokens: &Tokens, member: usize, new: &[u8]) {
    let config = ha_core::config::Config::parse(&tokens.config(false, "")).unwrap();
    let other = connector(&config.groups[0].members[member]);
    let token = other.connect().unwrap();
    let s = token.open_session(true).unwrap();
    token.login(s, UserType::So, Some(SO_PIN.as_bytes())).unwrap();
    token.init_pin(s, Some(new)).unwrap();
    other.disconnect();
}

/// The configuration with a line more for one member.
pub fn with_member_line(text: &str, name: &str, line: &str) -> String {
    let head = format!("name = \"{name}\"\n");
    assert!(text.contains(&head));
    text.replace(&head, &format!("{head}{line}\n"))
}

pub fn with_own_pin(tokens: &Tokens, text: &str, name: &str, pin: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let file = tokens.path().join(format!("pin-{name}"));
    std::fs::write(&file, pin).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    with_member_line(text, name, &format!("pin = {{ file = {file:?} }}"))
}

/// A pair whose private key wants a login for each use.
pub fn careful_pair(slot: &dyn Token, s: SessionHandle) -> ObjectHandle {
    let yes = |kind| Attribute::bool(kind, true);
    let public = vec![yes(ck::CKA_TOKEN), yes(ck::CKA_VERIFY), Attribute::bytes(ck::CKA_EC_PARAMS, P256)];
    let private =
        vec![yes(ck::CKA_TOKEN), yes(ck::CKA_PRIVATE), yes(ck::CKA_SIGN), yes(ck::CKA_ALWAYS_AUTHENTICATE)];
    let mut mechanism = Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN);
    slot.generate_key_pair(s, &mut mechanism, &public, &private).unwrap().1
}

pub fn begin(slot: &dyn Token, s: SessionHandle, kind: OpKind, mechanism: Ulong, key: ObjectHandle) {
    slot.op_init(s, kind, Some(&mut Mechanism::plain(mechanism)), key).unwrap();
}

pub fn finish(slot: &dyn Token, s: SessionHandle, kind: OpKind, input: &[u8]) -> Result<Vec<u8>> {
    let mut space = [0; 512];
    let mut out = Output::buffer(&mut space);
    slot.op_one_shot(s, kind, input, &mut out)?;
    Ok(out.written().to_vec())
}
