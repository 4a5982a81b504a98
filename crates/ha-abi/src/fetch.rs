//! The module's side of `C_GetAttributeValue`: values of any length in few calls.

use ha_token::ck::{CK_ATTRIBUTE, CK_RV, CK_ULONG, CK_UNAVAILABLE_INFORMATION};
use ha_token::{Attribute, AttributeType, Fetched, Result, Rv, Template, Value};

use crate::arena::Arena;
use crate::slice::{copy_out, load, store};
use crate::write::ulong;
use crate::{MAX_BYTES, MAX_DEPTH, MAX_ITEMS};

/// A module's `C_GetAttributeValue` for one object.
type Call<'a> = &'a mut dyn FnMut(*mut CK_ATTRIBUTE, CK_ULONG) -> CK_RV;

/// Space for each value in the first call. Not a length that values have: a length that comes back unchanged beside an
/// error shows a module that stopped at the first bad attribute.
const INLINE: usize = 264;
/// What a value gets beyond its length, for the same reason.
const SLACK: usize = 8;
/// How often a value that grows between two calls is asked for again.
const TRIES: usize = 4;

/// Fetches attributes of one object: one call when all values are short, two more for those that are not, and single ones
/// for nested templates and where the module's answer leaves open why a value is missing.
///
/// # Errors
/// The module's code, if it is not about single attributes; `GENERAL_ERROR` for a value longer than 64 MiB or one that
/// never stops growing.
pub fn fetch_attributes(
    call: &mut dyn FnMut(*mut CK_ATTRIBUTE, CK_ULONG) -> CK_RV,
    types: &[AttributeType],
) -> Result<Vec<Fetched>> {
    let mut found: Vec<Option<Fetched>> = types.iter().map(|_| None).collect();
    let plain: Vec<(usize, usize)> = types
        .iter()
        .enumerate()
        .filter(|(_, kind)| !Attribute::is_template(**kind))
        .map(|(i, _)| (i, INLINE))
        .collect();
    ask(call, types, &plain, &mut found)?;
    let open = |found: &[Option<Fetched>]| -> Vec<usize> {
        plain.iter().map(|(i, _)| *i).filter(|i| found.get(*i).is_some_and(Option::is_none)).collect()
    };
    let long = open(&found);
    if long.len() > 1 {
        let lengths: Vec<(usize, usize)> = long.iter().map(|i| (*i, 0)).collect();
        let lengths = ask(call, types, &lengths, &mut found)?;
        ask(call, types, &lengths, &mut found)?;
    }
    types
        .iter()
        .zip(found)
        .map(|(kind, found)| match found {
            Some(found) => Ok(found),
            None if Attribute::is_template(*kind) => fetch_template(call, *kind),
            None => fetch_one(call, *kind),
        })
        .collect()
}

/// Whether the code speaks of single attributes, so that the others were served.
fn partial(rv: Rv) -> bool {
    matches!(rv, Rv::ATTRIBUTE_SENSITIVE | Rv::ATTRIBUTE_TYPE_INVALID | Rv::BUFFER_TOO_SMALL)
}

/// One call for several attributes, each an index into `types` with its space (0: length only). Fills in what the answer
/// settles; gives the lengths of the values that did not fit, as far as they are known.
fn ask(
    call: Call<'_>,
    types: &[AttributeType],
    asked: &[(usize, usize)],
    found: &mut [Option<Fetched>],
) -> Result<Vec<(usize, usize)>> {
    let mut lengths = Vec::new();
    if asked.is_empty() {
        return Ok(lengths);
    }
    let mut arena = Arena::new();
    let total = asked.iter().map(|(_, room)| room.next_multiple_of(16)).sum();
    let space = arena.alloc(total).ok_or(Rv::HOST_MEMORY)?;
    let mut raw = Vec::with_capacity(asked.len());
    let mut offsets = Vec::with_capacity(asked.len());
    let mut offset = 0usize;
    for (i, room) in asked {
        let p = if *room == 0 { std::ptr::null_mut() } else { space.wrapping_add(offset) };
        let kind = types.get(*i).copied().unwrap_or(0);
        raw.push(CK_ATTRIBUTE { type_: kind, pValue: p.cast(), ulValueLen: ulong(*room) });
        offsets.push(offset);
        offset += room.next_multiple_of(16);
    }
    let rv = Rv(call(raw.as_mut_ptr(), ulong(raw.len())));
    let ok = Rv::check(rv.0).is_ok();
    if !ok && !partial(rv) {
        return Err(rv);
    }
    let missing = raw.iter().filter(|a| a.ulValueLen == CK_UNAVAILABLE_INFORMATION).count();
    for (((i, room), offset), answer) in asked.iter().zip(offsets).zip(&raw) {
        let Some(place) = found.get_mut(*i) else { continue };
        let len = usize::try_from(answer.ulValueLen).unwrap_or(usize::MAX);
        if answer.ulValueLen == CK_UNAVAILABLE_INFORMATION {
            // The code is the reason of the only attribute that has one; of several, each is asked for singly.
            if missing == 1 && rv == Rv::ATTRIBUTE_SENSITIVE {
                *place = Some(Fetched::Sensitive);
            } else if missing == 1 && rv == Rv::ATTRIBUTE_TYPE_INVALID {
                *place = Some(Fetched::Invalid);
            }
        } else if *room > 0 && len <= *room && (ok || len != *room) {
            // SAFETY: `len` bytes of this attribute's space, initialised.
            let bytes = unsafe { copy_out(space.wrapping_add(offset), len) };
            *place = Some(Fetched::Value(bytes_value(bytes)));
        } else if *room == 0 && (ok || len != 0) && len <= MAX_BYTES {
            lengths.push((*i, len + SLACK));
        }
    }
    Ok(lengths)
}

