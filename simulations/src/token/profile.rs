//! What kind of token is simulated: its mechanisms, its limits and its peculiarities, as data.

use ha_token::{MechanismInfo, Ulong, ck};

const ENCIPHER: Ulong = ck::CKF_ENCRYPT | ck::CKF_DECRYPT;
const SIGN: Ulong = ck::CKF_SIGN | ck::CKF_VERIFY;
const CARRY: Ulong = ck::CKF_WRAP | ck::CKF_UNWRAP;
const CURVES: Ulong = ck::CKF_EC_F_P | ck::CKF_EC_NAMEDCURVE | ck::CKF_EC_UNCOMPRESS;

/// A mechanism of a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Supported {
    /// The mechanism.
    pub kind: Ulong,
    /// What `C_GetMechanismInfo` answers.
    pub info: MechanismInfo,
}

const fn supported(kind: Ulong, min_key_size: Ulong, max_key_size: Ulong, flags: Ulong) -> Supported {
    Supported { kind, info: MechanismInfo { min_key_size, max_key_size, flags } }
}

/// A kind of token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Profile {
    /// `manufacturerID` of the slot and of the token.
    pub manufacturer: &'static str,
    /// `model` of the token.
    pub model: &'static str,
    /// The mechanisms it has.
    pub mechanisms: Vec<Supported>,
    /// Most sessions that may be open at once in all processes; `None`: as many as are wanted.
    pub most_sessions: Option<usize>,
    /// Wrong PINs in a row after which it is locked; `None`: it never is.
    pub pin_tries: Option<u32>,
    /// Whether it knows the calls of PKCS#11 3.0: `C_SessionCancel`, `C_LoginUser`, an operation cancelled by its start.
    pub version_3: bool,
    /// Whether objects have `CKA_UNIQUE_ID`.
    pub unique_id: bool,
    /// Whether it computes `CKA_CHECK_VALUE`.
    pub check_values: bool,
    /// Whether `CKM_RSA_PKCS_OAEP` takes other digests than SHA-1.
    pub oaep_sha2: bool,
    /// Whether a secret is padded with zeros to a multiple of eight bytes before it is wrapped.
    pub pads_secrets: bool,
    /// Whether Ed25519 keys can be wrapped.
    pub wraps_ed25519: bool,
    /// Whether what fails over a template leaves something behind: a token object with defaults only that says it is none
    /// of the token's, a session object with what the template said before the attribute that was refused.
    pub leaves_ghosts: bool,
    /// Whether asking a private object for a date that it has fails.
    pub trips_over_dates: bool,
    /// Whether an RSA key may only wrap secret keys.
    pub rsa_wraps_secrets_only: bool,
    /// Whether it has `C_DigestKey`.
    pub digests_keys: bool,
    /// Whether the number of a handle that is not valid any more is given to another object, as opencryptoki does.
    pub reuses_handles: bool,
}

impl Profile {
    /// What `C_GetMechanismInfo` answers for a mechanism.
    pub fn mechanism(&self, kind: Ulong) -> Option<MechanismInfo> {
        self.mechanisms.iter().find(|m| m.kind == kind).map(|m| m.info)
    }

    /// SoftHSM 2.6.1, as far as it is simulated.
    pub fn softhsm() -> Self {
        let mut mechanisms = digests();
        mechanisms.extend(rsa(1024, 16384));
        mechanisms.extend(hmacs());
        mechanisms.extend(curves(112, 521));
        mechanisms.extend([
            supported(ck::CKM_GENERIC_SECRET_KEY_GEN, 1, 0x8000_0000, ck::CKF_GENERATE),
            supported(ck::CKM_AES_KEY_GEN, 16, 32, ck::CKF_GENERATE),
            supported(ck::CKM_AES_ECB, 16, 32, ENCIPHER),
            supported(ck::CKM_AES_CBC, 16, 32, ENCIPHER | ck::CKF_WRAP),
            supported(ck::CKM_AES_CBC_PAD, 16, 32, ENCIPHER),
            supported(ck::CKM_AES_KEY_WRAP, 16, 0x8000_0000, CARRY),
            supported(ck::CKM_AES_KEY_WRAP_PAD, 1, 0x8000_0000, CARRY),
            supported(ck::CKM_AES_ECB_ENCRYPT_DATA, 0, 0, ck::CKF_DERIVE),
            supported(ck::CKM_AES_CBC_ENCRYPT_DATA, 0, 0, ck::CKF_DERIVE),
            supported(ck::CKM_AES_CMAC, 16, 32, SIGN),
        ]);
        Profile {
            manufacturer: "SoftHSM project",
            model: "SoftHSM v2",
            mechanisms,
            most_sessions: None,
            pin_tries: None,
            version_3: false,
            unique_id: false,
            check_values: true,
            oaep_sha2: false,
            pads_secrets: true,
            wraps_ed25519: false,
            leaves_ghosts: true,
            trips_over_dates: true,
            rsa_wraps_secrets_only: true,
            digests_keys: true,
            reuses_handles: false,
        }
    }

    /// SoftHSM, but without `C_DigestKey`, as many tokens are: what a secret key answers is asked of its uses alone.
    pub fn terse() -> Self {
        Profile { digests_keys: false, ..Profile::softhsm() }
    }

