//! The calls that both tokens are asked, and how they are drawn.

use ha_token::{Attribute, Template, ck};
use proptest::prelude::*;

type Mech = ck::CK_MECHANISM_TYPE;

/// One call, or a few that belong together. Sessions, objects and blobs are named by a number, taken modulo how many there
/// are.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Open(bool),
    Close(u8),
    CloseAll,
    Info(u8),
    Login(u8, bool, bool),
    Context(u8, bool),
    Logout(u8),
    InitPin(u8, Vec<u8>),
    SetPin(u8, bool, Vec<u8>),
    Create(u8, Template),
    Generate(u8, Mech, Template),
    Pair(u8, Mech, Template, Template),
    Copy(u8, u8, Template),
    Destroy(u8, u8),
    Size(u8, u8),
    Get(u8, u8),
    Set(u8, u8, Template),
    Find(u8, Template),
    Sign { session: u8, mechanism: u8, key: u8, data: Vec<u8>, parts: bool },
    Verify { session: u8, mechanism: u8, key: u8, data: Vec<u8>, length: u8 },
    Round { session: u8, mechanism: u8, pair: u8, data: Vec<u8>, spoil: bool },
    Crypt { session: u8, mechanism: u8, key: u8, data: Vec<u8>, parts: bool, encrypt: bool },
    Begin(u8, u8, u8),
    Sized(u8, bool, u8),
    Digest(u8, Mech, Vec<u8>, Option<u8>),
    Wrap(u8, u8, u8, u8),
    Unwrap { session: u8, mechanism: u8, by: u8, blob: u8, spoil: bool, template: Template },
    Derive(u8, u8, u8, u8, Template),
    Random(u8, u8),
    Recover(u8),
}

impl Call {
    /// With the values of its templates, which `Debug` hides.
    pub(crate) fn told(&self) -> String {
        let templates = match self {
            Call::Create(_, t)
            | Call::Generate(_, _, t)
            | Call::Copy(_, _, t)
            | Call::Set(_, _, t)
            | Call::Find(_, t)
            | Call::Unwrap { template: t, .. }
            | Call::Derive(.., t) => vec![t],
            Call::Pair(_, _, a, b) => vec![a, b],
            _ => Vec::new(),
        };
        let value = |a: &Attribute| match &a.value {
            ha_token::Value::Bytes(b) => format!("{:x}={:02x?}", a.kind, b.as_slice()),
            ha_token::Value::Template(_) => format!("{:x}=template", a.kind),
        };
        let all = |t: &&Template| t.iter().map(value).collect::<Vec<_>>().join(" ");
        format!("{self:?} {:?}", templates.iter().map(all).collect::<Vec<_>>())
    }
}

pub(crate) const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
pub(crate) const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
pub(crate) const ED25519: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];

const FLAGS: [ck::CK_ATTRIBUTE_TYPE; 19] = [
    ck::CKA_TOKEN,
    ck::CKA_PRIVATE,
    ck::CKA_MODIFIABLE,
    ck::CKA_COPYABLE,
    ck::CKA_DESTROYABLE,
    ck::CKA_SENSITIVE,
    ck::CKA_EXTRACTABLE,
    ck::CKA_ENCRYPT,
    ck::CKA_DECRYPT,
    ck::CKA_SIGN,
    ck::CKA_VERIFY,
    ck::CKA_WRAP,
    ck::CKA_UNWRAP,
    ck::CKA_DERIVE,
    ck::CKA_TRUSTED,
    ck::CKA_WRAP_WITH_TRUSTED,
    ck::CKA_ALWAYS_AUTHENTICATE,
    ck::CKA_LOCAL,
    ck::CKA_SIGN_RECOVER,
];