fn bytes_value(bytes: Vec<u8>) -> Value {
    Attribute::bytes(0, bytes).value
}

/// One attribute by itself, where the code cannot be about another.
fn fetch_one(call: Call<'_>, kind: AttributeType) -> Result<Fetched> {
    let mut room = 0usize;
    for _ in 0..2 * TRIES {
        let mut arena = Arena::new();
        let space = arena.alloc(room).ok_or(Rv::HOST_MEMORY)?;
        let p = if room == 0 { std::ptr::null_mut() } else { space };
        let mut raw = CK_ATTRIBUTE { type_: kind, pValue: p.cast(), ulValueLen: ulong(room) };
        let rv = Rv(call(&raw mut raw, 1));
        let known = raw.ulValueLen != CK_UNAVAILABLE_INFORMATION;
        let len = usize::try_from(raw.ulValueLen).unwrap_or(usize::MAX);
        match rv {
            Rv::ATTRIBUTE_SENSITIVE => return Ok(Fetched::Sensitive),
            Rv::ATTRIBUTE_TYPE_INVALID => return Ok(Fetched::Invalid),
            Rv::BUFFER_TOO_SMALL => room = if known && len > room { len } else { 0 },
            // No value and no reason: the object has none.
            _ if Rv::check(rv.0).is_ok() && !known => return Ok(Fetched::Invalid),
            _ if Rv::check(rv.0).is_ok() => {
                if len == 0 || (room > 0 && len <= room) {
                    // SAFETY: `len` bytes of the block, initialised.
                    return Ok(Fetched::Value(bytes_value(unsafe { copy_out(space, len) })));
                }
                room = len;
            }
            _ => return Err(rv),
        }
        if room > MAX_BYTES {
            return Err(Rv::GENERAL_ERROR);
        }
    }
    Err(Rv::GENERAL_ERROR)
}

/// The space given for one attribute, and for those inside it.
#[derive(Default)]
struct Node {
    room: usize,
    data: Option<*mut u8>,
    inner: Vec<Node>,
}

/// A nested template: each round gives space for what the round before found.
fn fetch_template(call: Call<'_>, kind: AttributeType) -> Result<Fetched> {
    let mut arena = Arena::new();
    let mut root = Node::default();
    let slot = arena.alloc(size_of::<CK_ATTRIBUTE>()).ok_or(Rv::HOST_MEMORY)?;
    // SAFETY: the block has that size.
    unsafe { store(slot, 0, CK_ATTRIBUTE { type_: kind, pValue: std::ptr::null_mut(), ulValueLen: 0 }) };
    for _ in 0..MAX_DEPTH + TRIES {
        // SAFETY: the slot and all that the nodes describe are the arena's.
        unsafe { offer(slot, &root) };
        let rv = Rv(call(slot.cast(), 1));
        match rv {
            Rv::ATTRIBUTE_SENSITIVE => return Ok(Fetched::Sensitive),
            Rv::ATTRIBUTE_TYPE_INVALID => return Ok(Fetched::Invalid),
            Rv::BUFFER_TOO_SMALL => {}
            _ => Rv::check(rv.0)?,
        }
        // SAFETY: as above.
        let len: CK_ULONG = unsafe { load::<CK_ATTRIBUTE>(slot, 0) }.ulValueLen;
        if len == CK_UNAVAILABLE_INFORMATION && root.data.is_none() {
            return Ok(Fetched::Invalid);
        }
        // SAFETY: as above.
        if !unsafe { grow(slot, &mut root, kind, 0, &mut arena) }? {
            // SAFETY: as above.
            return Ok(Fetched::Value(unsafe { collect(slot, &root, kind) }));
        }
    }
    Err(Rv::GENERAL_ERROR)
}

