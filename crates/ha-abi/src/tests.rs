//! Round trips through every layout, and what hostile or truncated structures get.

use std::collections::HashMap;

use ha_token::ck::*;
use ha_token::{
    Attribute, Field, FieldValue, Mechanism, ObjectHandle, Params, Rv, StructParams, TemplateExt, Ulong,
};
use proptest::prelude::*;

use crate::layout::{Kind, Layout, Len};
use crate::layouts::all;
use crate::mechanisms::{Shape, message_shape, shape};
use crate::*;

/// A small generator, so that a seed makes a whole structure.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn below(&mut self, n: u64) -> usize {
        (self.roll() % n) as usize
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.roll() as u8).collect()
    }
}

fn made(layout: &'static Layout, dice: &mut Dice, outer: &HashMap<usize, Ulong>) -> StructParams {
    // Lengths that are shared by pointers or listed as fields are drawn once, by their place.
    let mut lengths: HashMap<usize, Ulong> = HashMap::new();
    for spec in layout.fields {
        if let Kind::Bytes(len) | Kind::Output(len) = spec.kind {
            match len {
                Len::Own(at) | Len::Listed(at) => lengths.insert(at, dice.roll() % 40),
                Len::Bits(at) => lengths.insert(at, dice.roll() % 300),
                _ => None,
            };
        }
    }
    for spec in layout.fields {
        if matches!(spec.kind, Kind::Ulong) {
            lengths.entry(spec.offset).or_insert(dice.roll() % 200);
        }
    }
    let fields = layout.fields.iter().map(|spec| {
        let bytes = |len: Len, dice: &mut Dice| match len {
            Len::Own(at) | Len::Listed(at) => Some(dice.bytes(lengths[&at] as usize)),
            Len::Bits(at) => Some(dice.bytes(lengths[&at].div_ceil(8) as usize)),
            Len::OuterBits(at) => outer.get(&at).map(|n| dice.bytes(n.div_ceil(8) as usize)),
            Len::Indirect(_) => (dice.below(4) > 0).then(|| {
                let n = dice.below(30);
                dice.bytes(n)
            }),
            Len::Fixed(n) => (dice.below(4) > 0).then(|| dice.bytes(n)),
            Len::Terminated => Some(dice.bytes(9).into_iter().map(|b| b | 1).collect()),
            Len::Unknown => None,
        };
        let value = match spec.kind {
            Kind::Ulong => FieldValue::Ulong(lengths[&spec.offset]),
            Kind::Byte => FieldValue::Byte(dice.roll() as u8),
            Kind::Inline(n) => FieldValue::Inline(dice.bytes(n)),
            Kind::Handle => FieldValue::Handle(ObjectHandle(dice.roll())),
            Kind::OutputHandle | Kind::OutputHandlePtr => {
                FieldValue::OutputHandles(vec![ObjectHandle(dice.roll())])
            }
            Kind::Bytes(len) => FieldValue::Bytes(bytes(len, dice)),
            Kind::Output(len) => FieldValue::Output(bytes(len, dice)),
            Kind::Struct(inner) => FieldValue::Struct(Some(Box::new(made(inner, dice, &lengths)))),
            Kind::StructPtr(inner) => {
                FieldValue::Struct((dice.below(4) > 0).then(|| Box::new(made(inner, dice, &lengths))))
            }
            Kind::List { item, .. } => {
                FieldValue::List((0..dice.below(4)).map(|_| made(item, dice, &lengths)).collect())
            }
            Kind::Mechanism => FieldValue::Mechanism(match dice.below(3) {
                0 => None,
                1 => Some(Box::new(Mechanism::bytes(CKM_AES_CBC, &dice.bytes(16)))),
                _ => {
                    let params =
                        Params::Struct(Box::new(made(&crate::layouts::symmetric::OAEP, dice, &lengths)));
                    Some(Box::new(Mechanism { kind: CKM_RSA_PKCS_OAEP, params }))
                }
            }),
            Kind::Template { .. } => FieldValue::Template(vec![
                Attribute::ulong(CKA_CLASS, dice.roll()),
                Attribute::template(CKA_DERIVE_TEMPLATE, vec![Attribute::bool(CKA_SIGN, true)]),
            ]),
            Kind::PrfValue { .. } => {
                if lengths[&0] == CK_SP800_108_KEY_HANDLE {
                    FieldValue::Handle(ObjectHandle(dice.roll()))
                } else {
                    FieldValue::Bytes(Some(dice.bytes(7)))
                }
            }
        };
        Field { name: spec.name, value }
    });
    StructParams { layout: layout.name, fields: fields.collect() }
}

