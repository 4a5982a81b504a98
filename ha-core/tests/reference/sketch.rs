//! Which calls are drawn: what the calls before have probably made is known here, so that most of them make sense.

use ha_token::{Attribute, OpKind, Template, UserType, ck};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;
use proptest_state_machine::ReferenceStateMachine;

use crate::calls::{Call, Data, Extra, How, Id, Kind, Pin, Room, Signature, Sort};

/// An object that there should be.
#[derive(Clone, Copy, Debug)]
struct Known {
    id: Id,
    kind: Kind,
    /// The session that it goes with; none where it is on the token.
    owner: Option<Id>,
    private: bool,
}

/// What there should be. It need not be right: it only says what is worth a try.
#[derive(Clone, Debug)]
pub struct Sketch {
    next: Id,
    sessions: Vec<Id>,
    /// Sessions and objects that are gone.
    gone: Vec<Id>,
    objects: Vec<Known>,
    active: Vec<(Id, OpKind)>,
    searching: Vec<Id>,
    user: Option<UserType>,
}

impl Sketch {
    /// One session, and the user logged in.
    pub const FIRST: Id = 0;

    fn session(&self) -> BoxedStrategy<Id> {
        let mut all: Vec<Id> = self.sessions.iter().flat_map(|s| [*s; 12]).collect();
        all.extend(self.gone.last());
        all.push(Id::MAX);
        select(all).boxed()
    }

    fn object(&self, fits: impl Fn(&Known) -> bool) -> BoxedStrategy<(Id, Kind)> {
        let mut all: Vec<_> =
            self.objects.iter().filter(|o| fits(o)).flat_map(|o| [(o.id, o.kind); 12]).collect();
        all.extend(self.gone.last().map(|id| (*id, Kind::Nothing)));
        all.push((Id::MAX, Kind::Nothing));
        select(all).boxed()
    }

    fn add(&mut self, id: Id, s: Id, kind: Kind, template: &Template) {
        let is = |a: ck::CK_ATTRIBUTE_TYPE| {
            template.iter().rev().find(|t| t.kind == a).and_then(|t| t.value.as_bool())
        };
        let on_token = is(ck::CKA_TOKEN) == Some(true);
        let private = is(ck::CKA_PRIVATE)
            .unwrap_or(!matches!(kind, Kind::Certificate | Kind::EcPublic | Kind::RsaPublic));
        self.objects.push(Known { id, kind, owner: (!on_token).then_some(s), private });
        self.next = self.next.max(id + 1);
    }

    fn forget(&mut self, gone: impl Fn(&Known) -> bool) {
        self.gone.extend(self.objects.extract_if(.., |o| gone(o)).map(|o| o.id));
    }

    fn close(&mut self, s: Id) {
        self.sessions.retain(|one| *one != s);
        self.active.retain(|(one, _)| *one != s);
        self.searching.retain(|one| *one != s);
        self.forget(|o| o.owner == Some(s));
        self.gone.push(s);
        if self.sessions.is_empty() {
            self.user = None;
        }
    }
}

const FLAGS: [ck::CK_ATTRIBUTE_TYPE; 17] = [
    ck::CKA_TOKEN,
    ck::CKA_TOKEN,
    ck::CKA_TOKEN,
    ck::CKA_PRIVATE,
    ck::CKA_PRIVATE,
    ck::CKA_MODIFIABLE,
    ck::CKA_COPYABLE,
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
];

