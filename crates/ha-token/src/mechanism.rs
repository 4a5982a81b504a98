//! Mechanisms with their parameters copied deep: no pointer into a caller's memory is left.

use std::fmt;

use crate::{ObjectHandle, Result, Ulong};

/// `CK_MECHANISM` as a value of our own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mechanism {
    /// `CK_MECHANISM_TYPE`; vendor types pass unchanged.
    pub kind: Ulong,
    /// The parameter.
    pub params: Params,
}

/// A mechanism's parameter. `Debug` shows lengths only: a parameter may hold a password.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Params {
    /// None: `pParameter` NULL or `ulParameterLen` 0.
    #[default]
    None,
    /// Bytes without inner structure (an IV, a `CK_ULONG`, a structure of numbers only).
    Bytes(Box<[u8]>),
    /// A structure whose layout the headers define and which holds pointers or object handles.
    Struct(Box<StructParams>),
}

/// A parameter structure, field by field, in the order of the C declaration.
///
/// Length fields that only say how long another field is are not listed: the value knows its length.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StructParams {
    /// The C type's name, for example `CK_GCM_PARAMS`.
    pub layout: &'static str,
    /// The fields.
    pub fields: Vec<Field>,
}

/// One field of a parameter structure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Field {
    /// The C field's name, for example `pIv`.
    pub name: &'static str,
    /// Its value.
    pub value: FieldValue,
}

/// A field's value, by what it is in C. `Debug` shows lengths only: it may be a password.
#[derive(Clone, PartialEq, Eq)]
pub enum FieldValue {
    /// A `CK_ULONG` or an enumeration of that width.
    Ulong(Ulong),
    /// A `CK_BYTE` or `CK_BBOOL`.
    Byte(u8),
    /// An inline array of bytes.
    Inline(Vec<u8>),
    /// An object handle: translated for each member.
    Handle(ObjectHandle),
    /// A pointer and a length: bytes read by the token (`None`: NULL).
    Bytes(Option<Vec<u8>>),
    /// A pointer to space that the token may write (its contents before, then after the call; `None`: NULL).
    Output(Option<Vec<u8>>),
    /// A pointer to handles that the token writes (`phKey`, `CK_DERIVED_KEY`): as many as were made.
    OutputHandles(Vec<ObjectHandle>),
    /// A pointer to, or an inline, nested structure (`None`: NULL).
    Struct(Option<Box<StructParams>>),
    /// A pointer to an array of structures with its count.
    List(Vec<StructParams>),
    /// A pointer to a nested mechanism (`None`: NULL).
    Mechanism(Option<Box<Mechanism>>),
    /// A pointer to an array of attributes with its count (additional derived keys).
    Template(crate::Template),
}

impl fmt::Debug for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Params::None => f.write_str("None"),
            Params::Bytes(b) => write!(f, "<{} bytes>", b.len()),
            Params::Struct(s) => s.fmt(f),
        }
    }
}

impl fmt::Debug for FieldValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FieldValue::Ulong(n) => write!(f, "{n}"),
            FieldValue::Byte(n) => write!(f, "{n}"),
            FieldValue::Inline(b) => write!(f, "<{} bytes>", b.len()),
            FieldValue::Handle(h) => h.fmt(f),
            FieldValue::Bytes(b) | FieldValue::Output(b) => match b {
                Some(b) => write!(f, "<{} bytes>", b.len()),
                None => f.write_str("NULL"),
            },
            FieldValue::OutputHandles(h) => h.fmt(f),
            FieldValue::Struct(s) => s.fmt(f),
            FieldValue::List(l) => l.fmt(f),
            FieldValue::Mechanism(m) => m.fmt(f),
            FieldValue::Template(t) => t.fmt(f),
        }
    }
}

impl Mechanism {
    /// A mechanism without a parameter. Allocates nothing.
    pub const fn plain(kind: Ulong) -> Self {
        Mechanism { kind, params: Params::None }
    }

    /// A mechanism whose parameter is bytes.
    pub fn bytes(kind: Ulong, bytes: &[u8]) -> Self {
        Mechanism { kind, params: Params::Bytes(bytes.into()) }
    }

