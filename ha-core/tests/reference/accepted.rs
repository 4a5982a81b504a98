//! Where a group answers otherwise than one SoftHSM token, on purpose.

use ha_token::ck;

/// What is done after a difference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Then {
    /// Nothing: it makes none later.
    GoOn,
    /// What one side alone made or began is taken back.
    TakeBack,
    /// What follows would differ for that reason alone.
    End,
}

use Then::{End, GoOn, TakeBack};

/// The call as it is printed, SoftHSM's answer and ours (a `*` stands for anything), what is done then, and why.
pub const ANSWERS: &[(&str, &str, &str, Then, &str)] = &[
    (
        "*",
        "CKR_OBJECT_HANDLE_INVALID",
        "CKR_KEY_HANDLE_INVALID",
        GoOn,
        "the standard has a code of its own for keys",
    ),
    ("Begin *", "CKR_OPERATION_ACTIVE", "*", TakeBack, ONE_OPERATION),
    ("FindInit *", "CKR_OPERATION_ACTIVE", "*", TakeBack, ONE_OPERATION),
    ("Sign *", "CKR_OPERATION_ACTIVE", "*", GoOn, ONE_OPERATION),
    ("Check *", "CKR_OPERATION_ACTIVE", "*", GoOn, ONE_OPERATION),
    ("Find*", "CKR_GENERAL_ERROR", "*", End, LEFT_OVER),
    ("Find *", "CKR_OPERATION_ACTIVE", "*", GoOn, ONE_OPERATION),
    ("Cancel *", "CKR_ARGUMENTS_BAD", "*", End, "PKCS#11 3.0, which SoftHSM does not have"),
    ("CancelAll *", "CKR_FUNCTION_NOT_SUPPORTED", "*", End, "PKCS#11 3.0, which SoftHSM does not have"),
    (
        "Logout*",
        "ok*",
        "CKR_USER_NOT_LOGGED_IN",
        GoOn,
        "the standard has a code for it, which SoftHSM does not use",
    ),
    ("* kind: Ed*", "ok*", "CKR_KEY_NOT_WRAPPABLE", TakeBack, "SoftHSM wraps no Ed25519 key"),
    ("* kind: Generic(0)*", "ok*", "CKR_KEY_NOT_WRAPPABLE", TakeBack, ODD),
    ("* kind: Generic(1)*", "ok*", "CKR_KEY_NOT_WRAPPABLE", TakeBack, ODD),
    ("* kind: Generic(20)*", "ok*", "CKR_KEY_NOT_WRAPPABLE", TakeBack, ODD),
    ("* kind: Nothing*", "ok*", "CKR_KEY_NOT_WRAPPABLE", TakeBack, ODD),
    ("* kind: Aes(20)*", "ok*", "CKR_KEY_NOT_WRAPPABLE", TakeBack, ODD),
    ("Create *210=[01]*", "ok*", "CKR_TEMPLATE_INCONSISTENT", TakeBack, TRUSTED),
    ("Generate *210=[01]*", "ok*", "CKR_TEMPLATE_INCONSISTENT", TakeBack, TRUSTED),
    ("Pair *210=[01]*", "ok*", "CKR_TEMPLATE_INCONSISTENT", TakeBack, TRUSTED),
    ("Create *40000600=*", "ok*", "CKR_TEMPLATE_INCONSISTENT", TakeBack, UNPROVEN),
    ("Generate *40000600=*", "ok*", "CKR_TEMPLATE_INCONSISTENT", TakeBack, UNPROVEN),
    ("Pair *40000600=*", "ok*", "CKR_TEMPLATE_INCONSISTENT", TakeBack, UNPROVEN),
    ("Create * as nobody", "ok*", "CKR_USER_NOT_LOGGED_IN", TakeBack, NO_GROUP_KEYS),
    ("Generate * as nobody", "ok*", "CKR_USER_NOT_LOGGED_IN", TakeBack, NO_GROUP_KEYS),
    ("Pair * as nobody", "*", "CKR_USER_NOT_LOGGED_IN", TakeBack, NO_GROUP_KEYS),
    ("Copy * as nobody", "ok*", "CKR_USER_NOT_LOGGED_IN", TakeBack, NO_GROUP_KEYS),
    ("Copy * as so", "ok*", "CKR_USER_NOT_LOGGED_IN", TakeBack, NO_GROUP_KEYS),
    ("Copy * as user", "ok*", "CKR_KEY_NOT_WRAPPABLE", TakeBack, ODD),
    ("Generate * as nobody", "CKR_*", "CKR_USER_NOT_LOGGED_IN", GoOn, TWO_MISTAKES),
    ("Generate * as so", "ok*", "CKR_USER_NOT_LOGGED_IN", TakeBack, NO_GROUP_KEYS),
    ("Create * as so", "ok*", "CKR_USER_NOT_LOGGED_IN", TakeBack, NO_GROUP_KEYS),
    ("Pair * as so", "ok*", "CKR_USER_NOT_LOGGED_IN", TakeBack, NO_GROUP_KEYS),
    ("Set *103=*", "ok*", "CKR_ATTRIBUTE_READ_ONLY", End, SENSITIVE),
    ("Copy *103=*", "ok*", "CKR_ATTRIBUTE_READ_ONLY", TakeBack, SENSITIVE),
    ("Set *90=*", "ok*", "CKR_ATTRIBUTE_READ_ONLY", End, "the check value tells what the key is"),
    ("Find *103=*", "ok*", "ok*", GoOn, SENSITIVE),
    (
        "Copy *162=[00]*",
        "CKR_ATTRIBUTE_READ_ONLY",
        "ok*",
        End,
        "a member may extract a session key, to copy it, and the group alone",
    ),
    ("Pair *171=[00]*", "ok*", "CKR_ACTION_PROHIBITED", TakeBack, HALF),
    ("Unwrap *", "CKR_GENERAL_ERROR", "CKR_ATTRIBUTE_VALUE_INVALID", GoOn, TWO_MISTAKES_AND),
    ("Unwrap *", "CKR_GENERAL_ERROR", "CKR_TEMPLATE_INCONSISTENT", GoOn, TWO_MISTAKES_AND),
    ("Update *", "*CKR_*", "*CKR_OBJECT_HANDLE_INVALID*", End, DESTROYED),
    ("OneShot *", "*CKR_*", "*CKR_OBJECT_HANDLE_INVALID*", End, DESTROYED),
    ("Final *", "*CKR_*", "*CKR_OBJECT_HANDLE_INVALID*", End, DESTROYED),
    ("VerifyFinal *", "CKR_OPERATION_NOT_INITIALIZED", "CKR_OBJECT_HANDLE_INVALID", End, DESTROYED),
    ("*110=*", "*", "CKR_GENERAL_ERROR", TakeBack, DATES),
    ("Unwrap *", "CKR_GENERAL_ERROR", "CKR_DEVICE_ERROR", GoOn, NOBODY_ELSE),
    ("Create *", "CKR_*", "CKR_*", GoOn, TWO_MISTAKES),
    ("Generate *", "CKR_*", "CKR_*", GoOn, TWO_MISTAKES),
    ("Pair *", "CKR_*", "CKR_*", GoOn, TWO_MISTAKES),
    ("Copy *", "CKR_*", "CKR_*", GoOn, TWO_MISTAKES),
    ("Unwrap *", "CKR_*", "CKR_*", GoOn, TWO_MISTAKES),
    ("Derive *", "CKR_*", "CKR_*", GoOn, TWO_MISTAKES),
    ("Wrap *", "CKR_*", "CKR_*", GoOn, TWO_MISTAKES),
    ("Set *", "CKR_*", "CKR_*", GoOn, TWO_MISTAKES),
    ("SetPin *", "CKR_*", "CKR_*", GoOn, TWO_MISTAKES),
];

