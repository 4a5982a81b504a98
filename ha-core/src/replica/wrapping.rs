//! Which wrapping mechanism copies which keys between two tokens: asked of the mechanism list, then tried.

use ha_token::{Attribute, Mechanism, ObjectHandle, Output, Result, Rv, Template, TemplateExt, Ulong, ck};

use super::On;
use crate::policy::failure::{Class, classify};

/// `CKM_AES_KEY_WRAP_KWP` (RFC 5649), `CKM_AES_KEY_WRAP_PAD` (on SoftHSM the same), `CKM_AES_KEY_WRAP` (RFC 3394):
/// each wraps a key into the same bytes every time.
pub(crate) const CANDIDATES: [Ulong; 3] =
    [ck::CKM_AES_KEY_WRAP_KWP, ck::CKM_AES_KEY_WRAP_PAD, ck::CKM_AES_KEY_WRAP];

/// What a token's wrapping mechanisms were seen to do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WrapAbility {
    formats: Vec<Format>,
    /// A trial was refused in words that say nothing: there may be more.
    doubtful: bool,
}

/// One wrapping mechanism of a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Format {
    /// The mechanism.
    pub mechanism: Ulong,
    /// Whether a secret whose length is no multiple of eight comes back as it was.
    pub exact: bool,
}

impl WrapAbility {
    /// Tries the token's wrapping mechanisms on throw-away session keys of its own.
    ///
    /// # Errors
    /// The member's answer to anything but a trial itself.
    pub fn probe(on: On<'_>) -> Result<Self> {
        let (mut formats, mut doubtful) = (Vec::new(), false);
        let wrapping = on.token.generate_key(
            on.session,
            &mut Mechanism::plain(ck::CKM_AES_KEY_GEN),
            &throw_away(ck::CKK_AES, Some(32)),
        );
        let Some(wrapping) = able(wrapping, &mut doubtful)? else {
            return Ok(WrapAbility { formats, doubtful });
        };
        for mechanism in CANDIDATES {
            if !on.supports(mechanism, ck::CKF_WRAP | ck::CKF_UNWRAP) {
                continue;
            }
            let tried = round_trip(on, wrapping, mechanism, &[0x5a; 24], &mut doubtful).and_then(|able| {
                if !able {
                    return Ok(None);
                }
                // That it takes no such length some tokens say in general words.
                let exact = round_trip(on, wrapping, mechanism, &[0xa5; 20], &mut false)?;
                Ok(Some(Format { mechanism, exact }))
            });
            match tried {
                Ok(format) => formats.extend(format),
                Err(rv) => {
                    on.discard(wrapping);
                    return Err(rv);
                }
            }
        }
        on.discard(wrapping);
        Ok(WrapAbility { formats, doubtful })
    }

    /// Whether this may be believed for as long as the connection lives.
    pub fn is_certain(&self) -> bool {
        !self.doubtful
    }

    /// The mechanisms that may carry a secret of this length (private keys have lengths of their own: `None`).
    pub fn formats(&self, length: Option<usize>) -> impl Iterator<Item = Format> + '_ {
        let odd = length.is_some_and(|l| l % 8 != 0);
        self.formats.iter().copied().filter(move |f| f.exact || !odd)
    }

    /// The mechanism by which the token can unwrap what this one wrapped elsewhere: itself, or the other name of RFC 5649.
    /// On a token where that means another format what comes out is refused, or fails its proof.
    pub fn unwraps(&self, mechanism: Ulong) -> Option<Ulong> {
        let has = |wanted: &Ulong| self.formats.iter().any(|f| f.mechanism == *wanted);
        let other = match mechanism {
            ck::CKM_AES_KEY_WRAP_KWP => ck::CKM_AES_KEY_WRAP_PAD,
            ck::CKM_AES_KEY_WRAP_PAD => ck::CKM_AES_KEY_WRAP_KWP,
            only => only,
        };
        [mechanism, other].into_iter().find(has)
    }
}

/// What a token can: `None` for what it refuses, doubtful where its words do not say why. Another answer is no word on that:
/// it is tried again another time.
fn able<T>(answer: Result<T>, doubtful: &mut bool) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(rv) => match classify(ha_token::Function::WrapKey, rv) {
            Class::Caller => Ok(None),
            Class::Ambiguous => {
                *doubtful = true;
                Ok(None)
            }
            Class::Capacity if rv == ha_token::Rv::FUNCTION_NOT_SUPPORTED => Ok(None),
            _ => Err(rv),
        },
    }
}

/// Whether a known value comes back as it was.
fn round_trip(
    on: On<'_>,
    wrapping: ObjectHandle,
    mechanism: Ulong,
    value: &[u8],
    doubtful: &mut bool,
) -> Result<bool> {
    let mut template = throw_away(ck::CKK_GENERIC_SECRET, None);
    template.push(Attribute::bytes(ck::CKA_VALUE, value));
    let Some(known) = able(on.token.create_object(on.session, &template), doubtful)? else {
        return Ok(false);
    };
    let back = wrap(on, wrapping, known, mechanism)
        .and_then(|blob| unwrap(on, wrapping, &blob, mechanism, &throw_away(ck::CKK_GENERIC_SECRET, None)))
        .and_then(|key| {
            let read = on.read(key, &[ck::CKA_VALUE]);
            on.discard(key);
            read
        });
    on.discard(known);
    Ok(able(back, doubtful)?.is_some_and(|read| read.get_bytes(ck::CKA_VALUE) == Some(value)))
}

fn throw_away(key_type: Ulong, length: Option<Ulong>) -> Template {
    let mut template = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY),
        Attribute::ulong(ck::CKA_KEY_TYPE, key_type),
        Attribute::bool(ck::CKA_TOKEN, false),
        Attribute::bool(ck::CKA_SENSITIVE, false),
        Attribute::bool(ck::CKA_EXTRACTABLE, true),
    ];
    if key_type == ck::CKK_AES {
        template.push(Attribute::bool(ck::CKA_WRAP, true));
        template.push(Attribute::bool(ck::CKA_UNWRAP, true));
    }
    template.extend(length.map(|l| Attribute::ulong(ck::CKA_VALUE_LEN, l)));
    template
}

/// Wraps a key.
///
/// # Errors
/// The member's answer.
pub fn wrap(on: On<'_>, wrapping: ObjectHandle, key: ObjectHandle, mechanism: Ulong) -> Result<Vec<u8>> {
    let mut mechanism = Mechanism::plain(mechanism);
    let mut space = vec![0; 8192];
    let mut out = Output::buffer(&mut space);
    match on.token.wrap_key(on.session, &mut mechanism, wrapping, key, &mut out) {
        Ok(()) => Ok(out.written().to_vec()),
        Err(Rv::BUFFER_TOO_SMALL) => {
            let mut space = vec![0; out.len()];
            let mut out = Output::buffer(&mut space);
            on.token.wrap_key(on.session, &mut mechanism, wrapping, key, &mut out)?;
            Ok(out.written().to_vec())
        }
        Err(rv) => Err(rv),
    }
}

/// Unwraps a key.
///
/// # Errors
/// The member's answer.
pub fn unwrap(
    on: On<'_>,
    unwrapping: ObjectHandle,
    blob: &[u8],
    mechanism: Ulong,
    template: &Template,
) -> Result<ObjectHandle> {
    on.token.unwrap_key(on.session, &mut Mechanism::plain(mechanism), unwrapping, blob, template)
}