/// Puts the space that there is into the slots, inner ones too.
///
/// # Safety
/// `slot` points at an attribute of the arena, and so do the node's data.
unsafe fn offer(slot: *mut u8, node: &Node) {
    let data = node.data.unwrap_or(std::ptr::null_mut());
    // SAFETY: within the attribute.
    unsafe { store(slot, std::mem::offset_of!(CK_ATTRIBUTE, pValue), data) };
    // SAFETY: within the attribute.
    unsafe { store(slot, std::mem::offset_of!(CK_ATTRIBUTE, ulValueLen), ulong(node.room)) };
    for (i, inner) in node.inner.iter().enumerate() {
        // SAFETY: the node's data have room for its inner attributes.
        unsafe { offer(data.wrapping_add(i * size_of::<CK_ATTRIBUTE>()), inner) }
    }
}

/// Gives space where the answer asks for more; false if there was nothing to give.
///
/// # Safety
/// As [`offer`].
unsafe fn grow(
    slot: *mut u8,
    node: &mut Node,
    kind: AttributeType,
    depth: usize,
    arena: &mut Arena,
) -> Result<bool> {
    // SAFETY: within the arena.
    let answer: CK_ATTRIBUTE = unsafe { load(slot, 0) };
    if answer.ulValueLen == CK_UNAVAILABLE_INFORMATION {
        // Too small for what it is by now: ask for the length again. Without space it is unavailable for good.
        let had = node.data.is_some();
        *node = Node::default();
        return Ok(had);
    }
    let size = size_of::<CK_ATTRIBUTE>();
    let len = usize::try_from(answer.ulValueLen).unwrap_or(usize::MAX);
    if len > node.room {
        if len > MAX_BYTES {
            return Err(Rv::GENERAL_ERROR);
        }
        node.inner.clear();
        if Attribute::is_template(kind) {
            if len % size != 0 || len / size > MAX_ITEMS || depth >= MAX_DEPTH {
                return Err(Rv::GENERAL_ERROR);
            }
            node.inner.resize_with(len / size, Node::default);
        }
        node.data = Some(arena.alloc(len).ok_or(Rv::HOST_MEMORY)?);
        node.room = len;
        return Ok(true);
    }
    let Some(data) = node.data else { return Ok(false) };
    let mut grew = false;
    for (i, inner) in node.inner.iter_mut().enumerate().take(len / size) {
        let slot = data.wrapping_add(i * size);
        // SAFETY: the node's data have room for its inner attributes.
        let kind = unsafe { load::<CK_ATTRIBUTE>(slot, 0) }.type_;
        // SAFETY: as above.
        grew |= unsafe { grow(slot, inner, kind, depth + 1, arena) }?;
    }
    Ok(grew)
}

/// The value that the slots hold by now.
///
/// # Safety
/// As [`offer`].
unsafe fn collect(slot: *const u8, node: &Node, kind: AttributeType) -> Value {
    // SAFETY: within the arena.
    let answer: CK_ATTRIBUTE = unsafe { load(slot, 0) };
    let len = usize::try_from(answer.ulValueLen).unwrap_or(0).min(node.room);
    let data = node.data.unwrap_or(std::ptr::null_mut());
    if !Attribute::is_template(kind) {
        // SAFETY: `len` bytes of the node's data, none where it has none.
        return bytes_value(unsafe { copy_out(data, len) });
    }
    let mut template = Template::new();
    for (i, inner) in node.inner.iter().enumerate().take(len / size_of::<CK_ATTRIBUTE>()) {
        let slot = data.wrapping_add(i * size_of::<CK_ATTRIBUTE>());
        // SAFETY: the node's data have room for its inner attributes.
        let kind = unsafe { load::<CK_ATTRIBUTE>(slot, 0) }.type_;
        // SAFETY: as above.
        template.push(Attribute { kind, value: unsafe { collect(slot, inner, kind) } });
    }
    Value::Template(template)
}