const ONE_OPERATION: &str = "SoftHSM has one operation in a session; the standard allows one of each kind";
const ODD: &str = "what wraps on SoftHSM pads such lengths, and a copy would not be known to be one";
const TRUSTED: &str = "the group's own key, made without a ceremony, is not trusted, and may not wrap it";
const UNPROVEN: &str = "a key that may do nothing by which it could be proven is refused";
const NO_GROUP_KEYS: &str = "keys are copied under keys of the group, which are private";
const LEFT_OVER: &str =
    "SoftHSM cannot read what is left of session objects that it could not make; another member is asked";
const SENSITIVE: &str = "every key that may not be extracted is sensitive, and cannot be told so again";
const HALF: &str = "a pair of which one half is on the token is made there, and the other half copied";
const DATES: &str =
    "SoftHSM keeps the dates of private objects so that it cannot read them: nothing can be copied then";
const TWO_MISTAKES_AND: &str = "two mistakes; of what does not unwrap SoftHSM says nothing but that";
const DESTROYED: &str = "an answer that the group begins anew for, and the key is destroyed since";
const NOBODY_ELSE: &str =
    "an answer that says nothing is believed when two members give it, and a session key is on one";
const TWO_MISTAKES: &str = "two mistakes in one call: which one is told is open";

/// Whether an answer of SoftHSM's or ours says that something is wrong with a token, a session or a login: no mistake of a
/// template's or a key's.
fn is_grave(answer: &str) -> bool {
    ["DEVICE", "GENERAL", "FUNCTION_FAILED", "SESSION_HANDLE", "SESSION_CLOSED", "MEMORY"]
        .iter()
        .any(|w| answer.contains(w))
}