fn attribute() -> impl Strategy<Value = Attribute> {
    let flag = (prop::sample::select(FLAGS.to_vec()), any::<bool>());
    let bytes = prop::collection::vec(any::<u8>(), 0..4);
    prop_oneof![
        30 => flag.prop_map(|(kind, on)| Attribute::bool(kind, on)),
        3 => bytes.clone().prop_map(|b| Attribute::bytes(ck::CKA_ID, b)),
        3 => bytes.clone().prop_map(|b| Attribute::bytes(ck::CKA_LABEL, b)),
        1 => bytes.clone().prop_map(|b| Attribute::bytes(ck::CKA_SUBJECT, b)),
        1 => bytes.clone().prop_map(|b| Attribute::bytes(ck::CKA_VALUE, b)),
        1 => bytes.prop_map(|b| Attribute::bytes(ck::CKA_CHECK_VALUE, b)),
        1 => Just(Attribute::bytes(ck::CKA_START_DATE, *b"20200101")),
        1 => Just(Attribute::bytes(ck::CKA_END_DATE, *b"2020")),
        1 => Just(Attribute::bytes(ck::CKA_SENSITIVE, [1, 0])),
        1 => Just(Attribute::bytes(ck::CKA_SIGN, [7])),
        1 => Just(Attribute::bool(ck::CKA_NEVER_EXTRACTABLE, true)),
        1 => Just(Attribute::bool(ck::CKA_ALWAYS_SENSITIVE, true)),
        1 => Just(Attribute::ulong(ck::CKA_KEY_GEN_MECHANISM, ck::CKM_AES_KEY_GEN)),
        1 => prop::sample::select(vec![16, 24, 32, 20]).prop_map(|n| Attribute::ulong(ck::CKA_VALUE_LEN, n)),
        1 => Just(Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY)),
        1 => Just(Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_AES)),
        1 => Just(Attribute::bytes(ck::CKA_UNIQUE_ID, *b"1")),
        1 => Just(Attribute::bytes(ck::CKA_APPLICATION, *b"app")),
        1 => prop::sample::select(vec![ck::CKM_AES_KEY_WRAP, ck::CKM_ECDSA, ck::CKM_SHA256_HMAC])
            .prop_map(|m| Attribute::ulong(ck::CKA_ALLOWED_MECHANISMS, m)),
        2 => any::<bool>().prop_map(|open| Attribute::template(
            ck::CKA_UNWRAP_TEMPLATE,
            vec![Attribute::bool(ck::CKA_SENSITIVE, !open), Attribute::bool(ck::CKA_EXTRACTABLE, open)]
        )),
        1 => any::<bool>().prop_map(|on| Attribute::template(
            ck::CKA_WRAP_TEMPLATE,
            vec![Attribute::bool(ck::CKA_SENSITIVE, on)]
        )),
    ]
}

/// Attributes of any kind.
fn extras(most: usize) -> impl Strategy<Value = Template> {
    prop::collection::vec(attribute(), 0..=most)
}

/// Attributes after some that make sense; now and then before them.
fn with(base: Vec<Template>) -> impl Strategy<Value = Template> {
    (prop::sample::select(base), extras(4), any::<bool>()).prop_map(|(base, extra, front)| {
        if front && extra.len() == 4 { [extra, base].concat() } else { [base, extra].concat() }
    })
}

fn class(class: ck::CK_OBJECT_CLASS, key_type: ck::CK_KEY_TYPE) -> Template {
    vec![Attribute::ulong(ck::CKA_CLASS, class), Attribute::ulong(ck::CKA_KEY_TYPE, key_type)]
}

fn secret(key_type: ck::CK_KEY_TYPE, length: u8) -> Template {
    let mut template = class(ck::CKO_SECRET_KEY, key_type);
    template.push(Attribute::bytes(ck::CKA_VALUE, (1..=length).collect::<Vec<u8>>()));
    template
}

fn open_secret(key_type: ck::CK_KEY_TYPE, length: u8) -> Template {
    let mut template = secret(key_type, length);
    template.extend([Attribute::bool(ck::CKA_SENSITIVE, false), Attribute::bool(ck::CKA_EXTRACTABLE, true)]);
    template.push(Attribute::bool(ck::CKA_DERIVE, true));
    template
}

fn created() -> Vec<Template> {
    let data =
        vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA), Attribute::bytes(ck::CKA_VALUE, *b"some data")];
    let certificate = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_CERTIFICATE),
        Attribute::ulong(ck::CKA_CERTIFICATE_TYPE, ck::CKC_X_509),
        Attribute::bytes(ck::CKA_SUBJECT, *b"subject"),
        Attribute::bytes(ck::CKA_VALUE, *b"certificate"),
    ];
    let mut scalar = class(ck::CKO_PRIVATE_KEY, ck::CKK_EC);
    scalar.push(Attribute::bytes(ck::CKA_EC_PARAMS, P256));
    scalar.push(Attribute::bytes(ck::CKA_VALUE, (1..=32).collect::<Vec<u8>>()));
    scalar.push(Attribute::bool(ck::CKA_DERIVE, true));
    scalar.push(Attribute::bool(ck::CKA_EXTRACTABLE, true));
    let mut public = class(ck::CKO_PUBLIC_KEY, ck::CKK_RSA);
    public.push(Attribute::bytes(ck::CKA_MODULUS, vec![0xab; 128]));
    public.push(Attribute::bytes(ck::CKA_PUBLIC_EXPONENT, [1, 0, 1]));
    let mut domain = class(ck::CKO_DOMAIN_PARAMETERS, ck::CKK_DH);
    domain.push(Attribute::bytes(ck::CKA_PRIME, *b"prime"));
    domain.push(Attribute::bytes(ck::CKA_BASE, *b"base"));
    vec![
        data,
        certificate,
        scalar,
        public,
        domain,
        secret(ck::CKK_AES, 32),
        open_secret(ck::CKK_AES, 16),
        open_secret(ck::CKK_AES, 24),
        open_secret(ck::CKK_GENERIC_SECRET, 32),
        open_secret(ck::CKK_GENERIC_SECRET, 20),
        secret(ck::CKK_SHA256_HMAC, 33),
        class(ck::CKO_SECRET_KEY, ck::CKK_AES),
        vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY)],
        class(ck::CKO_SECRET_KEY, 0x7777),
        Template::new(),
    ]
}

