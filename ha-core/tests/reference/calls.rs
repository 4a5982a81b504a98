//! The calls that both tokens are asked.

use ha_token::{
    Attribute, Field, FieldValue, Mechanism, OpKind, Params, StructParams, Template, Ulong, UserType, ck,
};

/// What a session or an object is called in the calls. It stands for what the call of this number made on each side, and
/// for a handle that nobody gave where that call was refused or left out.
pub type Id = u16;

/// One call, or a few that belong together.
#[derive(Clone, Debug)]
pub enum Call {
    Open { id: Id, read_write: bool },
    Close(Id),
    CloseAll,
    Info(Id),
    Login { s: Id, user: UserType, pin: Pin },
    Logout(Id),
    InitPin { s: Id, pin: Pin },
    SetPin { s: Id, old: Pin, new: Pin },
    Create { id: Id, s: Id, kind: Kind, extra: Extra },
    Generate { id: Id, s: Id, kind: Kind, extra: Extra },
    Pair { public: Id, private: Id, s: Id, kind: Kind, extras: [Extra; 2] },
    Copy { id: Id, s: Id, of: Id, extra: Extra },
    Destroy { s: Id, o: Id },
    Size { s: Id, o: Id },
    Get { s: Id, o: Id },
    Set { s: Id, o: Id, extra: Extra },
    Rename { s: Id, o: Id },
    Find { s: Id, by: Extra },
    FindInit { s: Id, by: Extra },
    FindNext { s: Id, most: usize },
    FindFinal { s: Id },
    Begin { s: Id, kind: OpKind, how: How, key: Id },
    Cancel { s: Id, kind: OpKind },
    CancelAll { s: Id },
    OneShot { s: Id, kind: OpKind, data: Data, room: Room },
    Update { s: Id, kind: OpKind, data: Data, room: Room },
    Final { s: Id, kind: OpKind, room: Room },
    Verify { s: Id, data: Data, signature: Signature },
    VerifyFinal { s: Id, signature: Signature },
    DigestKey { s: Id, key: Id },
    Sign { s: Id, how: How, key: Id, data: Data, parts: bool },
    Check { s: Id, how: How, key: Id, data: Data, signature: Signature, parts: bool },
    Wrap { s: Id, by: Id, key: Id, pad: bool, room: Room },
    Unwrap { id: Id, s: Id, by: Id, pad: bool, kind: Kind, extra: Extra },
    Derive { id: Id, s: Id, base: Id, extra: Extra },
    Random { s: Id, count: u8 },
    Seed(Id),
    State(Id),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pin {
    User,
    So,
    Wrong,
    Short,
}

impl Pin {
    pub fn bytes(self) -> &'static [u8] {
        match self {
            Pin::User => ha_rig::PIN.as_bytes(),
            Pin::So => ha_rig::SO_PIN.as_bytes(),
            Pin::Wrong => b"54321",
            Pin::Short => b"1",
        }
    }
}

/// How much room an answer has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    Query,
    Bytes(usize),
}

/// What is signed, digested or encrypted: so many bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Data(pub usize);

impl Data {
    pub fn bytes(self) -> Vec<u8> {
        (0..self.0).map(|n| n as u8 ^ 0x5a).collect()
    }
}

/// Which signature is verified: of those of the key's pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signature {
    /// The last that this token made.
    Own,
    /// The last that the other token made, with the same value.
    Others,
    /// With one bit wrong.
    Spoiled,
    /// So many bytes of nothing.
    Junk(usize),
}

/// What an object is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Data,
    Certificate,
    Aes(u8),
    Generic(u8),
    EcPublic,
    EcPrivate,
    RsaPublic,
    RsaPrivate,
    Ed,
    /// What no token knows.
    Nothing,
}

/// Which mechanisms fit a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sort {
    None,
    Secret,
    Ec,
    Ed,
    Rsa,
}

impl Kind {
    pub fn sort(self) -> Sort {
        match self {
            Kind::Aes(_) | Kind::Generic(_) => Sort::Secret,
            Kind::EcPublic | Kind::EcPrivate => Sort::Ec,
            Kind::Ed => Sort::Ed,
            Kind::RsaPublic | Kind::RsaPrivate => Sort::Rsa,
            Kind::Data | Kind::Certificate | Kind::Nothing => Sort::None,
        }
    }