    /// Whether the mechanism is in the range that the standard leaves to vendors.
    pub const fn is_vendor(&self) -> bool {
        self.kind >= crate::ck::CKM_VENDOR_DEFINED
    }

    /// Whether nobody here can read the parameter, which may hold pointers into its caller's memory: a vendor's.
    #[inline]
    pub fn is_opaque(&self) -> bool {
        self.is_vendor() && self.params != Params::None
    }

    /// Replaces every object handle in the parameters that the token *reads* by `f`'s answer, nested ones included.
    ///
    /// # Errors
    /// The first error of `f`; the mechanism is then half translated and must not be used.
    pub fn translate_handles(
        &mut self,
        f: &mut dyn FnMut(ObjectHandle) -> Result<ObjectHandle>,
    ) -> Result<()> {
        self.params.translate_handles(f)
    }
}

impl Params {
    /// As [`Mechanism::translate_handles`].
    pub fn translate_handles(
        &mut self,
        f: &mut dyn FnMut(ObjectHandle) -> Result<ObjectHandle>,
    ) -> Result<()> {
        match self {
            Params::None | Params::Bytes(_) => Ok(()),
            Params::Struct(s) => s.translate_handles(f),
        }
    }

    /// The structure, if it is one.
    pub fn as_struct(&self) -> Option<&StructParams> {
        match self {
            Params::Struct(s) => Some(s),
            Params::None | Params::Bytes(_) => None,
        }
    }
}

impl StructParams {
    /// The field of this name.
    pub fn field(&self, name: &str) -> Option<&FieldValue> {
        self.fields.iter().find(|f| f.name == name).map(|f| &f.value)
    }

    /// The field of this name, to change it.
    pub fn field_mut(&mut self, name: &str) -> Option<&mut FieldValue> {
        self.fields.iter_mut().find(|f| f.name == name).map(|f| &mut f.value)
    }

    /// Every handle that a token wrote, nested structures included: `f` sees and may replace each.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn translate_outputs(
        &mut self,
        f: &mut dyn FnMut(ObjectHandle) -> Result<ObjectHandle>,
    ) -> Result<()> {
        self.each(&mut |value| match value {
            FieldValue::OutputHandles(handles) => {
                for h in handles {
                    *h = f(*h)?;
                }
                Ok(())
            }
            _ => Ok(()),
        })
    }

    /// Takes over what a token wrote into a copy of this structure; everything else stays.
    pub fn take_outputs(&mut self, from: StructParams) {
        for (mine, theirs) in self.fields.iter_mut().zip(from.fields) {
            match (&mut mine.value, theirs.value) {
                (mine @ (FieldValue::Output(_) | FieldValue::OutputHandles(_)), theirs) => *mine = theirs,
                (FieldValue::Struct(Some(mine)), FieldValue::Struct(Some(theirs))) => {
                    mine.take_outputs(*theirs)
                }
                (FieldValue::List(mine), FieldValue::List(theirs)) => {
                    mine.iter_mut().zip(theirs).for_each(|(m, t)| m.take_outputs(t));
                }
                _ => {}
            }
        }
    }

    fn translate_handles(&mut self, f: &mut dyn FnMut(ObjectHandle) -> Result<ObjectHandle>) -> Result<()> {
        self.each(&mut |value| match value {
            FieldValue::Handle(h) if h.0 != 0 => {
                *h = f(*h)?;
                Ok(())
            }
            _ => Ok(()),
        })
    }

    /// Walks over every field, nested structures and mechanisms included.
    fn each(&mut self, f: &mut dyn FnMut(&mut FieldValue) -> Result<()>) -> Result<()> {
        for field in &mut self.fields {
            f(&mut field.value)?;
            match &mut field.value {
                FieldValue::Struct(Some(s)) => s.each(f)?,
                FieldValue::List(list) => {
                    for s in list {
                        s.each(f)?;
                    }
                }
                FieldValue::Mechanism(Some(m)) => {
                    if let Params::Struct(s) = &mut m.params {
                        s.each(f)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}