fn attribute() -> BoxedStrategy<Attribute> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..4);
    prop_oneof![
        40 => (select(&FLAGS[..]), any::<bool>()).prop_map(|(kind, on)| Attribute::bool(kind, on)),
        4 => bytes().prop_map(|b| Attribute::bytes(ck::CKA_ID, b)),
        1 => bytes().prop_map(|b| Attribute::bytes(ck::CKA_SUBJECT, b)),
        1 => bytes().prop_map(|b| Attribute::bytes(ck::CKA_CHECK_VALUE, b)),
        1 => bytes().prop_map(|b| Attribute::bytes(ck::CKA_APPLICATION, b)),
        1 => Just(Attribute::bytes(ck::CKA_START_DATE, *b"20200101")),
        1 => Just(Attribute::bytes(ck::CKA_SENSITIVE, [1, 0])),
        1 => Just(Attribute::bytes(ck::CKA_SIGN, [7])),
        1 => Just(Attribute::bool(ck::CKA_LOCAL, true)),
        1 => Just(Attribute::bool(ck::CKA_DESTROYABLE, false)),
        1 => Just(Attribute::bool(ck::CKA_WRAP_WITH_TRUSTED, true)),
        1 => Just(Attribute::bool(ck::CKA_ALWAYS_AUTHENTICATE, true)),
        1 => Just(Attribute::ulong(ck::CKA_KEY_TYPE, ck::CKK_AES)),
        1 => Just(Attribute::ulong(ck::CKA_VALUE_LEN, 16)),
        1 => select(vec![ck::CKM_AES_KEY_WRAP, ck::CKM_ECDSA, ck::CKM_SHA256_HMAC])
            .prop_map(|m| Attribute::ulong(ck::CKA_ALLOWED_MECHANISMS, m)),
    ]
    .boxed()
}

fn extra(most: usize) -> BoxedStrategy<Extra> {
    prop::collection::vec(attribute(), 0..=most).prop_map(|all| Extra(each_once(all))).boxed()
}

/// Each attribute as it was said last.
pub fn each_once(mut template: Template) -> Template {
    let all = template.clone();
    let mut n = 0;
    template.retain(|a| {
        n += 1;
        !all[n..].iter().any(|b| b.kind == a.kind)
    });
    template
}

/// What an object is made with: often open to everything, which most calls need.
fn made() -> BoxedStrategy<Extra> {
    let on = |kinds: &[ck::CK_ATTRIBUTE_TYPE]| -> Template {
        kinds.iter().map(|k| Attribute::bool(*k, true)).collect()
    };
    let open = on(&[ck::CKA_EXTRACTABLE, ck::CKA_TOKEN]);
    let open = [open, vec![Attribute::bool(ck::CKA_SENSITIVE, false)]].concat();
    let kept = on(&[ck::CKA_TOKEN]);
    let public = [kept.clone(), vec![Attribute::bool(ck::CKA_PRIVATE, false)]].concat();
    (select(vec![Template::new(), Template::new(), open, kept, public]), extra(2))
        .prop_map(|(base, extra)| Extra(each_once([base, extra.0].concat())))
        .boxed()
}

fn created() -> BoxedStrategy<Kind> {
    prop_oneof![
        3 => Just(Kind::Data),
        2 => Just(Kind::Certificate),
        3 => select(vec![16, 32, 32, 20]).prop_map(Kind::Aes),
        3 => select(vec![32, 20, 64, 1, 0]).prop_map(Kind::Generic),
        2 => Just(Kind::EcPublic),
        3 => Just(Kind::EcPrivate),
        1 => Just(Kind::RsaPublic),
        2 => Just(Kind::RsaPrivate),
        1 => Just(Kind::Nothing),
    ]
    .boxed()
}

fn data() -> BoxedStrategy<Data> {
    select(vec![0, 1, 15, 16, 31, 32, 32, 33, 64, 117, 118, 128, 1000]).prop_map(Data).boxed()
}

fn room() -> BoxedStrategy<Room> {
    prop_oneof![
        4 => Just(Room::Bytes(2000)),
        2 => Just(Room::Query),
        3 => select(vec![0, 1, 15, 16, 19, 20, 31, 32, 63, 64, 127, 128]).prop_map(Room::Bytes),
    ]
    .boxed()
}

fn signature() -> BoxedStrategy<Signature> {
    prop_oneof![
        3 => Just(Signature::Own),
        3 => Just(Signature::Others),
        1 => Just(Signature::Spoiled),
        1 => select(vec![0, 32, 63, 64, 128]).prop_map(Signature::Junk),
    ]
    .boxed()
}