    /// kryoptic, as far as it is simulated.
    pub fn kryoptic() -> Self {
        let mut mechanisms = digests();
        mechanisms.extend(rsa(1024, 16536));
        mechanisms.extend(hmacs());
        mechanisms.extend(curves(256, 521));
        mechanisms.extend([
            supported(ck::CKM_ECDSA_SHA256, 256, 521, SIGN | CURVES),
            supported(ck::CKM_ECDSA_SHA384, 256, 521, SIGN | CURVES),
            supported(ck::CKM_ECDSA_SHA512, 256, 521, SIGN | CURVES),
            supported(ck::CKM_GENERIC_SECRET_KEY_GEN, 1, 0xffff_ffff, ck::CKF_GENERATE),
            supported(ck::CKM_AES_KEY_GEN, 16, 32, ck::CKF_GENERATE),
            supported(ck::CKM_AES_ECB, 16, 32, ENCIPHER),
            supported(ck::CKM_AES_CBC, 16, 32, ENCIPHER | CARRY),
            supported(ck::CKM_AES_CBC_PAD, 16, 32, ENCIPHER | CARRY),
            supported(ck::CKM_AES_KEY_WRAP, 16, 32, CARRY),
            supported(ck::CKM_AES_KEY_WRAP_KWP, 16, 32, CARRY),
            supported(ck::CKM_AES_ECB_ENCRYPT_DATA, 16, 32, ck::CKF_DERIVE),
            supported(ck::CKM_AES_CBC_ENCRYPT_DATA, 16, 32, ck::CKF_DERIVE),
            supported(ck::CKM_AES_CMAC, 16, 32, SIGN),
        ]);
        Profile {
            manufacturer: "Kryoptic Project",
            model: "v1",
            mechanisms,
            most_sessions: None,
            pin_tries: None,
            version_3: true,
            unique_id: true,
            check_values: false,
            oaep_sha2: true,
            pads_secrets: false,
            wraps_ed25519: true,
            leaves_ghosts: false,
            trips_over_dates: false,
            rsa_wraps_secrets_only: true,
            digests_keys: true,
            reuses_handles: false,
        }
    }

    /// tpm2-pkcs11, as far as it is simulated: a token that wraps nothing and makes no secret keys.
    pub fn tpm() -> Self {
        let mut mechanisms = digests();
        let rsa = rsa(1024, 2048).into_iter().filter(|m| m.kind != ck::CKM_RSA_PKCS_OAEP);
        mechanisms.extend(rsa.map(|m| supported(m.kind, 1024, 2048, m.info.flags & !CARRY)));
        mechanisms.extend([
            supported(ck::CKM_EC_KEY_PAIR_GEN, 256, 384, ck::CKF_GENERATE_KEY_PAIR | CURVES),
            supported(ck::CKM_ECDSA, 256, 384, SIGN | CURVES),
            supported(ck::CKM_ECDSA_SHA256, 256, 384, SIGN | CURVES),
            supported(ck::CKM_SHA256_HMAC, 32, 64, SIGN),
        ]);
        Profile {
            manufacturer: "Infineon",
            model: "SLB9672",
            mechanisms,
            most_sessions: Some(64),
            pin_tries: Some(5),
            version_3: false,
            unique_id: false,
            check_values: false,
            oaep_sha2: false,
            pads_secrets: false,
            wraps_ed25519: false,
            leaves_ghosts: false,
            trips_over_dates: false,
            rsa_wraps_secrets_only: true,
            digests_keys: true,
            reuses_handles: false,
        }
    }
}

fn digests() -> Vec<Supported> {
    [ck::CKM_SHA_1, ck::CKM_SHA224, ck::CKM_SHA256, ck::CKM_SHA384, ck::CKM_SHA512]
        .map(|kind| supported(kind, 0, 0, ck::CKF_DIGEST))
        .to_vec()
}

fn hmacs() -> Vec<Supported> {
    [
        (ck::CKM_SHA_1_HMAC, 20),
        (ck::CKM_SHA224_HMAC, 28),
        (ck::CKM_SHA256_HMAC, 32),
        (ck::CKM_SHA384_HMAC, 48),
        (ck::CKM_SHA512_HMAC, 64),
    ]
    .map(|(kind, least)| supported(kind, least, 512, SIGN))
    .to_vec()
}

fn rsa(min: Ulong, max: Ulong) -> Vec<Supported> {
    let combined = [
        ck::CKM_SHA1_RSA_PKCS,
        ck::CKM_SHA224_RSA_PKCS,
        ck::CKM_SHA256_RSA_PKCS,
        ck::CKM_SHA384_RSA_PKCS,
        ck::CKM_SHA512_RSA_PKCS,
    ];
    let mut all = vec![
        supported(ck::CKM_RSA_PKCS_KEY_PAIR_GEN, min, max, ck::CKF_GENERATE_KEY_PAIR),
        supported(ck::CKM_RSA_PKCS, min, max, SIGN | ENCIPHER | CARRY),
        supported(ck::CKM_RSA_PKCS_OAEP, min, max, ENCIPHER | CARRY),
    ];
    all.extend(combined.map(|kind| supported(kind, min, max, SIGN)));
    all
}

fn curves(min: Ulong, max: Ulong) -> Vec<Supported> {
    vec![
        supported(ck::CKM_EC_KEY_PAIR_GEN, min, max, ck::CKF_GENERATE_KEY_PAIR | CURVES),
        supported(ck::CKM_ECDSA, min, max, SIGN | CURVES),
        supported(ck::CKM_ECDH1_DERIVE, min, max, ck::CKF_DERIVE),
        supported(ck::CKM_EC_EDWARDS_KEY_PAIR_GEN, 255, 448, ck::CKF_GENERATE_KEY_PAIR),
        supported(ck::CKM_EDDSA, 255, 448, SIGN),
    ]
}
