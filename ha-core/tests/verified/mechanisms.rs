//! Every mechanism by which SoftHSM signs: what it signs rightly is handed out, and what is verified is really verified.

use std::collections::BTreeSet;

use ha_core::policy::health::State;
use ha_rig::Tokens;
use ha_token::{Attribute, Mechanism, OpKind, Output, Rv, ck};

use crate::setting::*;

const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
const P521: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23];
const K256: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a];
const BP256: &[u8] = &[0x06, 0x09, 0x2b, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, 0x07];
const BP384: &[u8] = &[0x06, 0x09, 0x2b, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, 0x0b];
const ED25519: &[u8] = b"\x13\x0cedwards25519";

/// By each mechanism of RSA, with inputs that it takes.
fn rsa_cases() -> Vec<(Mechanism, Vec<Vec<u8>>)> {
    let messages = || [0, 1, 64, 1000].map(|len| vec![7; len]).to_vec();
    let mut cases = vec![
        (plain(ck::CKM_RSA_PKCS), [1, 20, 51, 117].map(|len| vec![9; len]).to_vec()),
        (plain(ck::CKM_RSA_X_509), [1, 100, 127].map(|len| vec![0x5a; len]).to_vec()),
    ];
    let hashes = [
        (ck::CKM_SHA1_RSA_PKCS, ck::CKM_SHA1_RSA_PKCS_PSS, ck::CKM_SHA_1, ck::CKG_MGF1_SHA1, 20),
        (ck::CKM_SHA224_RSA_PKCS, ck::CKM_SHA224_RSA_PKCS_PSS, ck::CKM_SHA224, ck::CKG_MGF1_SHA224, 28),
        (ck::CKM_SHA256_RSA_PKCS, ck::CKM_SHA256_RSA_PKCS_PSS, ck::CKM_SHA256, ck::CKG_MGF1_SHA256, 32),
        (ck::CKM_SHA384_RSA_PKCS, ck::CKM_SHA384_RSA_PKCS_PSS, ck::CKM_SHA384, ck::CKG_MGF1_SHA384, 48),
        (ck::CKM_SHA512_RSA_PKCS, ck::CKM_SHA512_RSA_PKCS_PSS, ck::CKM_SHA512, ck::CKG_MGF1_SHA512, 62),
    ];
    for (pkcs1, with_pss, hash, mgf, len) in hashes {
        cases.push((plain(pkcs1), messages()));
        // Salts of other lengths than the digest's.
        for salt in [0, 11, len] {
            cases.push((pss(with_pss, hash, mgf, salt), messages()));
        }
        let digest = if hash == ck::CKM_SHA512 { 64 } else { len as usize };
        cases.push((pss(ck::CKM_RSA_PKCS_PSS, hash, mgf, len), vec![vec![3; digest]]));
    }
    cases
}

/// Signs each input rightly, and one wrongly; the mechanisms by which it was done are told.
fn play(setting: &Setting, key: &Key, cases: Vec<(Mechanism, Vec<Vec<u8>>)>) -> BTreeSet<u64> {
    let events = setting.group().events();
    let mut played = BTreeSet::new();
    for (mechanism, inputs) in cases {
        for input in &inputs {
            let what = format!("{:#x} of {} bytes", mechanism.kind, input.len());
            setting.sign(&mechanism, key, input).unwrap_or_else(|rv| panic!("{what}: {rv}"));
            assert_eq!(told(&events), [""; 0], "{what}");
            // As SoftHSM has it: parts of what it signs without a digest are refused.
            let parts: Vec<&[u8]> = input.chunks(40).collect();
            match setting.sign_parts(&mechanism, key, &parts) {
                Ok(_) => assert_eq!(told(&events), [""; 0], "{what}, in parts"),
                Err(rv) => assert!(mechanism.kind != ck::CKM_SHA256_RSA_PKCS, "{what}, in parts: {rv}"),
            }
        }
        // What is wrong is seen: it was verified.
        lie(&setting.members[0], 1);
        setting.sign(&mechanism, key, inputs.last().unwrap()).unwrap();
        assert_eq!(told(&events), ["a"], "{:#x} is not verified", mechanism.kind);
        assert_eq!(setting.state(0), State::Quarantined);
        setting.group().recover("a");
        setting.all_up();
        played.insert(mechanism.kind);
    }
    played
}

