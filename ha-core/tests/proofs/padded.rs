//! A secret that was padded with zeros is another secret, whatever an HMAC says.

use ha_core::group::Word;
use ha_core::replica::On;
use ha_core::replica::proof::{Challenge, Exchange, Outcome, prove};
use ha_core::replica::verifier::{SecretMethod, Verifier, challenge_message};
use ha_rig::Tokens;
use ha_token::{
    Attribute, Mechanism, ObjectHandle, OpKind, Output, Rv, SessionHandle, Template, TemplateExt, Token, ck,
};

use crate::group::{Bare, Open};

fn hmac_key(id: u8, value: &[u8]) -> Template {
    vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_GENERIC_SECRET),
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bytes(ck::CKA_ID, [id]),
        Attribute::bool(ck::CKA_SIGN, true),
        Attribute::bytes(ck::CKA_VALUE, value),
    ]
}

fn padded(value: &[u8], length: usize) -> Vec<u8> {
    let mut value = value.to_vec();
    value.resize(length, 0);
    value
}

/// Replaces a member's copy by another value; `silent`: by one that does not say its length.
fn plant(tokens: &Tokens, member: usize, id: u8, value: &[u8], silent: bool) {
    let bare = Bare::new(tokens, member);
    let there = bare.find(&vec![Attribute::bytes(ck::CKA_ID, [id])]);
    assert_eq!(there.len(), 1);
    bare.token.destroy_object(bare.s, there[0]).unwrap();
    let mut template = hmac_key(id, value);
    if silent {
        template.retain(|a| a.kind != ck::CKA_VALUE);
        bare.unwrapped(value, &template);
    } else {
        bare.token.create_object(bare.s, &template).unwrap();
    }
}

#[test]
fn a_copy_padded_with_zeros_is_different() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let value = [0x5a; 32];
    let group = "uncopyable = \"host-memory\"";
    for id in 1..=4 {
        open.slot.create_object(open.s, &hmac_key(id, &value)).unwrap();
    }
    drop(open);
    let open = Open::new(&tokens, group);
    let odd = [0xa5; 36];
    for id in 5..=7 {
        // No wrapping mechanism of SoftHSM carries it, so that the copies say its length.
        let mut template = hmac_key(id, &odd);
        template.set(Attribute::bool(ck::CKA_EXTRACTABLE, true));
        open.slot.create_object(open.s, &template).unwrap();
    }
    assert_eq!(open.doubts(), []);
    drop(open);
    plant(&tokens, 1, 1, &padded(&value, 40), false);
    plant(&tokens, 1, 2, &padded(&value, 40), true);
    plant(&tokens, 1, 3, &value, true);
    plant(&tokens, 1, 5, &padded(&odd, 40), false);
    plant(&tokens, 1, 6, &padded(&odd, 40), true);
    let open = Open::new(&tokens, group);
    let doubts: Vec<_> = open.doubts().into_iter().map(|(id, word, _)| (id[0], word)).collect();
    let mut sorted = doubts.clone();
    sorted.sort();
    assert_eq!(
        sorted,
        [(1, Word::Different), (2, Word::Different), (5, Word::Different), (6, Word::Different)]
    );
}

#[test]
fn an_equal_mac_alone_does_not_prove_a_copy_of_unknown_length() {
    let tokens = Tokens::new(1);
    let bare = Bare::new(&tokens, 0);
    let value = [0xa5; 36];
    let (nonce, made) = ([3; 32], bare.token.create_object(bare.s, &hmac_key(1, &value)).unwrap());
    let answer = mac(&*bare.token, bare.s, made, &nonce);
    let silent = bare.unwrapped(&padded(&value, 40), &vec![Attribute::bool(ck::CKA_SIGN, true)]);
    assert_eq!(mac(&*bare.token, bare.s, silent, &nonce), answer, "an HMAC does not tell them apart");
    let hmac = bare.token.mechanism_info(ck::CKM_SHA256_HMAC).unwrap();
    let challenge = Challenge {
        on: On { token: &*bare.token, session: bare.s, mechanisms: &[(ck::CKM_SHA256_HMAC, hmac)] },
        nonce: [4; 32],
        pin: None,
        group_key: None,
    };
    let method = SecretMethod::Mac(ck::CKM_SHA256_HMAC);
    let proof = |key, length| {
        let verifier = Verifier::Secret { method, length, nonce: nonce.to_vec(), answer: answer.clone() };
        prove(challenge, key, ck::CKO_SECRET_KEY, &verifier).unwrap()
    };
    let word = |key, length| proof(key, length).outcome;
    assert_eq!(word(made, 36), Outcome::Same);
    assert_eq!(word(made, 40), Outcome::Different);
    for (key, length) in [(silent, 36), (silent, 0), (made, 0)] {
        assert!(matches!(word(key, length), Outcome::Unproven(_)), "length {length}");
    }
    let by = |key, length| proof(key, length).evidence.map(|evidence| evidence.exchange);
    let (question, expected) = (method.question(&nonce), answer.clone());
    let equal = Exchange::Answer { method, question, expected, answer: answer.clone() };
    assert_eq!(by(silent, 36), Some(equal), "what was answered is kept also where it does not convince");
    assert_eq!(by(made, 40), Some(Exchange::Length { expected: 40, there: 36 }));
}

fn mac(token: &dyn Token, s: SessionHandle, key: ObjectHandle, nonce: &[u8; 32]) -> Vec<u8> {
    token.op_init(s, OpKind::Sign, Some(&mut Mechanism::plain(ck::CKM_SHA256_HMAC)), key).unwrap();
    let mut space = [0; 64];
    let mut out = Output::buffer(&mut space);
    token.op_one_shot(s, OpKind::Sign, &challenge_message(nonce), &mut out).unwrap();
    out.written().to_vec()
}

/// What RSA carries may be of any length, and SoftHSM does not say of which.
#[test]
fn an_unwrapped_secret_that_wrapping_would_pad_is_refused() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let (slot, s) = (&open.slot, open.s);
    let public = vec![Attribute::ulong(ck::CKA_MODULUS_BITS, 2048), Attribute::bool(ck::CKA_WRAP, true)];
    let private = vec![Attribute::bool(ck::CKA_UNWRAP, true)];
    let mut generate = Mechanism::plain(ck::CKM_RSA_PKCS_KEY_PAIR_GEN);
    let (public, private) = slot.generate_key_pair(s, &mut generate, &public, &private).unwrap();
    let mut pkcs = Mechanism::plain(ck::CKM_RSA_PKCS);
    for (length, id) in [(20, 1), (24, 2)] {
        let mut known = hmac_key(9, &padded(b"a known secret", length));
        known.set(Attribute::bool(ck::CKA_TOKEN, false));
        known.set(Attribute::bool(ck::CKA_EXTRACTABLE, true));
        let known = slot.create_object(s, &known).unwrap();
        let mut space = [0; 512];
        let mut out = Output::buffer(&mut space);
        slot.wrap_key(s, &mut pkcs, public, known, &mut out).unwrap();
        let mut template = hmac_key(id, &[]);
        template.pop();
        template.push(Attribute::bool(ck::CKA_EXTRACTABLE, id == 1));
        let made = slot.unwrap_key(s, &mut pkcs, private, out.written(), &template);
        assert_eq!(made.err(), if length == 20 { Some(Rv::KEY_NOT_WRAPPABLE) } else { None });
        let kept = open.find(&vec![Attribute::bool(ck::CKA_TOKEN, true)]).len();
        assert_eq!(kept, usize::from(length == 24));
    }
    assert_eq!(open.left_behind(), 0);
    assert_eq!(open.doubts(), []);
}