/// The attribute, SoftHSM's value and ours, as they are printed, and why.
pub const ATTRIBUTES: &[(ck::CK_ATTRIBUTE_TYPE, &str, &str, &str)] = &[
    (ck::CKA_UNIQUE_ID, "", "*", "SoftHSM has none; an object of a group has its identifier in the ledger"),
    (ck::CKA_SENSITIVE, "00", "01", "every key that may not be extracted is sensitive"),
    (ck::CKA_ALWAYS_SENSITIVE, "00", "01", "made so from the start, as above"),
    (ck::CKA_ALWAYS_SENSITIVE, "01", "00", "a copy was unwrapped"),
    (ck::CKA_VALUE, "*", "sensitive", "a key is sensitive unless it was asked not to be"),
    (ck::CKA_LOCAL, "01", "00", HALF),
    (ck::CKA_KEY_GEN_MECHANISM, "*", "ffffffffffffffff", HALF),
    (ck::CKA_NEVER_EXTRACTABLE, "01", "00", "a copy was unwrapped"),
];

/// Whether a text is as a pattern says.
fn like(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((begin, rest)) => text
            .strip_prefix(begin)
            .is_some_and(|text| (0..=text.len()).any(|n| text.get(n..).is_some_and(|text| like(rest, text)))),
    }
}

/// What is done after these answers, if they may differ so.
pub fn answers(call: &str, theirs: &str, ours: &str) -> Option<Then> {
    let fits = |(c, t, o, _, why): &&(&str, &str, &str, Then, &str)| {
        let grave = *why == TWO_MISTAKES && (is_grave(theirs) || is_grave(ours));
        like(c, call) && like(t, theirs) && like(o, ours) && !grave
    };
    let row = ANSWERS.iter().find(fits);
    row.map(|(.., then, _)| *then)
}

/// Whether an attribute may have these values.
pub fn attribute(kind: &str, theirs: &str, ours: &str) -> bool {
    ATTRIBUTES.iter().any(|(k, t, o, _)| format!("{k:x}") == kind && (like(t, theirs) && like(o, ours)))
}
