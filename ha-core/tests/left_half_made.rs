//! What SoftHSM leaves on its disk when the process that makes a key is killed: a key with its names and without a value,
//! and whoever uses it is ended by SoftHSM.
#![allow(missing_docs, clippy::unwrap_used)]

mod open_group;

use std::path::PathBuf;

use ha_rig::{Alone, Tokens, is_alone};
use ha_token::{Attribute, Mechanism, Template, Ulong, ck};
use open_group::{Open, private};

/// The folder that SoftHSM keeps a token in.
fn folder(tokens: &Tokens, i: usize) -> PathBuf {
    std::fs::read_dir(tokens.store(i)).unwrap().next().unwrap().unwrap().path()
}

/// Puts such a key beside the others, in the form that SoftHSM gives its files: a count, then each attribute's type, the
/// kind of its value, and that.
fn leave_half_made(tokens: &Tokens, i: usize, class: Ulong, label: &[u8], id: &[u8]) -> PathBuf {
    let is_private = class == ck::CKO_PRIVATE_KEY;
    let number = |n: Ulong| (2u64, (n as u64).to_be_bytes().to_vec());
    let flag = |yes: bool| (1u64, vec![if yes { 255 } else { 0 }]);
    let bytes = |b: &[u8]| (3u64, [&(b.len() as u64).to_be_bytes(), b].concat());
    let attributes = [
        (ck::CKA_CLASS, number(class)),
        (ck::CKA_TOKEN, flag(true)),
        (ck::CKA_PRIVATE, flag(false)),
        (ck::CKA_LABEL, bytes(label)),
        (ck::CKA_VALUE, bytes(b"")),
        (ck::CKA_KEY_TYPE, number(if is_private { ck::CKK_EC } else { ck::CKK_GENERIC_SECRET })),
        (ck::CKA_ID, bytes(id)),
        (ck::CKA_SENSITIVE, flag(true)),
        (ck::CKA_SIGN, flag(true)),
        (ck::CKA_EXTRACTABLE, flag(false)),
        (ck::CKA_MODIFIABLE, flag(true)),
        (ck::CKA_COPYABLE, flag(true)),
        (ck::CKA_DESTROYABLE, flag(true)),
        if is_private { (ck::CKA_EC_PARAMS, bytes(b"")) } else { (ck::CKA_VALUE_LEN, number(0)) },
    ];
    let mut file = 1u64.to_be_bytes().to_vec();
    for (kind, (of, value)) in attributes {
        file.extend((kind as u64).to_be_bytes());
        file.extend(of.to_be_bytes());
        file.extend(value);
    }
    let path = folder(tokens, i).join(format!("00000000-0000-0000-0000-00000000000{class}.object"));
    std::fs::write(&path, file).unwrap();
    path
}

#[test]
fn a_key_that_was_left_half_made_is_none_and_goes_with_its_tombstone() {
    let name = "a_key_that_was_left_half_made_is_none_and_goes_with_its_tombstone";
    if !is_alone(name) {
        Alone::new(name).run();
        return;
    }
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    open.ec_pair(1).unwrap();
    drop(open);
    let pair = leave_half_made(&tokens, 1, ck::CKO_PRIVATE_KEY, b"key", &[1]);

    // The member that has it serves alone.
    tokens.hide(0);
    let open = Open::new(&tokens, "");
    assert_eq!(open.find(&Template::new()).len(), 2, "it is no object");
    let [key] = open.find(&private(1))[..] else { panic!("the key is there once") };
    open.sign(key).unwrap();
    drop(open);

    // Of a secret key only its answers tell that it has no value.
    tokens.restore(0);
    let open = Open::new(&tokens, "");
    let secret = vec![
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::ulong(ck::CKA_VALUE_LEN, 32),
        Attribute::bool(ck::CKA_SIGN, true),
        Attribute::bytes(ck::CKA_LABEL, *b"mac"),
        Attribute::bytes(ck::CKA_ID, [2]),
    ];
    let mut generate = Mechanism::plain(ck::CKM_GENERIC_SECRET_KEY_GEN);
    open.slot.generate_key(open.s, &mut generate, &secret).unwrap();
    drop(open);
    let secret = leave_half_made(&tokens, 1, ck::CKO_SECRET_KEY, b"mac", &[2]);

    // What they seem to be is destroyed while the member is away.
    tokens.hide(1);
    let open = Open::new(&tokens, "");
    for object in open.find(&Template::new()) {
        open.slot.destroy_object(open.s, object).unwrap();
    }
    drop(open);
    tokens.restore(1);
    let open = Open::new(&tokens, "");
    let folder = folder(&tokens, 1);
    let is_gone = |left: &PathBuf| !folder.join(left.file_name().unwrap()).exists();
    open.wait("they are destroyed as well", |_| is_gone(&pair) && is_gone(&secret));
    assert_eq!(open.find(&Template::new()).len(), 0);
}

#[test]
fn a_copy_that_was_not_yet_told_to_be_the_tokens_is_none_and_goes_with_its_tombstone() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens, "");
    let data = vec![
        Attribute::ulong(ck::CKA_CLASS, ck::CKO_DATA),
        Attribute::bool(ck::CKA_TOKEN, true),
        Attribute::bool(ck::CKA_PRIVATE, false),
        Attribute::bytes(ck::CKA_LABEL, *b"copied"),
        Attribute::bytes(ck::CKA_VALUE, *b"value"),
    ];
    open.slot.create_object(open.s, &data).unwrap();
    drop(open);
    // The same once more, as SoftHSM leaves a copy of a session object: it is not the token's yet.
    let folder = folder(&tokens, 1);
    let objects =
        std::fs::read_dir(&folder).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
    let is_it = |object: &Vec<u8>| object.windows(6).any(|part| part == b"copied");
    let mut object = objects.into_iter().find(is_it).unwrap();
    let of_token: Vec<u8> = [(ck::CKA_TOKEN as u64).to_be_bytes(), 1u64.to_be_bytes()]
        .concat()
        .into_iter()
        .chain([255])
        .collect();
    let at = object.windows(of_token.len()).position(|part| part == of_token).unwrap();
    object[at + of_token.len() - 1] = 0;
    let left = folder.join("00000000-0000-0000-0000-000000000000.object");
    std::fs::write(&left, object).unwrap();

    tokens.hide(0);
    let open = Open::new(&tokens, "");
    assert_eq!(open.find(&Template::new()).len(), 1, "it is there once");
    drop(open);
    tokens.restore(0);
    tokens.hide(1);
    let open = Open::new(&tokens, "");
    open.find(&Template::new()).into_iter().for_each(|o| open.slot.destroy_object(open.s, o).unwrap());
    drop(open);
    tokens.restore(1);
    let open = Open::new(&tokens, "");
    open.wait("it is destroyed as well", |_| !left.exists());
    assert_eq!(open.find(&Template::new()).len(), 0);
}