/// Every mechanism number that may have a structure, with it; per-message ones marked.
fn users() -> Vec<(Ulong, bool, &'static Layout)> {
    let mut found = Vec::new();
    for kind in 0..0x5000 {
        for (message, shape) in [(false, shape(kind)), (true, message_shape(kind))] {
            match shape {
                Shape::Structs(all) => found.extend(all.iter().map(|l| (kind, message, *l))),
                Shape::StructOrBytes(l) => found.push((kind, message, l)),
                Shape::Bytes | Shape::Plain(_) => {}
            }
        }
    }
    found.push((CKM_PKCS5_PBKD2, false, &crate::layouts::derive::PBKD2_OLD));
    found
}

fn round_trip(kind: Ulong, message: bool, params: Params) -> ha_token::Result<Params> {
    if message {
        let mut raw = RawParams::new(&params)?;
        // SAFETY: the C form was just laid out.
        return unsafe { read_message_params(kind, raw.as_mut_ptr(), raw.len()) };
    }
    let mut raw = RawMechanism::new(&Mechanism { kind, params })?;
    // SAFETY: as above.
    Ok(unsafe { read_mechanism(raw.as_mut_ptr()) }?.params)
}

#[test]
fn every_layout_has_a_mechanism_or_an_owner() {
    let mut reached: Vec<&str> = users().iter().map(|(_, _, l)| l.name).collect();
    for layout in all() {
        for spec in layout.fields {
            match spec.kind {
                Kind::Struct(l) | Kind::StructPtr(l) | Kind::List { item: l, .. } => reached.push(l.name),
                _ => {}
            }
        }
    }
    for layout in all() {
        assert!(reached.contains(&layout.name), "{} is out of reach", layout.name);
    }
}

#[test]
fn truncated_structures_are_refused() {
    for (kind, message, layout) in users() {
        let params = Params::Struct(Box::new(made(layout, &mut Dice(7), &HashMap::new())));
        let mut raw = RawParams::new(&params).unwrap();
        for len in [1, layout.size - 1] {
            let len = len as Ulong;
            let mut mechanism =
                CK_MECHANISM { mechanism: kind, pParameter: raw.as_mut_ptr(), ulParameterLen: len };
            let answer = if message {
                // SAFETY: shorter than what is there.
                unsafe { read_message_params(kind, mechanism.pParameter, len) }
            } else {
                // SAFETY: as above.
                unsafe { read_mechanism(&raw mut mechanism) }.map(|m| m.params)
            };
            if matches!(shape(kind), Shape::StructOrBytes(_)) {
                assert!(matches!(answer, Ok(Params::Bytes(_))), "{}", layout.name);
            } else {
                assert_eq!(answer, Err(Rv::MECHANISM_PARAM_INVALID), "{} of {len}", layout.name);
            }
        }
    }
}

#[test]
fn null_and_overlong_inner_pointers_are_refused() {
    let byte = 0u8;
    for (p, len) in [(std::ptr::null(), 1), (&raw const byte, Ulong::MAX), (&raw const byte, (64 << 20) + 1)]
    {
        let mut oaep = CK_RSA_PKCS_OAEP_PARAMS {
            hashAlg: CKM_SHA256,
            mgf: 2,
            source: 1,
            pSourceData: p.cast_mut().cast(),
            ulSourceDataLen: len,
        };
        let mechanism = CK_MECHANISM {
            mechanism: CKM_RSA_PKCS_OAEP,
            pParameter: (&raw mut oaep).cast(),
            ulParameterLen: size_of::<CK_RSA_PKCS_OAEP_PARAMS>() as Ulong,
        };
        // SAFETY: refused before the pointer is followed.
        assert_eq!(unsafe { read_mechanism(&raw const mechanism) }, Err(Rv::MECHANISM_PARAM_INVALID));
    }
    // SAFETY: null is what is checked.
    assert_eq!(unsafe { read_mechanism(std::ptr::null()) }, Err(Rv::ARGUMENTS_BAD));
    let null = CK_MECHANISM { mechanism: CKM_AES_CBC, pParameter: std::ptr::null_mut(), ulParameterLen: 16 };
    // SAFETY: as above.
    assert_eq!(unsafe { read_mechanism(&raw const null) }, Err(Rv::MECHANISM_PARAM_INVALID));
}

