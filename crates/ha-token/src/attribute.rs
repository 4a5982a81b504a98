//! Attributes and templates: a type and bytes, or a nested template.

use std::fmt;

use cryptoki_sys as ck;
use zeroize::Zeroizing;

use crate::{Rv, Ulong};

/// `CK_ATTRIBUTE_TYPE`; vendor types pass unchanged.
pub type AttributeType = Ulong;

/// Attributes in the caller's order, which some tokens care about.
pub type Template = Vec<Attribute>;

/// An attribute's value.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// The bytes as they cross the C interface (numbers in native order and width), wiped when dropped.
    Bytes(Zeroizing<Vec<u8>>),
    /// The value of an attribute whose type has `CKF_ARRAY_ATTRIBUTE` and whose elements are attributes
    /// (`CKA_WRAP_TEMPLATE`, `CKA_UNWRAP_TEMPLATE`, `CKA_DERIVE_TEMPLATE`, …).
    Template(Template),
}

/// A type with its value. `Debug` shows the type and the value's length only, so that no key value reaches a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Attribute {
    /// The attribute's type.
    pub kind: AttributeType,
    /// Its value.
    pub value: Value,
}

/// The answer for one attribute of `C_GetAttributeValue`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fetched {
    /// The value.
    Value(Value),
    /// It exists and may not be revealed (`CKR_ATTRIBUTE_SENSITIVE`).
    Sensitive,
    /// The object has no such attribute (`CKR_ATTRIBUTE_TYPE_INVALID`).
    Invalid,
}

impl Attribute {
    /// An attribute of raw bytes.
    pub fn bytes(kind: AttributeType, value: impl Into<Vec<u8>>) -> Self {
        Attribute { kind, value: Value::Bytes(Zeroizing::new(value.into())) }
    }

    /// A `CK_BBOOL` attribute.
    pub fn bool(kind: AttributeType, value: bool) -> Self {
        Attribute::bytes(kind, [u8::from(value)])
    }

    /// A `CK_ULONG` attribute.
    pub fn ulong(kind: AttributeType, value: Ulong) -> Self {
        Attribute::bytes(kind, value.to_ne_bytes())
    }

    /// An attribute whose value is a template.
    pub fn template(kind: AttributeType, value: Template) -> Self {
        Attribute { kind, value: Value::Template(value) }
    }

    /// Whether a value of this type is a template: the standard's three, by their full numbers (vendor array
    /// attributes are opaque bytes).
    pub fn is_template(kind: AttributeType) -> bool {
        matches!(
            kind,
            ck::CKA_WRAP_TEMPLATE
                | ck::CKA_UNWRAP_TEMPLATE
                | ck::CKA_DERIVE_TEMPLATE
                | ck::CKA_ENCAPSULATE_TEMPLATE
                | ck::CKA_DECAPSULATE_TEMPLATE
        )
    }
}

impl Value {
    /// The bytes, or `None` for a template.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Value::Bytes(b) => Some(b),
            Value::Template(_) => None,
        }
    }

    /// The value as a `CK_ULONG`, if it has that width.
    pub fn as_ulong(&self) -> Option<Ulong> {
        Some(Ulong::from_ne_bytes(self.as_bytes()?.try_into().ok()?))
    }

    /// The value as a `CK_BBOOL`, if it is one byte: false only for 0.
    pub fn as_bool(&self) -> Option<bool> {
        match self.as_bytes()? {
            [b] => Some(*b != 0),
            _ => None,
        }
    }
}

impl Fetched {
    /// The value, if there is one.
    pub fn value(&self) -> Option<&Value> {
        match self {
            Fetched::Value(v) => Some(v),
            Fetched::Sensitive | Fetched::Invalid => None,
        }
    }

    /// The value's bytes, if there is one.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.value().and_then(Value::as_bytes)
    }

    /// The return code that a whole answer has (section 5.7.5): sensitive before invalid, else `Ok`.
    pub fn outcome(all: &[Fetched]) -> crate::Result<()> {
        if all.iter().any(|f| matches!(f, Fetched::Sensitive)) {
            Err(Rv::ATTRIBUTE_SENSITIVE)
        } else if all.iter().any(|f| matches!(f, Fetched::Invalid)) {
            Err(Rv::ATTRIBUTE_TYPE_INVALID)
        } else {
            Ok(())
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bytes(b) => write!(f, "<{} bytes>", b.len()),
            Value::Template(t) => t.fmt(f),
        }
    }
}

impl fmt::Debug for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:X}: {:?}", self.kind, self.value)
    }
}

/// Look-ups and changes on a [`Template`].
pub trait TemplateExt {
    /// The first attribute of this type.
    fn get(&self, kind: AttributeType) -> Option<&Value>;
    /// The first attribute of this type as a `CK_BBOOL`.
    fn get_bool(&self, kind: AttributeType) -> Option<bool>;
    /// The first attribute of this type as a `CK_ULONG`.
    fn get_ulong(&self, kind: AttributeType) -> Option<Ulong>;
    /// The first attribute of this type as bytes.
    fn get_bytes(&self, kind: AttributeType) -> Option<&[u8]>;
    /// Puts the attribute in place of the first of its type, or at the end.
    fn set(&mut self, attribute: Attribute);
    /// Takes out every attribute of this type.
    fn remove(&mut self, kind: AttributeType);
}

impl TemplateExt for Template {
    fn get(&self, kind: AttributeType) -> Option<&Value> {
        self.iter().find(|a| a.kind == kind).map(|a| &a.value)
    }

    fn get_bool(&self, kind: AttributeType) -> Option<bool> {
        self.get(kind).and_then(Value::as_bool)
    }

    fn get_ulong(&self, kind: AttributeType) -> Option<Ulong> {
        self.get(kind).and_then(Value::as_ulong)
    }

    fn get_bytes(&self, kind: AttributeType) -> Option<&[u8]> {
        self.get(kind).and_then(Value::as_bytes)
    }

    fn set(&mut self, attribute: Attribute) {
        match self.iter_mut().find(|a| a.kind == attribute.kind) {
            Some(place) => *place = attribute,
            None => self.push(attribute),
        }
    }

    fn remove(&mut self, kind: AttributeType) {
        self.retain(|a| a.kind != kind);
    }
}
