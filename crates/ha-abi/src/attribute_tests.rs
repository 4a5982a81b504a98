//! The conventions of `C_GetAttributeValue`, from both sides: a module made of `answer_attributes` is asked by
//! `fetch_attributes`.

use ha_token::ck::*;
use ha_token::{Attribute, AttributeType, Fetched, Rv, Ulong, Value};

use crate::{answer_attributes, attribute_types, fetch_attributes};

fn value(bytes: &[u8]) -> Fetched {
    Fetched::Value(Attribute::bytes(0, bytes).value)
}

fn slot(kind: AttributeType, buffer: Option<&mut [u8]>) -> CK_ATTRIBUTE {
    let (p, len) = buffer.map_or((std::ptr::null_mut(), 0), |b| (b.as_mut_ptr(), b.len()));
    CK_ATTRIBUTE { type_: kind, pValue: p.cast(), ulValueLen: len as Ulong }
}

#[test]
fn a_buffer_one_byte_short_is_too_small_and_an_exact_one_fits() {
    let (mut exact, mut short, mut other) = ([0u8; 4], [0u8; 3], [0u8; 9]);
    let mut template = [
        slot(CKA_ID, Some(&mut exact)),
        slot(CKA_LABEL, Some(&mut short)),
        slot(CKA_VALUE, None),
        slot(CKA_SUBJECT, Some(&mut other)),
    ];
    let fetched = [value(b"abcd"), value(b"abcd"), value(b"abcd"), value(b"xy")];
    // SAFETY: the buffers are there.
    let answer = unsafe { answer_attributes(template.as_mut_ptr(), &fetched) };
    assert_eq!(answer, Err(Rv::BUFFER_TOO_SMALL));
    let lengths: Vec<Ulong> = template.iter().map(|a| a.ulValueLen).collect();
    assert_eq!(lengths, [4, CK_UNAVAILABLE_INFORMATION, 4, 2]);
    assert_eq!((&exact, &short, &other[..2]), (b"abcd", &[0; 3], &b"xy"[..]));
}

#[test]
fn a_left_over_unavailable_length_is_not_room() {
    let mut buffer = [0u8; 2];
    let mut template = slot(CKA_ID, Some(&mut buffer));
    template.ulValueLen = CK_UNAVAILABLE_INFORMATION;
    // SAFETY: nothing is written beyond the buffer, which is what is checked.
    let answer = unsafe { answer_attributes(&raw mut template, &[value(b"x")]) };
    assert_eq!((answer, buffer), (Err(Rv::BUFFER_TOO_SMALL), [0, 0]));
}

#[test]
fn a_nested_template_is_served_in_three_rounds() {
    let inner = vec![Attribute::bytes(CKA_ID, *b"id"), Attribute::bytes(CKA_LABEL, *b"label")];
    let fetched = [Fetched::Value(Value::Template(inner))];
    let mut outer = slot(CKA_WRAP_TEMPLATE, None);
    // SAFETY: a null value asks for the length.
    assert_eq!(unsafe { answer_attributes(&raw mut outer, &fetched) }, Ok(()));
    assert_eq!(outer.ulValueLen as usize, 2 * size_of::<CK_ATTRIBUTE>());
    let mut slots = [slot(0, None), slot(0, None)];
    outer.pValue = slots.as_mut_ptr().cast();
    // SAFETY: two attributes are there.
    assert_eq!(unsafe { answer_attributes(&raw mut outer, &fetched) }, Ok(()));
    assert_eq!(slots.map(|a| (a.type_, a.ulValueLen)), [(CKA_ID, 2), (CKA_LABEL, 5)]);
    let (mut id, mut label) = ([0u8; 2], [0u8; 4]);
    slots = [slot(0, Some(&mut id)), slot(0, Some(&mut label))];
    outer.pValue = slots.as_mut_ptr().cast();
    // SAFETY: as above, with their buffers.
    assert_eq!(unsafe { answer_attributes(&raw mut outer, &fetched) }, Err(Rv::BUFFER_TOO_SMALL));
    assert_eq!(slots.map(|a| a.ulValueLen), [2, CK_UNAVAILABLE_INFORMATION]);
    assert_eq!(&id, b"id");
}

#[test]
fn sensitive_and_missing_attributes_do_not_stop_the_others() {
    let mut buffer = [0u8; 2];
    let mut template = [slot(CKA_VALUE, None), slot(CKA_MODULUS, None), slot(CKA_ID, Some(&mut buffer))];
    let fetched = [Fetched::Sensitive, Fetched::Invalid, value(b"id")];
    // SAFETY: the buffer is there.
    let answer = unsafe { answer_attributes(template.as_mut_ptr(), &fetched) };
    assert_eq!(answer, Err(Rv::ATTRIBUTE_SENSITIVE));
    assert_eq!(template[0].ulValueLen, CK_UNAVAILABLE_INFORMATION);
    assert_eq!(template[1].ulValueLen, CK_UNAVAILABLE_INFORMATION);
    assert_eq!(&buffer, b"id");
}