fn lengths() -> Vec<Template> {
    let open = [
        Attribute::bool(ck::CKA_EXTRACTABLE, true),
        Attribute::bool(ck::CKA_SENSITIVE, false),
        Attribute::ulong(ck::CKA_VALUE_LEN, 32),
    ];
    let mut all: Vec<Template> =
        [16, 24, 32, 64, 20, 0].map(|n| vec![Attribute::ulong(ck::CKA_VALUE_LEN, n)]).to_vec();
    all.push(open.to_vec());
    all.push(open.to_vec());
    all.push(Template::new());
    all
}

fn pairs() -> impl Strategy<Value = (Mech, Template)> {
    let curve = |params: &[u8]| vec![Attribute::bytes(ck::CKA_EC_PARAMS, params)];
    prop::sample::select(vec![
        (ck::CKM_EC_KEY_PAIR_GEN, curve(P256)),
        (ck::CKM_EC_KEY_PAIR_GEN, curve(P256)),
        (ck::CKM_EC_KEY_PAIR_GEN, curve(P384)),
        (ck::CKM_EC_KEY_PAIR_GEN, curve(&[1, 2, 3])),
        (ck::CKM_EC_KEY_PAIR_GEN, Template::new()),
        (ck::CKM_EC_EDWARDS_KEY_PAIR_GEN, curve(ED25519)),
        (ck::CKM_RSA_PKCS_KEY_PAIR_GEN, vec![Attribute::ulong(ck::CKA_MODULUS_BITS, 1024)]),
        (
            ck::CKM_RSA_PKCS_KEY_PAIR_GEN,
            vec![
                Attribute::ulong(ck::CKA_MODULUS_BITS, 1024),
                Attribute::bytes(ck::CKA_PUBLIC_EXPONENT, [1, 0, 1]),
            ],
        ),
        (ck::CKM_RSA_PKCS_KEY_PAIR_GEN, Template::new()),
        (0x7777_7777, Template::new()),
    ])
}

fn unwrapped() -> Vec<Template> {
    let kinds = [
        (ck::CKO_SECRET_KEY, ck::CKK_AES),
        (ck::CKO_SECRET_KEY, ck::CKK_GENERIC_SECRET),
        (ck::CKO_PRIVATE_KEY, ck::CKK_EC),
        (ck::CKO_PRIVATE_KEY, ck::CKK_RSA),
        (ck::CKO_DATA, ck::CKK_RSA),
    ];
    let plain = kinds.map(|(c, k)| class(c, k));
    let flags = |sensitive, extractable| {
        [Attribute::bool(ck::CKA_SENSITIVE, sensitive), Attribute::bool(ck::CKA_EXTRACTABLE, extractable)]
    };
    let mut all = plain.to_vec();
    all.extend(plain.iter().map(|t| [t.clone(), flags(false, true).to_vec()].concat()));
    all.extend(plain.iter().map(|t| [t.clone(), flags(true, false).to_vec()].concat()));
    all
}

fn derived() -> Vec<Template> {
    let of = |key_type, length: Option<_>| {
        let mut template = class(ck::CKO_SECRET_KEY, key_type);
        template.extend(length.map(|n| Attribute::ulong(ck::CKA_VALUE_LEN, n)));
        template
            .extend([Attribute::bool(ck::CKA_SENSITIVE, false), Attribute::bool(ck::CKA_EXTRACTABLE, true)]);
        template
    };
    vec![
        of(ck::CKK_GENERIC_SECRET, None),
        of(ck::CKK_GENERIC_SECRET, Some(16)),
        of(ck::CKK_GENERIC_SECRET, Some(99)),
        of(ck::CKK_AES, Some(16)),
        of(ck::CKK_AES, None),
        of(ck::CKK_EC, None),
    ]
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 1..70),
        prop::sample::select(vec![16, 32, 48, 117, 118, 128, 200]).prop_map(|n| vec![7; n]),
    ]
}

