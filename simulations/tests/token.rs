//! The simulated token alone: connections and processes, what can be done to it, what can be seen of it.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use ha_token::{
    Attribute, ConnectError, Connector, Mechanism, ObjectHandle, OpKind, Output, Result, Rv, SessionHandle,
    Template, Token, UserType, ck,
};
use proptest::prelude::*;
use simulations::token::{Device, Profile};

const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const PIN: &[u8] = b"1234";
const SO_PIN: &[u8] = b"12345678";

fn device(profile: Profile, seed: u64) -> Device {
    Device::new(profile, "token", "0001", SO_PIN, PIN, seed)
}

struct Open {
    connector: Box<dyn Connector>,
    token: Arc<dyn Token>,
    s: SessionHandle,
}

fn open(device: &Device) -> Open {
    let connector = device.connector();
    let token = connector.connect().unwrap();
    let s = token.open_session(true).unwrap();
    token.login(s, UserType::User, Some(PIN)).unwrap();
    Open { connector, token, s }
}

impl Open {
    fn aes(&self, extra: &[Attribute]) -> Result<ObjectHandle> {
        let mut template = vec![Attribute::ulong(ck::CKA_VALUE_LEN, 32)];
        template.extend_from_slice(extra);
        self.token.generate_key(self.s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &template)
    }

    fn pair(&self, private: &[Attribute]) -> (ObjectHandle, ObjectHandle) {
        let public = vec![Attribute::bytes(ck::CKA_EC_PARAMS, P256)];
        let mut mechanism = Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN);
        self.token.generate_key_pair(self.s, &mut mechanism, &public, &private.to_vec()).unwrap()
    }

    fn sign(&self, key: ObjectHandle) -> Result<Vec<u8>> {
        self.token.op_init(self.s, OpKind::Sign, Some(&mut Mechanism::plain(ck::CKM_ECDSA)), key)?;
        let mut space = [0; 64];
        let mut out = Output::buffer(&mut space);
        self.token.op_one_shot(self.s, OpKind::Sign, &[7; 32], &mut out)?;
        Ok(out.written().to_vec())
    }

    fn find(&self, template: &Template) -> Vec<ObjectHandle> {
        self.token.find_objects_init(self.s, template).unwrap();
        let found = self.token.find_objects(self.s, 100).unwrap();
        self.token.find_objects_final(self.s).unwrap();
        found
    }
}

fn on_token() -> Attribute {
    Attribute::bool(ck::CKA_TOKEN, true)
}