/// A module that serves these values; counts its calls.
fn module(
    values: Vec<(AttributeType, Fetched)>,
    calls: &mut u32,
) -> impl FnMut(*mut CK_ATTRIBUTE, CK_ULONG) -> CK_RV {
    move |template, count| {
        *calls += 1;
        // SAFETY: `fetch_attributes` gives a template of that many attributes.
        let types = unsafe { attribute_types(template, count) }.unwrap();
        let answers: Vec<Fetched> = types
            .iter()
            .map(|t| values.iter().find(|(k, _)| k == t).map_or(Fetched::Invalid, |(_, v)| v.clone()))
            .collect();
        // SAFETY: the same template, with the space it gives.
        unsafe { answer_attributes(template, &answers) }.map_or_else(|rv| rv.0, |()| CKR_OK)
    }
}

#[test]
fn short_values_take_one_call() {
    for len in [0, 1, 256, 264] {
        let mut calls = 0;
        let expected = vec![value(&vec![7; len]), value(b"x")];
        let values = vec![(CKA_MODULUS, expected[0].clone()), (CKA_ID, expected[1].clone())];
        let got = fetch_attributes(&mut module(values, &mut calls), &[CKA_MODULUS, CKA_ID]);
        assert_eq!(got, Ok(expected));
        assert_eq!(calls, 1, "{len} bytes");
    }
}

#[test]
fn long_sensitive_missing_and_nested_values_are_told_apart() {
    let nested = Value::Template(vec![
        Attribute::bytes(CKA_LABEL, vec![1; 300]),
        Attribute::template(CKA_DERIVE_TEMPLATE, vec![Attribute::bool(CKA_SIGN, true)]),
        Attribute::bytes(CKA_ID, Vec::new()),
    ]);
    let values = vec![
        (CKA_MODULUS, value(&[1; 265])),
        (CKA_PRIME, value(&[2; 5000])),
        (CKA_VALUE, Fetched::Sensitive),
        (CKA_ID, value(b"id")),
        (CKA_UNWRAP_TEMPLATE, Fetched::Value(nested)),
    ];
    let types = [CKA_MODULUS, CKA_PRIME, CKA_VALUE, CKA_OWNER, CKA_ID, CKA_UNWRAP_TEMPLATE];
    let expected: Vec<Fetched> = types
        .iter()
        .map(|t| values.iter().find(|(k, _)| k == t).map_or(Fetched::Invalid, |(_, v)| v.clone()))
        .collect();
    let mut calls = 0;
    assert_eq!(fetch_attributes(&mut module(values, &mut calls), &types), Ok(expected));
}

#[test]
fn a_module_that_stops_at_the_first_bad_attribute_gives_no_made_up_values() {
    let mut stops = |template: *mut CK_ATTRIBUTE, count: CK_ULONG| {
        let mut calls = 0;
        let mut honest = module(vec![(CKA_ID, value(b"id"))], &mut calls);
        for i in 0..count as usize {
            let rv = honest(template.wrapping_add(i), 1);
            if rv != CKR_OK {
                return rv;
            }
        }
        CKR_OK
    };
    let got = fetch_attributes(&mut stops, &[CKA_VALUE, CKA_ID]);
    assert_eq!(got, Ok(vec![Fetched::Invalid, value(b"id")]));
}

#[test]
fn a_value_that_grows_between_calls_is_asked_for_again_but_not_for_ever() {
    let mut round = 0;
    let mut grows = |template: *mut CK_ATTRIBUTE, count: CK_ULONG| {
        round += 1;
        let len = if round < 3 { 300 * round } else { 900 };
        let mut calls = 0;
        module(vec![(CKA_VALUE, value(&vec![3; len]))], &mut calls)(template, count)
    };
    assert_eq!(fetch_attributes(&mut grows, &[CKA_VALUE]), Ok(vec![value(&[3; 900])]));

    let mut round = 0;
    let mut endless = |template: *mut CK_ATTRIBUTE, count: CK_ULONG| {
        round += 1;
        let mut calls = 0;
        module(vec![(CKA_VALUE, value(&vec![3; 300 * round]))], &mut calls)(template, count)
    };
    assert_eq!(fetch_attributes(&mut endless, &[CKA_VALUE]), Err(Rv::GENERAL_ERROR));
}

#[test]
fn other_codes_are_handed_on() {
    let got = fetch_attributes(&mut |_, _| CKR_DEVICE_ERROR, &[CKA_ID]);
    assert_eq!(got, Err(Rv::DEVICE_ERROR));
}