/// A call of any kind.
pub(crate) fn call() -> impl Strategy<Value = Call> {
    let (s, o) = (any::<u8>(), any::<u8>());
    let secret_gen = prop::sample::select(vec![
        ck::CKM_AES_KEY_GEN,
        ck::CKM_GENERIC_SECRET_KEY_GEN,
        ck::CKM_AES_KEY_GEN,
        ck::CKM_SHA256,
    ]);
    let hash = prop::sample::select(vec![
        ck::CKM_SHA_1,
        ck::CKM_SHA224,
        ck::CKM_SHA256,
        ck::CKM_SHA384,
        ck::CKM_SHA512,
        ck::CKM_AES_ECB,
    ]);
    let pin =
        prop::sample::select(vec![b"1234".to_vec(), b"new pin".to_vec(), b"123".to_vec(), vec![b'1'; 256]]);
    let objects = prop_oneof![
        6 => (s, with(created())).prop_map(|(s, t)| Call::Create(s, t)),
        4 => (s, secret_gen, with(lengths())).prop_map(|(s, m, t)| Call::Generate(s, m, t)),
        4 => (s, pairs(), extras(3), extras(4)).prop_map(|(s, (m, base), a, b)| Call::Pair(s, m, [base, a].concat(), b)),
        3 => (s, o, extras(3)).prop_map(|(s, o, t)| Call::Copy(s, o, t)),
        2 => (s, o).prop_map(|(s, o)| Call::Destroy(s, o)),
        1 => (s, o).prop_map(|(s, o)| Call::Size(s, o)),
        6 => (s, o).prop_map(|(s, o)| Call::Get(s, o)),
        4 => (s, o, extras(2)).prop_map(|(s, o, t)| Call::Set(s, o, t)),
        4 => (s, extras(2)).prop_map(|(s, t)| Call::Find(s, t)),
    ];
    let sessions = prop_oneof![
        any::<bool>().prop_map(Call::Open),
        s.prop_map(Call::Close),
        s.prop_map(Call::Info),
        (s, any::<bool>(), any::<bool>()).prop_map(|(s, so, right)| Call::Login(s, so, right)),
        s.prop_map(|s| Call::Login(s, false, true)),
        (s, any::<bool>()).prop_map(|(s, right)| Call::Context(s, right)),
        s.prop_map(Call::Logout),
        (s, pin.clone()).prop_map(|(s, p)| Call::InitPin(s, p)),
        (s, any::<bool>(), pin).prop_map(|(s, right, p)| Call::SetPin(s, right, p)),
        Just(Call::CloseAll),
    ];
    let uses = prop_oneof![
        (s, any::<u8>(), o, data(), any::<bool>()).prop_map(|(session, mechanism, key, data, parts)| {
            Call::Sign { session, mechanism, key, data, parts }
        }),
        (s, any::<u8>(), o, data(), any::<u8>()).prop_map(|(session, mechanism, key, data, length)| {
            Call::Verify { session, mechanism, key, data, length }
        }),
        (s, any::<u8>(), o, data(), any::<bool>()).prop_map(|(session, mechanism, pair, data, spoil)| {
            Call::Round { session, mechanism, pair, data, spoil }
        }),
        (s, any::<u8>(), o, data(), any::<bool>(), any::<bool>()).prop_map(
            |(session, mechanism, key, data, parts, encrypt)| Call::Crypt {
                session,
                mechanism,
                key,
                data,
                parts,
                encrypt
            }
        ),
        (s, any::<u8>(), o).prop_map(|(s, m, o)| Call::Begin(s, m, o)),
        (s, any::<bool>(), any::<u8>()).prop_map(|(s, q, n)| Call::Sized(s, q, n)),
        (s, hash, data(), prop::option::of(o)).prop_map(|(s, m, d, k)| Call::Digest(s, m, d, k)),
        (s, any::<u8>(), o, o).prop_map(|(s, m, a, b)| Call::Wrap(s, m, a, b)),
        (s, any::<u8>(), o, o).prop_map(|(s, m, a, b)| Call::Wrap(s, m, a, b)),
        (s, any::<u8>(), o, o, prop::bool::weighted(0.2), with(unwrapped())).prop_map(
            |(session, mechanism, by, blob, spoil, template)| Call::Unwrap {
                session,
                mechanism,
                by,
                blob,
                spoil,
                template
            }
        ),
        (s, any::<u8>(), o, o, with(derived())).prop_map(|(s, m, a, b, t)| Call::Derive(s, m, a, b, t)),
        (s, any::<u8>()).prop_map(|(s, n)| Call::Random(s, n)),
        s.prop_map(Call::Recover),
    ];
    prop_oneof![6 => objects, 1 => sessions, 6 => uses]
}