#[test]
fn every_signature_of_rsa_is_verified_and_right_ones_are_handed_out() {
    let tokens = Tokens::new(2);
    let mut played = BTreeSet::new();
    // Of the second length a signature with PSS is of one byte less than the modulus.
    for bits in [1024, 1025] {
        let setting = Setting::new(&tokens, ON);
        let key = setting.rsa(bits, true);
        let mut cases = rsa_cases();
        cases.retain(|(m, _)| bits == 1024 || m.kind != ck::CKM_RSA_X_509);
        played.extend(play(&setting, &key, cases));
    }
    let setting = Setting::new(&tokens, ON);
    everything_else(&setting, &played);
}

/// By every other mechanism the token signs too, which is handed out as it is made.
fn everything_else(setting: &Setting, played: &BTreeSet<u64>) {
    let signs = |kind: &u64| setting.slot.mechanism_info(*kind).unwrap().flags & ck::CKF_SIGN != 0;
    let others: Vec<u64> = setting.slot.mechanism_list().unwrap().into_iter().filter(signs).collect();
    let others: BTreeSet<u64> = others.into_iter().filter(|kind| !played.contains(kind)).collect();
    let macs = [
        ck::CKM_MD5_HMAC,
        ck::CKM_SHA_1_HMAC,
        ck::CKM_SHA224_HMAC,
        ck::CKM_SHA256_HMAC,
        ck::CKM_SHA384_HMAC,
        ck::CKM_SHA512_HMAC,
        ck::CKM_AES_CMAC,
        ck::CKM_DES3_CMAC,
    ];
    let dsa = [
        ck::CKM_DSA,
        ck::CKM_DSA_SHA1,
        ck::CKM_DSA_SHA224,
        ck::CKM_DSA_SHA256,
        ck::CKM_DSA_SHA384,
        ck::CKM_DSA_SHA512,
    ];
    let curves = [ck::CKM_ECDSA, ck::CKM_EDDSA];
    let known: BTreeSet<u64> =
        macs.iter().chain(&dsa).chain(&curves).chain(&[ck::CKM_MD5_RSA_PKCS]).copied().collect();
    assert_eq!(
        others.difference(&known).collect::<Vec<_>>(),
        Vec::<&u64>::new(),
        "a mechanism without a test"
    );
    let events = setting.group().events();
    let (slot, s) = (&setting.slot, setting.s);
    for mechanism in macs.into_iter().filter(|m| others.contains(m)) {
        let (generate, own) = match mechanism {
            ck::CKM_AES_CMAC => (ck::CKM_AES_KEY_GEN, Some(Attribute::ulong(ck::CKA_VALUE_LEN, 32))),
            ck::CKM_DES3_CMAC => (ck::CKM_DES3_KEY_GEN, None),
            _ => (ck::CKM_GENERIC_SECRET_KEY_GEN, Some(Attribute::ulong(ck::CKA_VALUE_LEN, 64))),
        };
        let mut template = yes(&[ck::CKA_SIGN]);
        template.extend(own);
        let key = slot.generate_key(s, &mut plain(generate), &template).unwrap();
        slot.op_init(s, OpKind::Sign, Some(&mut plain(mechanism)), key).unwrap();
        slot.op_one_shot(s, OpKind::Sign, MESSAGE, &mut Output::buffer(&mut [0; 64])).unwrap();
    }
    // A digest that nobody verifies with any more.
    let key = setting.rsa(1024, false);
    setting.sign(&plain(ck::CKM_MD5_RSA_PKCS), &key, MESSAGE).unwrap();
    assert_eq!(told(&events), [""; 0]);
    assert_eq!((setting.state(0), setting.state(1)), (State::Up, State::Up));
}

#[test]
fn every_signature_on_a_curve_is_verified_and_right_ones_are_handed_out() {
    let tokens = Tokens::new(2);
    let setting = Setting::new(&tokens, ON);
    for curve in [P256, P384, P521, K256, BP256, BP384] {
        let key = setting.ec(curve, true);
        // Less than the order is long, as long, and more: of which the first bits count.
        let inputs = [1, 20, 32, 48, 64, 65, 66, 67, 100].map(|len| vec![0xe7; len]).to_vec();
        play(&setting, &key, vec![(plain(ck::CKM_ECDSA), inputs)]);
    }
    let key = setting.ec(ED25519, false);
    let events = setting.group().events();
    for input in [vec![5; 1], vec![5; 32], vec![5; 1000]] {
        setting.sign(&plain(ck::CKM_EDDSA), &key, &input).unwrap();
    }
    assert_eq!(told(&events), [""; 0]);
    // Such a key cannot be copied here: nobody else has it.
    setting.members.iter().for_each(|member| lie(member, 1));
    assert_eq!(setting.sign(&plain(ck::CKM_EDDSA), &key, MESSAGE), Err(Rv::DEVICE_ERROR));
    assert_eq!(told(&events).len(), 1);
}