#[test]
fn a_gcm_message_structure_in_a_mechanism_is_known_for_what_it_is() {
    let (mut iv, mut tag) = ([1u8; 12], [2u8; 16]);
    for generator in [CKG_NO_GENERATE, CKG_GENERATE, CKG_GENERATE_COUNTER_XOR] {
        let mut caller = CK_GCM_MESSAGE_PARAMS {
            pIv: iv.as_mut_ptr(),
            ulIvLen: 12,
            ulIvFixedBits: 32,
            ivGenerator: generator,
            pTag: tag.as_mut_ptr(),
            ulTagBits: 128,
        };
        let m = CK_MECHANISM {
            mechanism: CKM_AES_GCM,
            pParameter: (&raw mut caller).cast(),
            ulParameterLen: size_of::<CK_GCM_MESSAGE_PARAMS>() as Ulong,
        };
        // SAFETY: the structure and its buffers are there.
        let ours = unsafe { read_mechanism(&raw const m) }.unwrap();
        let s = ours.params.as_struct().unwrap();
        assert_eq!(s.layout, "CK_GCM_MESSAGE_PARAMS");
        assert_eq!(s.field("pTag"), Some(&FieldValue::Output(Some(tag.to_vec()))));
    }
}

#[test]
fn lengths_that_disagree_are_not_laid_out() {
    let mut s = made(&crate::layouts::symmetric::GCM_MESSAGE, &mut Dice(1), &HashMap::new());
    *s.field_mut("ulTagBits").unwrap() = FieldValue::Ulong(128);
    *s.field_mut("pTag").unwrap() = FieldValue::Output(Some(vec![0; 15]));
    assert_eq!(RawParams::new(&Params::Struct(Box::new(s))).err(), Some(Rv::MECHANISM_PARAM_INVALID));
}

#[test]
fn what_a_module_writes_reaches_the_caller() {
    let (mut iv, mut tag) = ([0u8; 12], [0u8; 16]);
    let mut caller = CK_GCM_MESSAGE_PARAMS {
        pIv: iv.as_mut_ptr(),
        ulIvLen: 12,
        ulIvFixedBits: 0,
        ivGenerator: CKG_GENERATE,
        pTag: tag.as_mut_ptr(),
        ulTagBits: 128,
    };
    let (p, len) = ((&raw mut caller).cast(), size_of::<CK_GCM_MESSAGE_PARAMS>() as Ulong);
    // SAFETY: the structure and its buffers are there.
    let mut params = unsafe { read_message_params(CKM_AES_GCM, p, len) }.unwrap();
    let mut raw = RawParams::new(&params).unwrap();
    let module = raw.as_mut_ptr().cast::<CK_GCM_MESSAGE_PARAMS>();
    // SAFETY: the C form has this type.
    let module = unsafe { &mut *module };
    // SAFETY: twelve bytes are there.
    unsafe { module.pIv.write_bytes(0xA1, 12) };
    // SAFETY: sixteen bytes are there.
    unsafe { module.pTag.write_bytes(0xB2, 16) };
    raw.update(&mut params);
    // SAFETY: what it was read from, unchanged.
    unsafe { write_back_message_params(CKM_AES_GCM, &params, p, len) };
    assert_eq!((iv, tag), ([0xA1; 12], [0xB2; 16]));
}

#[test]
fn derived_handles_and_shortened_outputs_reach_the_caller() {
    let (mut seed, mut label, mut out, mut out_len) = ([1u8; 4], [2u8; 4], [0u8; 8], 8 as Ulong);
    let mut caller = CK_TLS_PRF_PARAMS {
        pSeed: seed.as_mut_ptr(),
        ulSeedLen: 4,
        pLabel: label.as_mut_ptr(),
        ulLabelLen: 4,
        pOutput: out.as_mut_ptr(),
        pulOutputLen: &raw mut out_len,
    };
    let mut m = CK_MECHANISM {
        mechanism: CKM_TLS_PRF,
        pParameter: (&raw mut caller).cast(),
        ulParameterLen: size_of::<CK_TLS_PRF_PARAMS>() as Ulong,
    };
    // SAFETY: the structure and its buffers are there.
    let mut ours = unsafe { read_mechanism(&raw const m) }.unwrap();
    let Params::Struct(s) = &mut ours.params else { panic!("a structure") };
    *s.field_mut("pOutput").unwrap() = FieldValue::Output(Some(vec![9; 5]));
    // SAFETY: what it was read from, unchanged.
    unsafe { write_back_mechanism(&ours, &raw mut m) };
    assert_eq!((out, out_len), ([9, 9, 9, 9, 9, 0, 0, 0], 5));

    let mut handle: Ulong = 0;
    let mut key =
        CK_DERIVED_KEY { pTemplate: std::ptr::null_mut(), ulAttributeCount: 0, phKey: &raw mut handle };
    let mut kdf = CK_SP800_108_KDF_PARAMS {
        prfType: CKM_SHA256_HMAC,
        ulNumberOfDataParams: 0,
        pDataParams: std::ptr::null_mut(),
        ulAdditionalDerivedKeys: 1,
        pAdditionalDerivedKeys: &raw mut key,
    };
    let mut m = CK_MECHANISM {
        mechanism: CKM_SP800_108_COUNTER_KDF,
        pParameter: (&raw mut kdf).cast(),
        ulParameterLen: size_of::<CK_SP800_108_KDF_PARAMS>() as Ulong,
    };
    // SAFETY: as above.
    let mut ours = unsafe { read_mechanism(&raw const m) }.unwrap();
    let Params::Struct(s) = &mut ours.params else { panic!("a structure") };
    s.translate_outputs(&mut |_| Ok(ObjectHandle(77))).unwrap();
    // SAFETY: as above.
    unsafe { write_back_mechanism(&ours, &raw mut m) };
    assert_eq!(handle, 77);
}