#[test]
fn a_new_connection_ends_the_old_one_and_finds_the_tokens_objects() {
    let device = device(Profile::softhsm(), 1);
    let open = open(&device);
    open.aes(&[on_token()]).unwrap();
    open.aes(&[]).unwrap();
    assert_eq!(open.find(&Template::new()).len(), 2);
    let again = open.connector.connect().unwrap();
    assert_eq!(open.token.token_info(), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
    assert_eq!(device.sessions_open(), 0);
    let s = again.open_session(true).unwrap();
    assert_eq!(again.session_info(s).unwrap().state, ck::CKS_RW_PUBLIC_SESSION);
    again.login(s, UserType::User, Some(PIN)).unwrap();
    let now = Open { token: again, s, ..open };
    assert_eq!(now.find(&Template::new()).len(), 1, "session objects ended with their connection");
    now.connector.disconnect();
    now.connector.disconnect();
    assert_eq!(now.token.open_session(true), Err(Rv::CRYPTOKI_NOT_INITIALIZED));
}

#[test]
fn processes_share_objects_and_nothing_else() {
    let device = device(Profile::softhsm(), 1);
    let (one, two) = (open(&device), open(&device));
    let kept = one.aes(&[on_token()]).unwrap();
    one.aes(&[]).unwrap();
    assert_eq!(two.find(&Template::new()).len(), 1);
    two.token.logout(two.s).unwrap();
    assert!(two.find(&Template::new()).is_empty());
    assert_eq!(one.token.session_info(one.s).unwrap().state, ck::CKS_RW_USER_FUNCTIONS);
    two.token.login(two.s, UserType::User, Some(PIN)).unwrap();
    let seen = two.find(&Template::new())[0];
    two.token.destroy_object(two.s, seen).unwrap();
    assert_eq!(one.token.destroy_object(one.s, kept), Err(Rv::OBJECT_HANDLE_INVALID));
}

#[test]
fn a_lost_token_looks_healthy_until_it_is_connected_anew() {
    let device = device(Profile::softhsm(), 1);
    let open = open(&device);
    let (_, key) = open.pair(&[on_token()]);
    device.lose_token();
    assert!(open.find(&vec![on_token()]).is_empty());
    assert_eq!(open.sign(key), Err(Rv::OBJECT_HANDLE_INVALID));
    assert_eq!(open.token.token_info(), Err(Rv::GENERAL_ERROR));
    assert_eq!(open.aes(&[on_token()]), Err(Rv::GENERAL_ERROR));
    open.token.generate_random(open.s, &mut [0; 8]).unwrap();
    open.aes(&[]).unwrap();
    let refused = device.connector().connect().err();
    assert!(matches!(refused, Some(ConnectError::NoToken { .. })));
    device.find_token();
    assert_eq!(open.sign(key), Err(Rv::OBJECT_HANDLE_INVALID), "put back, it stays broken");
    open.token.logout(open.s).unwrap();
    assert_eq!(open.token.login(open.s, UserType::User, Some(PIN)), Err(Rv::GENERAL_ERROR));
    let token = open.connector.connect().unwrap();
    let s = token.open_session(true).unwrap();
    token.login(s, UserType::User, Some(PIN)).unwrap();
    let again = Open { token, s, ..open };
    let found = again.find(&vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY)]);
    again.sign(found[0]).unwrap();
}

#[test]
fn what_can_be_done_to_a_token_is_done() {
    let device = device(Profile::softhsm(), 1);
    let open = open(&device);
    open.aes(&[on_token()]).unwrap();
    let before = device.snapshot();
    open.aes(&[on_token()]).unwrap();
    let (first, second) = (device.inspect()[0].number, device.inspect()[1].number);
    device.restore(&before);
    assert_eq!(device.inspect().iter().map(|o| o.number).collect::<Vec<_>>(), [first]);
    open.aes(&[on_token()]).unwrap();
    assert!(device.inspect()[1].number > second, "no number is used again");

    device.set_full(true);
    assert_eq!(open.aes(&[on_token()]), Err(Rv::FUNCTION_FAILED));
    device.set_full(false);
    device.set_read_only(true);
    let key = open.find(&Template::new())[0];
    assert_eq!(open.token.destroy_object(open.s, key), Err(Rv::GENERAL_ERROR));
    device.set_read_only(false);

    device.drop_handles();
    assert_eq!(open.token.destroy_object(open.s, key), Err(Rv::OBJECT_HANDLE_INVALID));
    assert!(!open.find(&Template::new()).contains(&key));
    device.drop_logins();
    assert_eq!(open.aes(&[on_token()]), Err(Rv::USER_NOT_LOGGED_IN));
    device.drop_sessions();
    assert_eq!(open.token.session_info(open.s), Err(Rv::SESSION_HANDLE_INVALID));
    device.restore(&before);
    device.become_other("0002");
    assert_eq!(open.token.token_info().unwrap().serial, "0002");
    assert_eq!(device.inspect().len(), 1, "its own, wherever it is");
    device.become_itself();
    assert_eq!((device.inspect().len(), open.token.token_info().unwrap().serial), (1, "0001".to_owned()));
    device.wipe();
    assert!(device.inspect().is_empty());
}

