//! Faults that are one call's.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use ha_token::{Attribute, Mechanism, ObjectHandle, OpKind, Output, Rv, ck};

use crate::bench::{Bench, From, sign};

const BOTH: [From; 2] = [From::Script, From::Socket];

#[test]
fn an_error_is_answered_and_ends_the_operation() {
    for from in BOTH {
        let bench = Bench::ruled(from, "@sign error CKR_DEVICE_ERROR mechanism=CKM_ECDSA after=4 count=2");
        let ((_, ec), (_, rsa)) = (bench.ec(), bench.rsa());
        // Two calls each: let through.
        (0..2).for_each(|_| drop(bench.sign(ck::CKM_ECDSA, ec).unwrap()));
        bench.sign(ck::CKM_RSA_PKCS, rsa).unwrap();
        assert_eq!(bench.sign(ck::CKM_ECDSA, ec), Err(Rv::DEVICE_ERROR), "C_SignInit, {from:?}");
        assert_eq!(bench.sign(ck::CKM_ECDSA, ec), Err(Rv::DEVICE_ERROR), "C_SignInit, {from:?}");
        bench.sign(ck::CKM_ECDSA, ec).unwrap();
        assert!(bench.told("(seen 8, hit 2)"), "{}", bench.say("list"));
    }
}

#[test]
fn an_error_in_the_middle_of_any_operation_leaves_none_open() {
    let bench = Bench::new(&["C_Sign,C_SignUpdate,C_Digest,C_DigestUpdate error 0x80001234"]);
    let ((_, ec), (_, rsa)) = (bench.ec(), bench.rsa());
    let vendor = Rv(0x8000_1234);
    for _ in 0..2 {
        assert_eq!(bench.sign(ck::CKM_ECDSA, ec), Err(vendor));
        assert_eq!(bench.sign(ck::CKM_SHA256_RSA_PKCS, rsa), Err(vendor));
        assert_eq!(bench.digest(), Err(vendor));
        let mut parts = Mechanism::plain(ck::CKM_SHA256_RSA_PKCS);
        bench.token.op_init(bench.s, OpKind::Sign, Some(&mut parts), rsa).unwrap();
        let update = bench.token.op_update(bench.s, OpKind::Sign, b"part", &mut Output::query());
        assert_eq!(update, Err(vendor));
        bench
            .token
            .op_init(bench.s, OpKind::Digest, Some(&mut Mechanism::plain(ck::CKM_SHA256)), ObjectHandle(0))
            .unwrap();
        let update = bench.token.op_update(bench.s, OpKind::Digest, b"part", &mut Output::query());
        assert_eq!(update, Err(vendor));
    }
}

#[test]
fn an_error_that_comes_when_all_is_done() {
    for from in BOTH {
        let bench = Bench::ruled(from, "C_CreateObject error CKR_FUNCTION_FAILED done");
        let template = vec![
            Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
            Attribute::bool(ck::CKA_TOKEN, true),
            Attribute::bytes(ck::CKA_LABEL, *b"made"),
        ];
        assert_eq!(bench.token.create_object(bench.s, &template), Err(Rv::FUNCTION_FAILED));
        assert_eq!(bench.find(ck::CKO_DATA).unwrap().len(), 1, "it was made");
    }
}

#[test]
fn a_delay_is_waited_for() {
    for from in BOTH {
        let bench = Bench::ruled(from, "C_Digest delay 200ms count=1");
        let began = Instant::now();
        bench.digest().unwrap();
        assert!(began.elapsed() >= Duration::from_millis(200));
        assert!(bench.told("hit 1"));
    }
}

#[test]
fn a_call_hangs_until_it_is_released() {
    for from in BOTH {
        let bench = Bench::ruled(from, "C_Digest hang count=1");
        let (ended, end) = mpsc::channel();
        std::thread::scope(|scope| {
            let bench = &bench;
            scope.spawn(move || ended.send(bench.digest().map(|d| d.len())).unwrap());
            while !bench.told("hit 1") {
                std::thread::yield_now();
            }
            assert!(end.recv_timeout(Duration::from_millis(100)).is_err(), "it hangs");
            // Others go on meanwhile.
            bench.token.generate_random(bench.s, &mut [0; 8]).unwrap();
            assert_eq!(bench.say("release"), "ok");
            assert_eq!(end.recv().unwrap(), Ok(32));
        });
    }
}

