//! The copies of an object, held against each other and against what the application gave it.

use ha_token::{AttributeType, TemplateExt, ck};

use crate::model::{Standing, Thing};
use crate::plan::Kind;
use crate::stage::Stage;
use crate::token::Inspected;

/// What tells how a copy came to its token, and nothing of what it is.
const OF_ITS_MAKING: [AttributeType; 8] = [
    ck::CKA_UNIQUE_ID,
    ck::CKA_LOCAL,
    ck::CKA_KEY_GEN_MECHANISM,
    ck::CKA_ALWAYS_SENSITIVE,
    ck::CKA_NEVER_EXTRACTABLE,
    ck::CKA_CHECK_VALUE,
    ck::CKA_VALUE_LEN,
    ck::CKA_MODULUS_BITS,
];

/// The copies of an object, by member, among what each holds.
pub(super) fn of<'a>(held: &'a [Vec<Inspected>], thing: &Thing) -> Vec<Vec<&'a Inspected>> {
    held.iter().map(|all| all.iter().filter(|o| thing.is(o)).collect()).collect()
}

/// G3 and G8: each member has one copy at most, and the copies do not differ.
pub(super) fn same(stage: &Stage, thing: &Thing, copies: &[Vec<&Inspected>]) {
    if let Err((guarantee, how)) = judge(thing, copies) {
        stage.broken(guarantee, how);
    }
}

fn judge(thing: &Thing, copies: &[Vec<&Inspected>]) -> Result<(), (&'static str, String)> {
    let name = thing.name();
    if copies.iter().any(|c| c.len() > 1) {
        return Err(("G8", format!("{name} is twice on one member")));
    }
    let all: Vec<&Inspected> = copies.iter().flatten().copied().collect();
    let Some(first) = all.first() else { return Ok(()) };
    for copy in &all {
        if copy.material != first.material {
            return Err(("G3", format!("the copies of {name} differ")));
        }
        if thing.kind != Kind::Data && !thing.ids.contains(&copy.id) {
            return Err(("G8", format!("a copy of {name} has the id {:02x?}", copy.id)));
        }
        let lacks = |flag: &&AttributeType| copy.attributes.get_bool(**flag) != Some(true);
        if let Some(flag) = thing.flags().iter().find(lacks) {
            return Err(("G8", format!("a copy of {name} lacks the flag {flag:#x}")));
        }
        // Also after a change of which nothing was said: every member has made it at rest, or none.
        let told = thing.standing == Standing::There;
        let differs = |kind: &AttributeType| {
            told && !OF_ITS_MAKING.contains(kind) && copy.attributes.get(*kind) != first.attributes.get(*kind)
        };
        // What one of them lacks is a difference too.
        if let Some(kind) = copy.attributes.iter().chain(&first.attributes).map(|a| a.kind).find(differs) {
            return Err(("G8", format!("the copies of {name} differ in the attribute {kind:#x}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ha_token::Attribute;

    use super::*;
    use crate::model::{Model, Owner};

    fn copy(thing: &Thing, id: &[u8], flags: &[(AttributeType, bool)]) -> Inspected {
        Inspected {
            number: 0,
            class: thing.class(),
            key_type: ck::CKK_AES,
            label: thing.label.as_bytes().to_vec(),
            id: id.to_vec(),
            attributes: flags.iter().map(|(kind, on)| Attribute::bool(*kind, *on)).collect(),
            material: vec![7],
        }
    }

    #[test]
    fn copies_that_differ_are_found_out() {
        let mut thing = Model::default().make(Kind::Aes, Owner::SHARED, 1).remove(0);
        thing.standing = Standing::There;
        let id = thing.ids[0].clone();
        let right = copy(&thing, &id, &[(ck::CKA_ENCRYPT, true)]);
        assert_eq!(judge(&thing, &[vec![&right], vec![&right]]), Ok(()));
        let broken = |other: Inspected| {
            let there = judge(&thing, &[vec![&right], vec![&other]]).unwrap_err();
            assert_eq!(judge(&thing, &[vec![&other], vec![&right]]).unwrap_err().0, there.0);
            there
        };
        assert_eq!(broken(Inspected { material: vec![8], ..right.clone() }).0, "G3");
        assert!(broken(copy(&thing, &[9], &[(ck::CKA_ENCRYPT, true)])).1.contains("has the id"));
        assert!(broken(copy(&thing, &id, &[(ck::CKA_ENCRYPT, false)])).1.contains("lacks the flag"));
        let more = copy(&thing, &id, &[(ck::CKA_ENCRYPT, true), (ck::CKA_DECRYPT, true)]);
        assert!(broken(more).1.contains("in the attribute"));
        let twice = judge(&thing, &[vec![&right, &right], vec![&right]]);
        assert!(twice.unwrap_err().1.contains("twice"));
    }
}