#[test]
fn a_tpm_locks_after_wrong_pins_and_wraps_nothing() {
    let device = device(Profile::tpm(), 1);
    let open = open(&device);
    assert_eq!(open.aes(&[]), Err(Rv::MECHANISM_INVALID));
    let (_, key) = open.pair(&[Attribute::bool(ck::CKA_EXTRACTABLE, true)]);
    let mut wrap = Mechanism::plain(ck::CKM_AES_KEY_WRAP);
    let wrapped = open.token.wrap_key(open.s, &mut wrap, key, key, &mut Output::query());
    assert_eq!(wrapped, Err(Rv::MECHANISM_INVALID));
    open.token.logout(open.s).unwrap();
    let login = |pin| open.token.login(open.s, UserType::User, Some(pin));
    for _ in 0..4 {
        assert_eq!(login(b"wrong"), Err(Rv::PIN_INCORRECT));
    }
    let flags = open.token.token_info().unwrap().flags;
    assert_eq!(flags & ck::CKF_USER_PIN_FINAL_TRY, ck::CKF_USER_PIN_FINAL_TRY);
    assert_eq!(login(b"wrong"), Err(Rv::PIN_LOCKED));
    assert_eq!(login(PIN), Err(Rv::PIN_LOCKED));
    let attempts = device.login_attempts();
    assert_eq!((attempts.accepted, attempts.refused.values().sum::<u64>()), (1, 5));
    assert!(device.pin_state().user_locked && !device.pin_state().so_locked);
}

#[test]
fn a_key_that_wants_it_gets_a_login_for_each_use() {
    let device = device(Profile::softhsm(), 1);
    let open = open(&device);
    let (_, key) = open.pair(&[Attribute::bool(ck::CKA_ALWAYS_AUTHENTICATE, true)]);
    assert_eq!(open.sign(key), Err(Rv::USER_NOT_LOGGED_IN));
    let (token, s) = (&open.token, open.s);
    let again = |pin| token.login(s, UserType::ContextSpecific, Some(pin));
    assert_eq!(again(PIN), Err(Rv::OPERATION_NOT_INITIALIZED));
    token.op_init(s, OpKind::Sign, Some(&mut Mechanism::plain(ck::CKM_ECDSA)), key).unwrap();
    assert_eq!(again(b"wrong"), Err(Rv::PIN_INCORRECT));
    again(PIN).unwrap();
    let mut space = [0; 64];
    token.op_one_shot(s, OpKind::Sign, &[7; 32], &mut Output::buffer(&mut space)).unwrap();
    assert_eq!(open.sign(key), Err(Rv::USER_NOT_LOGGED_IN));
}

#[test]
fn sessions_are_as_many_as_the_token_has() {
    let device = device(Profile { most_sessions: Some(2), ..Profile::softhsm() }, 1);
    let open = open(&device);
    let other = open.token.open_session(false).unwrap();
    assert_eq!(open.token.open_session(true), Err(Rv::SESSION_COUNT));
    open.token.close_session(other).unwrap();
    open.token.open_session(true).unwrap();
}

fn life(seed: u64, steps: &[u8]) -> Vec<simulations::token::Inspected> {
    let device = device(Profile::softhsm(), seed);
    let open = open(&device);
    for step in steps {
        match step % 4 {
            0 => _ = open.aes(&[on_token()]),
            1 => _ = open.pair(&[on_token()]),
            2 => open.token.generate_random(open.s, &mut [0; 5]).unwrap(),
            _ => {
                let bits = vec![Attribute::ulong(ck::CKA_MODULUS_BITS, 1024), on_token()];
                let mut mechanism = Mechanism::plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
                _ = open.token.generate_key_pair(open.s, &mut mechanism, &bits, &vec![on_token()]).unwrap();
            }
        }
    }
    device.inspect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_life_under_the_same_seed_is_the_same(seed: u64, steps in prop::collection::vec(any::<u8>(), 1..12)) {
        let once = life(seed, &steps);
        prop_assert_eq!(&once, &life(seed, &steps));
        let materials: std::collections::BTreeSet<_> = once.iter().map(|o| (o.class, &o.material)).collect();
        prop_assert_eq!(materials.len(), once.len(), "no key twice");
    }
}
