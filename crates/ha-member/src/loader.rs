//! Modules for members: any but a library that has members itself.

use std::path::Path;

use ha_loader::Object;
pub(crate) use ha_loader::{Functions, load_error};
use ha_token::ConnectError;

/// In every library that holds this crate, and in no token's module.
#[used]
static MARK: [u8; 40] = *b"pkcs11-ha refuses a member that has this";

/// Loads a copy of the file whose variables are its own.
pub(crate) fn load_private(path: &Path) -> Result<Object, ConnectError> {
    ha_loader::load_private(path, &MARK)
}

/// Loads the file itself: the instance that everyone in this process shares.
pub(crate) fn load_shared(path: &Path) -> Result<Object, ConnectError> {
    ha_loader::load_shared(path, &MARK)
}
