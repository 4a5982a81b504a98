//! Which token of an instance a selector means, and whether the instance leads back to ourselves.

use std::fmt::Write;
use std::path::Path;

use cryptoki_sys as ck;
use ha_token::{ConnectError, Function, Rv, Selector, SlotInfo, TokenInfo, Ulong};

use crate::calls;
use crate::instance::Call;

/// A slot that has a token: its number, itself, and the token if it tells about itself.
pub(crate) type Seen = (Ulong, SlotInfo, Result<TokenInfo, Rv>);

/// What a virtual slot and this project's provider call themselves.
const SLOT_DESCRIPTION: &str = "HA Virtual Card Slot";
const TOKEN_MODEL: &str = "HA group";
const MANUFACTURER: &str = "pkcs11-ha";
const DESCRIPTION: &str = "HA group virtual slot";

/// Every slot with a token, unless the module is, or shows, this project's provider.
pub(crate) fn look(call: &Call<'_>, path: &Path) -> Result<Vec<Seen>, ConnectError> {
    let itself = || ConnectError::Itself { path: path.display().to_string() };
    let failed = |function| move |rv| ConnectError::Call { path: path.display().to_string(), function, rv };
    let library = calls::library_info(call).map_err(failed(Function::GetInfo))?;
    if library.manufacturer == MANUFACTURER || library.description == DESCRIPTION {
        return Err(itself());
    }
    let mut seen = Vec::new();
    for slot in calls::slots(call).map_err(failed(Function::GetSlotList))? {
        let Ok(info) = calls::slot_info(call, slot) else { continue }; // pulled out meanwhile
        let token = settled(|| calls::token_info(call, slot));
        if info.description == SLOT_DESCRIPTION || token.as_ref().is_ok_and(|t| t.model == TOKEN_MODEL) {
            return Err(itself());
        }
        seen.push((slot, info, token));
    }
    Ok(seen)
}

/// The slot of the one initialised token that the selector means.
pub(crate) fn choose(seen: &[Seen], selector: &Selector, path: &Path) -> Result<Ulong, ConnectError> {
    let path = path.display().to_string();
    let wanted = words(selector);
    let matching: Vec<(Ulong, &TokenInfo)> = seen
        .iter()
        .filter_map(|(slot, _, token)| Some((*slot, token.as_ref().ok()?)))
        .filter(|(slot, token)| matches(selector, *slot, token))
        .collect();
    let ready: Vec<_> = matching.iter().filter(|(_, t)| t.flags & ck::CKF_TOKEN_INITIALIZED != 0).collect();
    match (ready.as_slice(), matching.is_empty()) {
        ([(slot, _)], _) => Ok(*slot),
        ([], false) => Err(ConnectError::NotInitialised { path, wanted }),
        ([], true) => match seen.iter().find_map(|(_, _, token)| broken(token)) {
            Some(rv) => Err(ConnectError::Call { path, function: Function::GetTokenInfo, rv }),
            None => Err(ConnectError::NoToken { path, wanted, present: present(seen) }),
        },
        (several, _) => Err(ConnectError::Ambiguous {
            path,
            wanted,
            count: several.len(),
            serials: several.iter().map(|(_, t)| t.serial.as_str()).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// The slot of the first token that was never initialised.
pub(crate) fn blank(seen: &[Seen], path: &Path) -> Result<Ulong, ConnectError> {
    let is_blank = |token: &Result<TokenInfo, Rv>| {
        token.as_ref().is_ok_and(|t| t.flags & ck::CKF_TOKEN_INITIALIZED == 0)
    };
    seen.iter().find(|(_, _, token)| is_blank(token)).map(|(slot, _, _)| *slot).ok_or_else(|| {
        ConnectError::NoToken {
            path: path.display().to_string(),
            wanted: "an uninitialised token".into(),
            present: present(seen),
        }
    })
}

/// A token that is there and answers with a fault, which may be the wanted one.
fn broken(token: &Result<TokenInfo, Rv>) -> Option<Rv> {
    match token {
        Ok(_) | Err(Rv::TOKEN_NOT_PRESENT | Rv::TOKEN_NOT_RECOGNIZED | Rv::SLOT_ID_INVALID) => None,
        Err(rv) => Some(*rv),
    }
}

fn matches(selector: &Selector, slot: Ulong, token: &TokenInfo) -> bool {
    // The token's texts come without their padding; a selector may be written with it.
    let same = |wanted: &Option<String>, seen: &str| {
        wanted.as_ref().is_none_or(|w| w.trim_end_matches([' ', '\0']) == seen)
    };
    same(&selector.label, &token.label)
        && same(&selector.serial, &token.serial)
        && same(&selector.manufacturer, &token.manufacturer)
        && same(&selector.model, &token.model)
        && selector.slot_id.is_none_or(|id| id == slot)
}

fn words(selector: &Selector) -> String {
    let texts = [
        ("label", &selector.label),
        ("serial", &selector.serial),
        ("manufacturer", &selector.manufacturer),
        ("model", &selector.model),
    ];
    let mut words: Vec<String> =
        texts.iter().filter_map(|(name, text)| Some(format!("{name} \"{}\"", text.as_ref()?))).collect();
    words.extend(selector.slot_id.map(|id| format!("slot {id}")));
    if words.is_empty() { "any token".into() } else { words.join(", ") }
}

fn present(seen: &[Seen]) -> String {
    if seen.is_empty() {
        return "no token at all".into();
    }
    let mut text = String::new();
    for (slot, _, token) in seen {
        let separator = if text.is_empty() { "" } else { "; " };
        let _ = match token {
            Ok(t) if t.flags & ck::CKF_TOKEN_INITIALIZED != 0 => {
                write!(text, "{separator}\"{}\" (serial {}, slot {slot})", t.label, t.serial)
            }
            Ok(_) => write!(text, "{separator}an uninitialised token (slot {slot})"),
            Err(rv) => write!(text, "{separator}slot {slot}: {rv}"),
        };
    }
    text
}

/// Asks again, for a little while, what is answered by `CKR_GENERAL_ERROR`: SoftHSM says so for a moment while another
/// process logs in to the same token, and for ever when the token is lost.
fn settled<T>(ask: impl Fn() -> Result<T, Rv>) -> Result<T, Rv> {
    for pause in [1, 2, 5, 10, 20, 40] {
        match ask() {
            Err(Rv::GENERAL_ERROR) => std::thread::sleep(std::time::Duration::from_millis(pause)),
            answer => return answer,
        }
    }
    ask()
}
