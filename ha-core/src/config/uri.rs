//! PKCS#11 URIs (RFC 7512), as far as they name a token.

use ha_token::Selector;

/// Reads a URI's path attributes into a selector.
///
/// # Errors
/// What is wrong with it, in words that repeat none of it. Attributes that name objects or modules are refused: a member is a token.
pub(super) fn selector(uri: &str) -> Result<Selector, &'static str> {
    let rest = uri.strip_prefix("pkcs11:").ok_or("it does not start with \"pkcs11:\"")?;
    let path = rest.split_once('?').map_or(rest, |(path, _query)| path);
    let mut selector = Selector::default();
    for attribute in path.split(';').filter(|a| !a.is_empty()) {
        let (name, value) = attribute.split_once('=').ok_or("an attribute has no value")?;
        let value = decode(value)?;
        let place = match name {
            "token" => &mut selector.label,
            "serial" => &mut selector.serial,
            "manufacturer" => &mut selector.manufacturer,
            "model" => &mut selector.model,
            "slot-id" => {
                let id = value.parse().map_err(|_| "slot-id is not a number")?;
                if selector.slot_id.replace(id).is_some() {
                    return Err("slot-id stands twice");
                }
                continue;
            }
            _ => {
                return Err(
                    "an attribute does not name a token (token, serial, manufacturer, model and slot-id do)",
                );
            }
        };
        if value.is_empty() {
            return Err("an attribute is empty");
        }
        if place.replace(value).is_some() {
            return Err("an attribute stands twice");
        }
    }
    if selector == Selector::default() {
        return Err("it names no token");
    }
    Ok(selector)
}

/// The URI that a selector is read from.
pub(super) fn of(selector: &Selector) -> String {
    let Selector { label, serial, manufacturer, model, slot_id } = selector;
    let named = [("token", label), ("serial", serial), ("manufacturer", manufacturer), ("model", model)];
    let mut parts: Vec<_> =
        named.into_iter().filter_map(|(n, v)| Some(format!("{n}={}", encode(v.as_ref()?)))).collect();
    parts.extend(slot_id.map(|id| format!("slot-id={id}")));
    format!("pkcs11:{}", parts.join(";"))
}

fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn decode(text: &str) -> Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits: Option<u8> = rest.next().zip(rest.next()).and_then(|(a, b)| {
            let digit = |c: u8| char::from(c).to_digit(16);
            Some((digit(a)? * 16 + digit(b)?) as u8)
        });
        bytes.push(digits.ok_or("a % is not followed by two hex digits")?);
    }
    String::from_utf8(bytes).map_err(|_| "an attribute is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_a_token() {
        let s = selector("pkcs11:token=The%20token;serial=01%3b;slot-id=7?pin-source=x").unwrap();
        assert_eq!(
            (s.label.as_deref(), s.serial.as_deref(), s.slot_id),
            (Some("The token"), Some("01;"), Some(7))
        );
    }

    #[test]
    fn what_does_not_name_a_token_is_refused() {
        for bad in [
            "",
            "token=x",
            "pkcs11:",
            "pkcs11:object=k",
            "pkcs11:token",
            "pkcs11:token=%2",
            "pkcs11:token=%ff",
            "pkcs11:token=a;token=b",
            "pkcs11:slot-id=x",
        ] {
            assert!(selector(bad).is_err(), "{bad}");
        }
    }
}
