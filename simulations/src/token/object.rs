//! One object: its attributes, how templates change them, what of them is told, and what a search finds.

use std::collections::{BTreeMap, BTreeSet};

use ha_token::{Attribute, AttributeType, Fetched, Result, Rv, Template, Ulong, Value, ck};

use super::aes::Aes;
use super::hash::Hash;
use super::profile::Profile;
use super::rules::{self, Initial, Rule, rules};

/// What a template is given to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Make {
    Create,
    Generate,
    Unwrap,
    Derive,
    Copy,
    Set,
}

impl Make {
    /// Whether an object comes into being, and is no copy.
    fn is_new(self) -> bool {
        !matches!(self, Make::Copy | Make::Set)
    }
}

/// An object, of the token or of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Object {
    attributes: BTreeMap<AttributeType, Value>,
}

fn value(default: Initial) -> Value {
    let attribute = match default {
        Initial::Bool(b) => Attribute::bool(0, b),
        Initial::Ulong(n) => Attribute::ulong(0, n),
        Initial::Bytes | Initial::Mechanisms => Attribute::bytes(0, []),
        Initial::Template => Attribute::template(0, Template::new()),
    };
    attribute.value
}

impl Object {
    /// An object with defaults only; `None` for a class or type that there is not.
    pub(super) fn new(class: Ulong, sort: Ulong, profile: &Profile) -> Option<Self> {
        let rules = rules(class, sort, profile.unique_id)?;
        let mut object = Object { attributes: rules.map(|r| (r.kind, value(r.default))).collect() };
        object.put(Attribute::ulong(ck::CKA_CLASS, class));
        let kind = if class == ck::CKO_CERTIFICATE { ck::CKA_CERTIFICATE_TYPE } else { ck::CKA_KEY_TYPE };
        if object.attributes.contains_key(&kind) {
            object.put(Attribute::ulong(kind, sort));
        }
        if matches!(class, ck::CKO_PUBLIC_KEY | ck::CKO_CERTIFICATE) {
            object.put(Attribute::bool(ck::CKA_PRIVATE, false));
        }
        Some(object)
    }

    /// Sets an attribute, whatever may be said against it.
    pub(super) fn put(&mut self, attribute: Attribute) {
        self.attributes.insert(attribute.kind, attribute.value);
    }

    /// An attribute's value.
    pub(super) fn get(&self, kind: AttributeType) -> Option<&Value> {
        self.attributes.get(&kind)
    }

    /// A flag; false where there is none.
    pub(super) fn flag(&self, kind: AttributeType) -> bool {
        self.get(kind).and_then(Value::as_bool) == Some(true)
    }

    /// A flag that is true where there is none.
    pub(super) fn flag_or_true(&self, kind: AttributeType) -> bool {
        self.get(kind).and_then(Value::as_bool) != Some(false)
    }

    /// A number; all bits set where there is none.
    pub(super) fn number(&self, kind: AttributeType) -> Ulong {
        self.get(kind).and_then(Value::as_ulong).unwrap_or(ck::CK_UNAVAILABLE_INFORMATION)
    }

    /// Bytes; empty where there are none.
    pub(super) fn bytes(&self, kind: AttributeType) -> &[u8] {
        self.get(kind).and_then(Value::as_bytes).unwrap_or(&[])
    }

    /// `CKA_CLASS`.
    pub(super) fn class(&self) -> Ulong {
        self.number(ck::CKA_CLASS)
    }

    /// `CKA_KEY_TYPE`.
    pub(super) fn key_type(&self) -> Ulong {
        self.number(ck::CKA_KEY_TYPE)
    }

    /// `CKA_PRIVATE`.
    pub(super) fn is_private(&self) -> bool {
        self.flag_or_true(ck::CKA_PRIVATE)
    }

    /// Every attribute, in the order of their types.
    pub(super) fn all(&self) -> Template {
        self.attributes.iter().map(|(kind, value)| Attribute { kind: *kind, value: value.clone() }).collect()
    }

    /// Whether `CKA_ALLOWED_MECHANISMS` lets it be used with this one.
    pub(super) fn allows(&self, mechanism: Ulong) -> bool {
        let allowed = self.bytes(ck::CKA_ALLOWED_MECHANISMS);
        allowed.is_empty() || mechanisms(allowed).contains(&mechanism)
    }

