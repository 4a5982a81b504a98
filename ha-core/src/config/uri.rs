//! PKCS#11 URIs (RFC 7512), as far as they name a token.

use ha_token::Selector;

/// Reads a URI's path attributes into a selector.
///
/// # Errors
/// What is wrong with it, in words. Attributes that name objects or modules are refused: a member is a token.
pub(super) fn selector(uri: &str) -> Result<Selector, String> {
    let rest = uri.strip_prefix("pkcs11:").ok_or("a PKCS#11 URI starts with \"pkcs11:\"")?;
    let path = rest.split_once('?').map_or(rest, |(path, _query)| path);
    let mut selector = Selector::default();
    for attribute in path.split(';').filter(|a| !a.is_empty()) {
        let (name, value) = attribute.split_once('=').ok_or_else(|| format!("{attribute:?} has no value"))?;
        let value = decode(value)?;
        let place = match name {
            "token" => &mut selector.label,
            "serial" => &mut selector.serial,
            "manufacturer" => &mut selector.manufacturer,
            "model" => &mut selector.model,
            "slot-id" => {
                let id = value.parse().map_err(|_| format!("slot-id {value:?} is not a number"))?;
                if selector.slot_id.replace(id).is_some() {
                    return Err("slot-id stands twice".into());
                }
                continue;
            }
            other => {
                return Err(format!(
                    "{other:?} does not name a token; use token, serial, manufacturer, model or slot-id"
                ));
            }
        };
        if place.replace(value).is_some() {
            return Err(format!("{name} stands twice"));
        }
    }
    if selector == Selector::default() {
        return Err("the URI names no token".into());
    }
    Ok(selector)
}

fn decode(text: &str) -> Result<String, String> {
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
        bytes.push(digits.ok_or_else(|| format!("{text:?}: a % is followed by two hex digits"))?);
    }
    String::from_utf8(bytes).map_err(|_| format!("{text:?} is not UTF-8"))
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