    /// Class and key type.
    pub fn class(self) -> Template {
        let (class, key_type) = match self {
            Kind::Data => return vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA)],
            Kind::Certificate => {
                return vec![
                    Attribute::ulong(ck::CKA_CLASS, ck::CKO_CERTIFICATE),
                    Attribute::ulong(ck::CKA_CERTIFICATE_TYPE, ck::CKC_X_509),
                ];
            }
            Kind::Aes(_) => (ck::CKO_SECRET_KEY, ck::CKK_AES),
            Kind::Generic(_) => (ck::CKO_SECRET_KEY, ck::CKK_GENERIC_SECRET),
            Kind::EcPublic => (ck::CKO_PUBLIC_KEY, ck::CKK_EC),
            Kind::EcPrivate => (ck::CKO_PRIVATE_KEY, ck::CKK_EC),
            Kind::RsaPublic => (ck::CKO_PUBLIC_KEY, ck::CKK_RSA),
            Kind::RsaPrivate => (ck::CKO_PRIVATE_KEY, ck::CKK_RSA),
            Kind::Ed => (ck::CKO_PRIVATE_KEY, ck::CKK_EC_EDWARDS),
            Kind::Nothing => (ck::CKO_SECRET_KEY, 0x7777),
        };
        vec![Attribute::ulong(ck::CKA_CLASS, class), Attribute::ulong(ck::CKA_KEY_TYPE, key_type)]
    }
}

/// Attributes that can be printed, as they are drawn.
#[derive(Clone, Default)]
pub struct Extra(pub Template);

impl std::fmt::Debug for Extra {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let one = |a: &Attribute| format!("{:x}={:02x?}", a.kind, a.value.as_bytes().unwrap_or_default());
        f.debug_list().entries(self.0.iter().map(one)).finish()
    }
}

/// A mechanism.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    Hmac,
    Hmac512,
    Cmac,
    Ecdsa,
    Eddsa,
    Rsa,
    RsaSha256,
    Pss,
    Ecb,
    Cbc,
    CbcPad,
    Ctr,
    Oaep,
    Sha1,
    Sha256,
    Sha512,
    /// No mechanism of any token.
    Unknown,
}

impl How {
    pub fn signs(sort: Sort) -> &'static [How] {
        match sort {
            Sort::Secret => &[How::Hmac, How::Hmac512, How::Cmac],
            Sort::Ec => &[How::Ecdsa],
            Sort::Ed => &[How::Eddsa],
            Sort::Rsa => &[How::Rsa, How::RsaSha256, How::Pss],
            Sort::None => &[How::Hmac],
        }
    }

    pub fn encrypts(sort: Sort) -> &'static [How] {
        match sort {
            Sort::Secret => &[How::Ecb, How::Cbc, How::CbcPad, How::Ctr],
            Sort::Rsa => &[How::Rsa, How::Oaep],
            // What does not fit a key crashes SoftHSM.
            Sort::None | Sort::Ec | Sort::Ed => &[How::Unknown],
        }
    }

    /// Whether the same key and data give the same bytes.
    pub fn is_exact(self) -> bool {
        !matches!(self, How::Ecdsa | How::Pss | How::Oaep)
    }

    pub fn mechanism(self) -> Mechanism {
        let plain = |kind: Ulong| Mechanism::plain(kind);
        let params = |layout, fields| Params::Struct(Box::new(StructParams { layout, fields }));
        let number = |name, value| Field { name, value: FieldValue::Ulong(value) };
        match self {
            How::Hmac => plain(ck::CKM_SHA256_HMAC),
            How::Hmac512 => plain(ck::CKM_SHA512_HMAC),
            How::Cmac => plain(ck::CKM_AES_CMAC),
            How::Ecdsa => plain(ck::CKM_ECDSA),
            How::Eddsa => plain(ck::CKM_EDDSA),
            How::Rsa => plain(ck::CKM_RSA_PKCS),
            How::RsaSha256 => plain(ck::CKM_SHA256_RSA_PKCS),
            How::Pss => {
                let numbers = [ck::CKM_SHA256, ck::CKG_MGF1_SHA256, 32];
                let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
                Mechanism::bytes(ck::CKM_SHA256_RSA_PKCS_PSS, &bytes)
            }
            How::Ecb => plain(ck::CKM_AES_ECB),
            How::Cbc => Mechanism::bytes(ck::CKM_AES_CBC, &[4; 16]),
            How::CbcPad => Mechanism::bytes(ck::CKM_AES_CBC_PAD, &[4; 16]),
            How::Ctr => {
                let mut bytes = ck::CK_ULONG::to_ne_bytes(128).to_vec();
                bytes.extend([4; 16]);
                Mechanism::bytes(ck::CKM_AES_CTR, &bytes)
            }
            How::Oaep => {
                let fields = vec![
                    number("hashAlg", ck::CKM_SHA_1),
                    number("mgf", ck::CKG_MGF1_SHA1),
                    number("source", ck::CKZ_DATA_SPECIFIED as ck::CK_ULONG),
                    Field { name: "pSourceData", value: FieldValue::Bytes(None) },
                ];
                Mechanism { kind: ck::CKM_RSA_PKCS_OAEP, params: params("CK_RSA_PKCS_OAEP_PARAMS", fields) }
            }
            How::Sha1 => plain(ck::CKM_SHA_1),
            How::Sha256 => plain(ck::CKM_SHA256),
            How::Sha512 => plain(ck::CKM_SHA512),
            How::Unknown => plain(0x7777_7777),
        }
    }
}
