//! How a parameter structure is described: its fields with their places and kinds.

use std::mem::{offset_of, size_of};

use ha_token::ck;

/// One C structure.
pub(crate) struct Layout {
    /// The C type's name.
    pub(crate) name: &'static str,
    /// Its size in bytes.
    pub(crate) size: usize,
    /// Its fields in the order of the declaration, without those that are only another field's length.
    pub(crate) fields: &'static [FieldSpec],
}

/// One field of a structure.
pub(crate) struct FieldSpec {
    /// The C field's name.
    pub(crate) name: &'static str,
    /// Its distance from the structure's start in bytes.
    pub(crate) offset: usize,
    /// What it is.
    pub(crate) kind: Kind,
}

/// What a field is.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// A `CK_ULONG`.
    Ulong,
    /// A `CK_BYTE`.
    Byte,
    /// An array of that many bytes inside the structure.
    Inline(usize),
    /// An object handle that the token reads.
    Handle,
    /// A pointer to bytes that the token reads.
    Bytes(Len),
    /// A pointer to bytes that the token may write.
    Output(Len),
    /// An object handle inside the structure that the token writes.
    OutputHandle,
    /// A pointer to one object handle that the token writes.
    OutputHandlePtr,
    /// A structure inside the structure.
    Struct(&'static Layout),
    /// A pointer to a structure.
    StructPtr(&'static Layout),
    /// A pointer to an array of structures, and where their count is.
    List {
        /// Offset of the count.
        count: usize,
        /// An element.
        item: &'static Layout,
    },
    /// A pointer to a mechanism.
    Mechanism,
    /// A pointer to attributes, and where their count is.
    Template {
        /// Offset of the count.
        count: usize,
    },
    /// `CK_PRF_DATA_PARAM.pValue`: a pointer to an object handle or to bytes, as the type field says.
    PrfValue {
        /// Offset of the type.
        tag: usize,
        /// Offset of the length.
        len: usize,
    },
}

/// Where the length of what a pointer points at is found.
#[derive(Clone, Copy)]
pub(crate) enum Len {
    /// In a `CK_ULONG` at this offset that says nothing else.
    Own(usize),
    /// In a `CK_ULONG` at this offset that is listed as a field too; the pointer may be null all the same.
    Listed(usize),
    /// As `Listed`, in bits.
    Bits(usize),
    /// In bits, at this offset of the structure that points at this one.
    OuterBits(usize),
    /// Behind a pointer to a `CK_ULONG` at this offset.
    Indirect(usize),
    /// Always this many bytes.
    Fixed(usize),
    /// Up to the first zero byte.
    Terminated,
    /// The standard does not say, so that only null can be copied.
    Unknown,
}

/// The kind of one field, in the words of the tables in `layouts`.
macro_rules! kind {
    ($t:ident ulong) => { Kind::Ulong };
    ($t:ident byte) => { Kind::Byte };
    ($t:ident inline $n:literal) => { Kind::Inline($n) };
    ($t:ident handle) => { Kind::Handle };
    ($t:ident handle_out) => { Kind::OutputHandle };
    ($t:ident handle_ptr_out) => { Kind::OutputHandlePtr };
    ($t:ident bytes $($len:tt)+) => { Kind::Bytes(len!($t $($len)+)) };
    ($t:ident output $($len:tt)+) => { Kind::Output(len!($t $($len)+)) };
    ($t:ident nested $l:ident) => { Kind::Struct(&$l) };
    ($t:ident pointer $l:ident) => { Kind::StructPtr(&$l) };
    ($t:ident list $count:ident of $l:ident) => {
        Kind::List { count: offset_of!(ck::$t, $count), item: &$l }
    };
    ($t:ident mechanism) => { Kind::Mechanism };
    ($t:ident template $count:ident) => { Kind::Template { count: offset_of!(ck::$t, $count) } };
    ($t:ident prf_value $tag:ident $len:ident) => {
        Kind::PrfValue { tag: offset_of!(ck::$t, $tag), len: offset_of!(ck::$t, $len) }
    };
}

/// The place of a length, in the words of the tables in `layouts`.
macro_rules! len {
    ($t:ident listed $f:ident) => {
        Len::Listed(offset_of!(ck::$t, $f))
    };
    ($t:ident bits $f:ident) => {
        Len::Bits(offset_of!(ck::$t, $f))
    };
    ($t:ident outer_bits $o:ident $f:ident) => {
        Len::OuterBits(offset_of!(ck::$o, $f))
    };
    ($t:ident indirect $f:ident) => {
        Len::Indirect(offset_of!(ck::$t, $f))
    };
    ($t:ident fixed $n:literal) => {
        Len::Fixed($n)
    };
    ($t:ident terminated) => {
        Len::Terminated
    };
    ($t:ident unknown) => {
        Len::Unknown
    };
    ($t:ident $f:ident) => {
        Len::Own(offset_of!(ck::$t, $f))
    };
}

/// Defines layouts, and the list of them all.
macro_rules! layouts {
    ($($name:ident = $t:ident { $($field:ident: $($kind:ident)+ $(($n:literal))?,)+ })+) => {
        $(pub(crate) static $name: Layout = Layout {
            name: stringify!($t),
            size: size_of::<ck::$t>(),
            fields: &[$(FieldSpec {
                name: stringify!($field),
                offset: offset_of!(ck::$t, $field),
                kind: kind!($t $($kind)+ $($n)?),
            },)+],
        };)+
        /// Every layout of this table.
        pub(super) static ALL: &[&Layout] = &[$(&$name,)+];
    };
}

pub(crate) use {kind, layouts, len};

/// `CKM_CONCATENATE_BASE_AND_KEY`: the parameter is a handle.
pub(crate) static HANDLE: Layout = Layout {
    name: "CK_OBJECT_HANDLE",
    size: size_of::<ck::CK_OBJECT_HANDLE>(),
    fields: &[FieldSpec { name: "hKey", offset: 0, kind: Kind::Handle }],
};

/// `CK_PRF_DATA_PARAM`, whose field `type` is a Rust keyword and so outside the tables.
pub(crate) static PRF_DATA: Layout = Layout {
    name: "CK_PRF_DATA_PARAM",
    size: size_of::<ck::CK_PRF_DATA_PARAM>(),
    fields: &[
        FieldSpec { name: "type", offset: offset_of!(ck::CK_PRF_DATA_PARAM, type_), kind: Kind::Ulong },
        FieldSpec {
            name: "pValue",
            offset: offset_of!(ck::CK_PRF_DATA_PARAM, pValue),
            kind: kind!(CK_PRF_DATA_PARAM prf_value type_ ulValueLen),
        },
    ],
};

/// `CK_OTP_PARAM`; as [`PRF_DATA`].
pub(crate) static OTP_PARAM: Layout = Layout {
    name: "CK_OTP_PARAM",
    size: size_of::<ck::CK_OTP_PARAM>(),
    fields: &[
        FieldSpec { name: "type", offset: offset_of!(ck::CK_OTP_PARAM, type_), kind: Kind::Ulong },
        FieldSpec {
            name: "pValue",
            offset: offset_of!(ck::CK_OTP_PARAM, pValue),
            kind: kind!(CK_OTP_PARAM bytes ulValueLen),
        },
    ],
};