#[test]
fn an_unchanged_iv_in_read_only_memory_is_not_written() {
    static IV: [u8; 16] = [5; 16];
    let mut m = CK_MECHANISM {
        mechanism: CKM_AES_CBC,
        pParameter: IV.as_ptr().cast_mut().cast(),
        ulParameterLen: 16,
    };
    // SAFETY: sixteen bytes are there.
    let ours = unsafe { read_mechanism(&raw const m) }.unwrap();
    assert_eq!(ours, Mechanism::bytes(CKM_AES_CBC, &IV));
    // SAFETY: nothing differs, so nothing is written; a write would end the process.
    unsafe { write_back_mechanism(&ours, &raw mut m) };
}

#[test]
fn templates_that_nest_without_end_are_refused() {
    let mut own = CK_ATTRIBUTE {
        type_: CKA_WRAP_TEMPLATE,
        pValue: std::ptr::null_mut(),
        ulValueLen: size_of::<CK_ATTRIBUTE>() as Ulong,
    };
    let p = &raw mut own;
    // SAFETY: the attribute is there.
    unsafe { (*p).pValue = p.cast() };
    // SAFETY: it points at itself, which is an attribute.
    assert_eq!(unsafe { read_template(p, 1) }, Err(Rv::ATTRIBUTE_VALUE_INVALID));
    // SAFETY: null is what is checked.
    assert_eq!(unsafe { read_template(std::ptr::null(), 1) }, Err(Rv::ARGUMENTS_BAD));
    // SAFETY: refused before it is read.
    assert_eq!(unsafe { read_template(p, Ulong::MAX) }, Err(Rv::ARGUMENTS_BAD));
}

#[test]
fn cryptoki_values_come_through() {
    use ::cryptoki::mechanism::Mechanism as Theirs;
    assert_eq!(
        from_cryptoki_mechanism(&Theirs::AesCbc([3; 16])),
        Ok(Mechanism::bytes(CKM_AES_CBC, &[3; 16]))
    );
    assert_eq!(from_cryptoki_mechanism(&Theirs::RsaPkcs), Ok(Mechanism::plain(CKM_RSA_PKCS)));
    let label = Attribute::bytes(CKA_LABEL, *b"key");
    let theirs = to_cryptoki_attribute(label.kind, &label.value).unwrap();
    assert_eq!(theirs, ::cryptoki::object::Attribute::Label(b"key".to_vec()));
    assert_eq!(from_cryptoki_attribute(&theirs), label);
    assert!(to_cryptoki_attribute(CKA_START_DATE, &Attribute::bytes(0, *b"short").value).is_none());
    assert_eq!(object_handle(ObjectHandle(4)).handle(), 4);
}

proptest! {
    #[test]
    fn every_structure_survives_the_round_trip(seed in any::<u64>()) {
        let mut dice = Dice(seed);
        for (kind, message, layout) in users() {
            let params = Params::Struct(Box::new(made(layout, &mut dice, &HashMap::new())));
            prop_assert_eq!(round_trip(kind, message, params.clone()), Ok(params), "{}", layout.name);
        }
    }

    #[test]
    fn templates_survive_the_round_trip(values in prop::collection::vec((0..0x300u64, any::<Vec<u8>>()), 0..8)) {
        let mut template: Vec<Attribute> =
            values.into_iter().map(|(kind, v)| Attribute::bytes(kind, v)).collect();
        template.set(Attribute::template(CKA_UNWRAP_TEMPLATE, template.clone()));
        let mut raw = RawTemplate::new(&template);
        let (p, n) = (raw.as_mut_ptr(), raw.len());
        // SAFETY: the C form was just laid out.
        prop_assert_eq!(unsafe { read_template(p, n) }, Ok(template));
    }
}
