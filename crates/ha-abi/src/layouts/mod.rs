//! The tables of parameter structures, by family.

pub(crate) mod derive;
pub(crate) mod protocol;
pub(crate) mod symmetric;

use crate::layout::{HANDLE, Layout, OTP_PARAM, PRF_DATA};

/// The layout of this C name.
pub(crate) fn by_name(name: &str) -> Option<&'static Layout> {
    all().find(|l| l.name == name)
}

/// Every layout.
pub(crate) fn all() -> impl Iterator<Item = &'static Layout> {
    static OWN: &[&Layout] = &[&HANDLE, &PRF_DATA, &OTP_PARAM];
    symmetric::ALL.iter().chain(derive::ALL).chain(protocol::ALL).chain(OWN).copied()
}