    fn rule(&self, kind: AttributeType) -> Option<&'static Rule> {
        self.rules()?.find(|r| r.kind == kind)
    }

    fn rules(&self) -> Option<impl Iterator<Item = &'static Rule>> {
        let class = self.class();
        let sort = if class == ck::CKO_CERTIFICATE { ck::CKA_CERTIFICATE_TYPE } else { ck::CKA_KEY_TYPE };
        rules(class, self.number(sort), self.attributes.contains_key(&ck::CKA_UNIQUE_ID))
    }

    /// What `C_GetAttributeValue` answers for one attribute.
    pub(super) fn fetch(&self, kind: AttributeType) -> Fetched {
        let Some(rule) = self.rule(kind) else { return Fetched::Invalid };
        let hidden = self.flag(ck::CKA_SENSITIVE)
            || (self.get(ck::CKA_EXTRACTABLE).is_some() && !self.flag(ck::CKA_EXTRACTABLE));
        if rule.checks & rules::SECRET != 0 && hidden {
            return Fetched::Sensitive;
        }
        self.get(kind).map_or(Fetched::Invalid, |v| Fetched::Value(v.clone()))
    }

    /// Whether the token trips over the attribute: SoftHSM keeps a private object's dates in the clear, and tries to
    /// decipher them.
    pub(super) fn trips(&self, kind: AttributeType, profile: &Profile) -> bool {
        profile.trips_over_dates
            && matches!(kind, ck::CKA_START_DATE | ck::CKA_END_DATE)
            && self.is_private()
            && !self.bytes(kind).is_empty()
    }

    /// Whether a search with this template finds it.
    ///
    /// # Errors
    /// `CKR_GENERAL_ERROR` for what the token trips over.
    pub(super) fn matches(&self, template: &Template, profile: &Profile) -> Result<bool> {
        for wanted in template {
            if self.trips(wanted.kind, profile) {
                return Err(Rv::GENERAL_ERROR);
            }
            if !self.has(wanted) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn has(&self, wanted: &Attribute) -> bool {
        let (Some(there), Some(rule)) = (self.get(wanted.kind), self.rule(wanted.kind)) else { return false };
        match rule.default {
            Initial::Bool(_) => match wanted.value.as_bytes() {
                Some([byte]) => there.as_bool() == Some(*byte == ck::CK_TRUE),
                _ => false,
            },
            Initial::Ulong(_) | Initial::Bytes => *there == wanted.value,
            // SoftHSM compares neither.
            Initial::Mechanisms | Initial::Template => false,
        }
    }

    /// Applies a template: all of it, or what comes before the attribute that is refused.
    pub(super) fn save(
        &mut self,
        template: &Template,
        make: Make,
        by_so: bool,
        profile: &Profile,
    ) -> Result<()> {
        for attribute in template {
            self.save_one(attribute, make, by_so, profile)?;
        }
        let needed = match make {
            Make::Create => rules::CREATE,
            Make::Generate => rules::GENERATE,
            Make::Unwrap => rules::UNWRAP,
            Make::Derive | Make::Copy | Make::Set => 0,
        };
        let missing = |r: &Rule| r.checks & needed != 0 && !template.iter().any(|a| a.kind == r.kind);
        if self.rules().is_some_and(|mut rules| rules.any(missing)) {
            return Err(Rv::TEMPLATE_INCOMPLETE);
        }
        Ok(())
    }

    fn save_one(&mut self, attribute: &Attribute, make: Make, by_so: bool, profile: &Profile) -> Result<()> {
        let rule = self.rule(attribute.kind).ok_or(Rv::ATTRIBUTE_TYPE_INVALID)?;
        let width = attribute.value.as_bytes().map(<[u8]>::len);
        let fits = match rule.default {
            Initial::Bool(_) => width == Some(1),
            Initial::Ulong(_) => width == Some(size_of::<Ulong>()),
            Initial::Template => width.is_none(),
            Initial::Bytes | Initial::Mechanisms => width.is_some(),
        };
        if !fits {
            return Err(Rv::ATTRIBUTE_VALUE_INVALID);
        }
        // Of a key that is unwrapped or derived, MODIFIABLE is kept to within its own template: it must come last there.
        if !matches!(make, Make::Create | Make::Generate) {
            let trusted_certificate = self.class() == ck::CKO_CERTIFICATE && self.flag(ck::CKA_TRUSTED);
            if !self.flag_or_true(ck::CKA_MODIFIABLE) || trusted_certificate {
                return Err(Rv::ATTRIBUTE_READ_ONLY);
            }
        }
        let (refused, changeable) = match make {
            Make::Create => (rules::NOT_CREATE, 0),
            Make::Generate => (rules::NOT_GENERATE, 0),
            Make::Unwrap => (rules::NOT_UNWRAP, 0),
            Make::Derive => (0, 0),
            Make::Copy => (0, rules::COPY | rules::CHANGE),
            Make::Set => (0, rules::CHANGE),
        };
        if rule.checks & refused != 0 || (!make.is_new() && rule.checks & changeable == 0) {
            return Err(Rv::ATTRIBUTE_READ_ONLY);
        }
        self.update(rule, attribute, make, by_so, profile)
    }

    /// What is peculiar to one attribute.
    fn update(
        &mut self,
        rule: &Rule,
        attribute: &Attribute,
        make: Make,
        by_so: bool,
        profile: &Profile,
    ) -> Result<()> {
        let bytes = attribute.value.as_bytes().unwrap_or(&[]);
        let on = attribute.value.as_bool() == Some(true);
        let later = !make.is_new();
        match attribute.kind {
            ck::CKA_CLASS | ck::CKA_KEY_TYPE | ck::CKA_CERTIFICATE_TYPE => {
                let same = self.get(attribute.kind) == Some(&attribute.value);
                return if same { Ok(()) } else { Err(Rv::TEMPLATE_INCONSISTENT) };
            }
            ck::CKA_LOCAL
            | ck::CKA_KEY_GEN_MECHANISM
            | ck::CKA_ALWAYS_SENSITIVE
            | ck::CKA_NEVER_EXTRACTABLE
            | ck::CKA_UNIQUE_ID => return Err(Rv::ATTRIBUTE_READ_ONLY),
            ck::CKA_MODULUS_BITS if make != Make::Generate => return Err(Rv::ATTRIBUTE_READ_ONLY),
            ck::CKA_VALUE_LEN if !matches!(make, Make::Generate | Make::Derive) => {
                return Err(Rv::ATTRIBUTE_READ_ONLY);
            }
            ck::CKA_COPYABLE if on => {
                return if self.flag_or_true(ck::CKA_COPYABLE) {
                    Ok(())
                } else {
                    Err(Rv::ATTRIBUTE_READ_ONLY)
                };
            }
            ck::CKA_TRUSTED if on && !by_so => return Err(Rv::ATTRIBUTE_READ_ONLY),
            ck::CKA_START_DATE | ck::CKA_END_DATE if !matches!(bytes.len(), 0 | 8) => {
                return Err(Rv::ATTRIBUTE_VALUE_INVALID);
            }
            ck::CKA_ALWAYS_AUTHENTICATE if on && !self.is_private() => return Err(Rv::TEMPLATE_INCONSISTENT),
            ck::CKA_SENSITIVE => {
                if later && self.flag(ck::CKA_SENSITIVE) {
                    return Err(Rv::ATTRIBUTE_READ_ONLY);
                }
                if !on || matches!(make, Make::Generate | Make::Derive) {
                    self.put(Attribute::bool(ck::CKA_ALWAYS_SENSITIVE, on));
                }
            }
            ck::CKA_EXTRACTABLE => {
                if later && !self.flag(ck::CKA_EXTRACTABLE) {
                    return Err(Rv::ATTRIBUTE_READ_ONLY);
                }
                if on {
                    self.put(Attribute::bool(ck::CKA_NEVER_EXTRACTABLE, false));
                }
            }
            ck::CKA_CHECK_VALUE if !bytes.is_empty() => {
                if !profile.check_values {
                    return Ok(());
                }
                if self.class() != ck::CKO_SECRET_KEY {
                    return Err(Rv::GENERAL_ERROR);
                }
                if check_value(self.key_type(), self.bytes(ck::CKA_VALUE)) != bytes {
                    return Err(Rv::ATTRIBUTE_VALUE_INVALID);
                }
            }
            ck::CKA_VALUE => self.value_given(bytes, make, profile),
            ck::CKA_MODULUS if make == Make::Create && self.get(ck::CKA_MODULUS_BITS).is_some() => {
                self.put(Attribute::ulong(ck::CKA_MODULUS_BITS, bits(bytes)));
            }
            ck::CKA_PRIME if make == Make::Create && self.get(ck::CKA_PRIME_BITS).is_some() => {
                self.put(Attribute::ulong(ck::CKA_PRIME_BITS, bits(bytes)));
            }
            ck::CKA_ALLOWED_MECHANISMS => {
                if bytes.is_empty() || !bytes.len().is_multiple_of(size_of::<Ulong>()) {
                    return Err(Rv::ATTRIBUTE_VALUE_INVALID);
                }
                let sorted: Vec<u8> = mechanisms(bytes).iter().flat_map(|m| m.to_ne_bytes()).collect();
                self.put(Attribute::bytes(attribute.kind, sorted));
                return Ok(());
            }
            ck::CKA_WRAP_TEMPLATE | ck::CKA_UNWRAP_TEMPLATE => {
                let Value::Template(inner) = &attribute.value else {
                    return Err(Rv::ATTRIBUTE_VALUE_INVALID);
                };
                let kept = sorted(inner)?;
                self.put(Attribute::template(attribute.kind, kept));
                return Ok(());
            }
            _ => {}
        }
        match rule.default {
            // Whatever is not 0 is true.
            Initial::Bool(_) => self.put(Attribute::bool(attribute.kind, on)),
            _ => self.put(attribute.clone()),
        }
        Ok(())
    }

    /// What follows from a value that a template gives.
    fn value_given(&mut self, bytes: &[u8], make: Make, profile: &Profile) {
        if matches!(make, Make::Create | Make::Unwrap) && self.get(ck::CKA_VALUE_LEN).is_some() {
            self.put(Attribute::ulong(ck::CKA_VALUE_LEN, bytes.len() as Ulong));
        }
        let check = match self.class() {
            ck::CKO_CERTIFICATE => first_three(&Hash::Sha1.digest(bytes)),
            ck::CKO_SECRET_KEY if make == Make::Create => check_value(self.key_type(), bytes),
            _ => return,
        };
        if profile.check_values {
            self.put(Attribute::bytes(ck::CKA_CHECK_VALUE, check));
        }
    }
}

/// The bits of a number without those that are 0 in front.
fn bits(bytes: &[u8]) -> Ulong {
    let bytes = super::der::trim(bytes);
    bytes.first().map_or(0, |b| bytes.len() * 8 - b.leading_zeros() as usize) as Ulong
}

/// `CKA_CHECK_VALUE` of a secret key.
pub(super) fn check_value(key_type: Ulong, key: &[u8]) -> Vec<u8> {
    match (key_type, Aes::new(key)) {
        (ck::CKK_AES, Some(aes)) => first_three(&aes.encrypt(&[0; 16])),
        (ck::CKK_AES, None) => Vec::new(),
        _ => first_three(&Hash::Sha1.digest(key)),
    }
}

fn first_three(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().take(3).copied().collect()
}

fn mechanisms(bytes: &[u8]) -> BTreeSet<Ulong> {
    let one = |b: &[u8]| b.try_into().ok().map(Ulong::from_ne_bytes);
    bytes.chunks_exact(size_of::<Ulong>()).filter_map(one).collect()
}

/// A template as it is kept: by type, each once, flags as 0 or 1.
fn sorted(template: &Template) -> Result<Template> {
    let mut kept = BTreeMap::new();
    for attribute in template {
        let Some(bytes) = attribute.value.as_bytes() else { return Err(Rv::ATTRIBUTE_VALUE_INVALID) };
        let flag = matches!(
            attribute.kind,
            ck::CKA_TOKEN
                | ck::CKA_PRIVATE
                | ck::CKA_MODIFIABLE
                | ck::CKA_COPYABLE
                | ck::CKA_TRUSTED
                | ck::CKA_ENCRYPT
                | ck::CKA_DECRYPT
                | ck::CKA_SIGN
                | ck::CKA_SIGN_RECOVER
                | ck::CKA_VERIFY
                | ck::CKA_VERIFY_RECOVER
                | ck::CKA_WRAP
                | ck::CKA_UNWRAP
                | ck::CKA_DERIVE
                | ck::CKA_LOCAL
                | ck::CKA_ALWAYS_SENSITIVE
                | ck::CKA_SENSITIVE
                | ck::CKA_NEVER_EXTRACTABLE
                | ck::CKA_EXTRACTABLE
                | ck::CKA_WRAP_WITH_TRUSTED
                | ck::CKA_ALWAYS_AUTHENTICATE
        );
        if flag && bytes.len() != 1 {
            return Err(Rv::ATTRIBUTE_VALUE_INVALID);
        }
        let normal = match attribute.value.as_bool() {
            Some(on) if flag => Attribute::bool(attribute.kind, on),
            _ => attribute.clone(),
        };
        kept.entry(attribute.kind).or_insert(normal);
    }
    Ok(kept.into_values().collect())
}
