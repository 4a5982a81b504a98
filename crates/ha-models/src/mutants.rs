//! No seeded bug is here.

macro_rules! wrong {
    ($mutant:ident) => {
        false
    };
}
pub(crate) use wrong;