fn pin() -> BoxedStrategy<Pin> {
    select(vec![Pin::User, Pin::User, Pin::User, Pin::So, Pin::Wrong, Pin::Short]).boxed()
}

fn any_kind() -> BoxedStrategy<OpKind> {
    select(vec![OpKind::Sign, OpKind::Verify, OpKind::Encrypt, OpKind::Decrypt, OpKind::Digest]).boxed()
}

impl ReferenceStateMachine for Sketch {
    type State = Sketch;
    type Transition = Call;

    fn init_state() -> BoxedStrategy<Sketch> {
        Just(Sketch {
            next: 1,
            sessions: vec![Sketch::FIRST],
            gone: Vec::new(),
            objects: Vec::new(),
            active: Vec::new(),
            searching: Vec::new(),
            user: Some(UserType::User),
        })
        .boxed()
    }

    fn transitions(state: &Sketch) -> BoxedStrategy<Call> {
        let s = || state.session();
        let next = state.next;
        let any_object = || state.object(|_| true).prop_map(|(o, _)| o);
        let signer = || state.object(|o| o.kind.sort() != Sort::None);
        let secret = || state.object(|o| o.kind.sort() == Sort::Secret).prop_map(|(o, _)| o);
        let by = || {
            prop_oneof![
                1 => Just(Extra::default()),
                2 => created().prop_map(|kind| Extra(kind.class())),
                4 => extra(2),
            ]
        };
        let how = |signs: bool, kind: Kind| {
            let sort = kind.sort();
            select(if signs { How::signs(sort) } else { How::encrypts(sort) })
        };
        let digest = select(vec![How::Sha1, How::Sha256, How::Sha512, How::Sha256, How::Unknown]);

        let mut all: Vec<(u32, BoxedStrategy<Call>)> = vec![
            // Sessions.
            (4, any::<bool>().prop_map(move |read_write| Call::Open { id: next, read_write }).boxed()),
            (3, s().prop_map(Call::Close).boxed()),
            (1, Just(Call::CloseAll).boxed()),
            (2, s().prop_map(Call::Info).boxed()),
            (1, s().prop_map(Call::Logout).boxed()),
            (1, s().prop_map(Call::State).boxed()),
            (1, (s(), any::<u8>()).prop_map(|(s, count)| Call::Random { s, count }).boxed()),
            (1, s().prop_map(Call::Seed).boxed()),
            (
                2,
                (
                    s(),
                    select(vec![UserType::User, UserType::User, UserType::So, UserType::ContextSpecific]),
                    pin(),
                )
                    .prop_map(|(s, user, pin)| Call::Login { s, user, pin })
                    .boxed(),
            ),
            (1, (s(), pin()).prop_map(|(s, pin)| Call::InitPin { s, pin }).boxed()),
            (1, (s(), pin(), pin()).prop_map(|(s, old, new)| Call::SetPin { s, old, new }).boxed()),
            // Objects.
            (
                14,
                (s(), created(), made())
                    .prop_map(move |(s, kind, extra)| Call::Create { id: next, s, kind, extra })
                    .boxed(),
            ),
            (
                4,
                (s(), select(vec![Kind::Aes(32), Kind::Aes(16), Kind::Generic(32), Kind::Aes(17)]), made())
                    .prop_map(move |(s, kind, extra)| Call::Generate { id: next, s, kind, extra })
                    .boxed(),
            ),
            (
                4,
                (
                    s(),
                    prop_oneof![8 => Just(Kind::EcPrivate), 2 => Just(Kind::Ed), 1 => Just(Kind::RsaPrivate)],
                    made(),
                    made(),
                )
                    .prop_map(move |(s, kind, a, b)| Call::Pair {
                        public: next,
                        private: next + 1,
                        s,
                        kind,
                        extras: [a, b],
                    })
                    .boxed(),
            ),
            (
                6,
                (s(), any_object(), extra(3))
                    .prop_map(move |(s, of, extra)| Call::Copy { id: next, s, of, extra })
                    .boxed(),
            ),
            (5, (s(), any_object()).prop_map(|(s, o)| Call::Destroy { s, o }).boxed()),
            (1, (s(), any_object()).prop_map(|(s, o)| Call::Size { s, o }).boxed()),
            (8, (s(), any_object()).prop_map(|(s, o)| Call::Get { s, o }).boxed()),
            (8, (s(), any_object(), extra(2)).prop_map(|(s, o, extra)| Call::Set { s, o, extra }).boxed()),
            (2, (s(), any_object()).prop_map(|(s, o)| Call::Rename { s, o }).boxed()),
            (8, (s(), by()).prop_map(|(s, by)| Call::Find { s, by }).boxed()),
            (3, (s(), by()).prop_map(|(s, by)| Call::FindInit { s, by }).boxed()),
            // Operations.
            (
                4,
                (s(), digest)
                    .prop_map(|(s, how)| Call::Begin { s, kind: OpKind::Digest, how, key: 0 })
                    .boxed(),
            ),
            (1, (s(), any_kind()).prop_map(|(s, kind)| Call::Cancel { s, kind }).boxed()),
            (1, s().prop_map(|s| Call::CancelAll { s }).boxed()),
            (
                1,
                (s(), any_kind(), data(), room())
                    .prop_map(|(s, kind, data, room)| Call::OneShot { s, kind, data, room })
                    .boxed(),
            ),
            (1, (s(), any_kind(), room()).prop_map(|(s, kind, room)| Call::Final { s, kind, room }).boxed()),
            (
                3,
                (s(), secret(), secret(), any::<bool>(), room())
                    .prop_map(|(s, by, key, pad, room)| Call::Wrap { s, by, key, pad, room })
                    .boxed(),
            ),
            (
                2,
                (
                    s(),
                    secret(),
                    select(vec![Kind::Aes(32), Kind::Generic(32), Kind::EcPrivate]),
                    any::<bool>(),
                    made(),
                )
                    .prop_map(move |(s, by, kind, pad, extra)| Call::Unwrap {
                        id: next,
                        s,
                        by,
                        pad,
                        kind,
                        extra,
                    })
                    .boxed(),
            ),
            (
                2,
                (s(), secret(), made())
                    .prop_map(move |(s, base, extra)| Call::Derive { id: next, s, base, extra })
                    .boxed(),
            ),
        ];
        let begin =
            (s(), select(vec![OpKind::Sign, OpKind::Verify, OpKind::Encrypt, OpKind::Decrypt]), signer())
                .prop_flat_map(move |(s, kind, (key, of))| {
                    let how = how(matches!(kind, OpKind::Sign | OpKind::Verify), of);
                    how.prop_map(move |how| Call::Begin { s, kind, how, key })
                });
        all.push((14, begin.boxed()));
        let sign =
            (s(), signer(), data(), any::<bool>()).prop_flat_map(move |(s, (key, of), data, parts)| {
                how(true, of).prop_map(move |how| Call::Sign { s, how, key, data, parts })
            });
        all.push((10, sign.boxed()));
        let check = (s(), signer(), data(), signature(), any::<bool>()).prop_flat_map(
            move |(s, (key, of), data, signature, parts)| {
                how(true, of).prop_map(move |how| Call::Check { s, how, key, data, signature, parts })
            },
        );
        all.push((6, check.boxed()));
        if state.user.is_none() {
            let login = |s| Call::Login { s, user: UserType::User, pin: Pin::User };
            all.push((12, s().prop_map(login).boxed()));
            all.push((3, s().prop_map(|s| Call::Login { s, user: UserType::So, pin: Pin::So }).boxed()));
        }
        if state.sessions.is_empty() {
            all.push((60, Just(Call::Open { id: next, read_write: true }).boxed()));
        }
        if !state.searching.is_empty() {
            let searching = || select(state.searching.clone());
            all.push((
                12,
                (searching(), select(vec![0, 1, 2, 100]))
                    .prop_map(|(s, most)| Call::FindNext { s, most })
                    .boxed(),
            ));
            all.push((6, searching().prop_map(|s| Call::FindFinal { s }).boxed()));
        }
        for (s, kind) in state.active.iter().copied() {
            let one_shot =
                (data(), room()).prop_map(move |(data, room)| Call::OneShot { s, kind, data, room });
            let update = (data(), room()).prop_map(move |(data, room)| Call::Update { s, kind, data, room });
            let last = room().prop_map(move |room| Call::Final { s, kind, room });
            match kind {
                OpKind::Verify => {
                    let whole = (data(), signature()).prop_map(move |(data, signature)| Call::Verify {
                        s,
                        data,
                        signature,
                    });
                    all.push((12, whole.boxed()));
                    all.push((
                        5,
                        signature().prop_map(move |signature| Call::VerifyFinal { s, signature }).boxed(),
                    ));
                }
                _ => {
                    all.push((14, one_shot.boxed()));
                    all.push((8, last.boxed()));
                }
            }
            all.push((14, update.boxed()));
            if kind == OpKind::Digest {
                all.push((4, secret().prop_map(move |key| Call::DigestKey { s, key }).boxed()));
            }
        }
        Union::new_weighted(all).boxed()
    }