#[test]
fn a_wrong_signature_looks_like_one() {
    for from in BOTH {
        let bench = Bench::ruled(from, "* wrong-signature");
        let ((ec_public, ec), (rsa_public, rsa)) = (bench.ec(), bench.rsa());
        for (mechanism, public, key, len) in
            [(ck::CKM_ECDSA, ec_public, ec, 64), (ck::CKM_SHA256_RSA_PKCS, rsa_public, rsa, 128)]
        {
            let wrong = bench.sign(mechanism, key).unwrap();
            assert_eq!(wrong.len(), len);
            assert_eq!(bench.verify(mechanism, public, &wrong), Err(Rv::SIGNATURE_INVALID));
        }
        // In parts, with a question for the length, which is no signature.
        let mut mechanism = Mechanism::plain(ck::CKM_SHA256_RSA_PKCS);
        bench.token.op_init(bench.s, OpKind::Sign, Some(&mut mechanism), rsa).unwrap();
        bench.token.op_update(bench.s, OpKind::Sign, &[7; 32], &mut Output::query()).unwrap();
        let mut query = Output::query();
        bench.token.op_final(bench.s, OpKind::Sign, &mut query).unwrap();
        let mut space = [0; 128];
        let mut out = Output::buffer(&mut space);
        bench.token.op_final(bench.s, OpKind::Sign, &mut out).unwrap();
        let wrong = out.written().to_vec();
        assert_eq!(bench.verify(ck::CKM_SHA256_RSA_PKCS, rsa_public, &wrong), Err(Rv::SIGNATURE_INVALID));
        assert!(bench.told("(seen 3, hit 3)"), "{}", bench.say("list"));
        assert_eq!(bench.say("clear"), "ok 1");
        let right = bench.sign(ck::CKM_ECDSA, ec).unwrap();
        bench.verify(ck::CKM_ECDSA, ec_public, &right).unwrap();
    }
}

#[test]
fn one_bit_of_an_output_is_another_one() {
    for from in BOTH {
        let bench = Bench::ruled(from, "C_Digest,C_GetAttributeValue corrupt count=2");
        let (public, _) = bench.rsa();
        let bits = |one: &[u8], other: &[u8]| -> u32 {
            one.iter().zip(other).map(|(a, b)| (a ^ b).count_ones()).sum()
        };
        let modulus = || {
            let all = bench.token.get_attributes(bench.s, public, &[ck::CKA_MODULUS]).unwrap();
            all[0].bytes().unwrap().to_vec()
        };
        let (wrong_digest, wrong_modulus) = (bench.digest().unwrap(), modulus());
        assert!(bench.told("hit 2"), "{}", bench.say("list"));
        assert_eq!(bits(&wrong_digest, &bench.digest().unwrap()), 1);
        assert_eq!(bits(&wrong_modulus, &modulus()), 1);
    }
}

#[test]
fn objects_get_other_handles() {
    for from in BOTH {
        let bench = Bench::ruled(from, "C_Sign lose-handles count=1");
        let (public, private) = bench.ec();
        let signature = bench.sign(ck::CKM_ECDSA, private).unwrap();
        assert_eq!(bench.sign(ck::CKM_ECDSA, private), Err(Rv::KEY_HANDLE_INVALID));
        assert_eq!(
            bench.token.get_attributes(bench.s, public, &[ck::CKA_ID]).map(drop),
            Err(Rv::OBJECT_HANDLE_INVALID)
        );
        let found = (bench.find(ck::CKO_PUBLIC_KEY).unwrap(), bench.find(ck::CKO_PRIVATE_KEY).unwrap());
        assert_eq!((found.0.len(), found.1.len()), (1, 1));
        assert!(found.0[0] != public && found.1[0] != private);
        bench.verify(ck::CKM_ECDSA, found.0[0], &signature).unwrap();
        bench.sign(ck::CKM_ECDSA, found.1[0]).unwrap();
        bench.token.destroy_object(bench.s, found.1[0]).unwrap();
        assert_eq!(bench.find(ck::CKO_PRIVATE_KEY).unwrap(), []);
    }
}

#[test]
fn sessions_are_gone() {
    for from in BOTH {
        let bench = Bench::ruled(from, "C_Digest lose-sessions count=1");
        let (_, key) = bench.ec();
        let other = bench.token.open_session(false).unwrap();
        assert_eq!(bench.digest(), Err(Rv::SESSION_HANDLE_INVALID));
        for lost in [bench.s, other] {
            assert_eq!(bench.token.session_info(lost).map(drop), Err(Rv::SESSION_HANDLE_INVALID));
        }
        let new = bench.token.open_session(true).unwrap();
        assert!(new != bench.s && new != other);
        assert_eq!(
            bench.token.session_info(new).unwrap().state,
            ck::CKS_RW_PUBLIC_SESSION,
            "with the last session went the login"
        );
        assert!(sign(&*bench.token, new, ck::CKM_ECDSA, key).is_err());
    }
}

#[test]
fn the_login_is_gone() {
    for from in BOTH {
        let bench = Bench::ruled(from, "C_Digest lose-login count=1");
        assert_eq!(bench.token.session_info(bench.s).unwrap().state, ck::CKS_RW_USER_FUNCTIONS);
        bench.digest().unwrap();
        assert_eq!(bench.token.session_info(bench.s).unwrap().state, ck::CKS_RW_PUBLIC_SESSION);
        bench.login().unwrap();
        bench.digest().unwrap();
        assert_eq!(bench.token.session_info(bench.s).unwrap().state, ck::CKS_RW_USER_FUNCTIONS);
    }
}