    fn apply(mut state: Sketch, call: &Call) -> Sketch {
        match call {
            Call::Open { id, .. } => {
                state.sessions.push(*id);
                state.next = state.next.max(id + 1);
            }
            Call::Close(s) => state.close(*s),
            Call::CloseAll => {
                for s in state.sessions.clone() {
                    state.close(s);
                }
            }
            Call::Login { user, pin, .. } => match (user, pin) {
                (UserType::User, Pin::User) | (UserType::So, Pin::So) if state.user.is_none() => {
                    state.user = Some(*user);
                }
                _ => {}
            },
            Call::Logout(_) => {
                state.user = None;
                state.active.clear();
                state.searching.clear();
                state.forget(|o| o.private && o.owner.is_some());
            }
            Call::Create { id, s, kind, extra } | Call::Generate { id, s, kind, extra } => {
                state.add(*id, *s, *kind, &extra.0);
            }
            Call::Pair { public, private, s, kind, extras: [a, b] } => {
                state.add(*public, *s, *kind, &a.0);
                state.add(*private, *s, *kind, &b.0);
            }
            Call::Copy { id, s, of, extra } => {
                if let Some(of) = state.objects.iter().find(|o| o.id == *of).copied() {
                    state.add(*id, *s, of.kind, &extra.0);
                }
            }
            Call::Unwrap { id, s, kind, extra, .. } => state.add(*id, *s, *kind, &extra.0),
            Call::Derive { id, s, extra, .. } => state.add(*id, *s, Kind::Generic(32), &extra.0),
            Call::Destroy { o, .. } => state.forget(|known| known.id == *o),
            Call::FindInit { s, .. } => state.searching.push(*s),
            Call::FindFinal { s } => state.searching.retain(|one| one != s),
            Call::Begin { s, kind, .. } => state.active.push((*s, *kind)),
            Call::Cancel { s, kind } => state.active.retain(|one| *one != (*s, *kind)),
            Call::CancelAll { s } => state.active.retain(|(one, _)| one != s),
            Call::OneShot { s, kind, room: Room::Bytes(2000), .. }
            | Call::Final { s, kind, room: Room::Bytes(2000) } => {
                state.active.retain(|one| *one != (*s, *kind));
            }
            Call::Verify { s, .. } | Call::VerifyFinal { s, .. } => {
                state.active.retain(|one| *one != (*s, OpKind::Verify));
            }
            _ => {}
        }
        state
    }
}
