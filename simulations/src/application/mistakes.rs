//! The application's own mistakes: each is answered as a single token answers it, whichever member is asked, and is no
//! reason to suspect one.

use ha_token::*;

use super::{Application, Step};
use crate::model::{Failed, Standing, Thing};
use crate::plan::Kind;

/// What a token that is asked for what a key cannot do may answer.
const NOT_WITH_THIS_KEY: &[Rv] =
    &[Rv::MECHANISM_INVALID, Rv::KEY_TYPE_INCONSISTENT, Rv::KEY_FUNCTION_NOT_PERMITTED];

impl Application<'_> {
    /// Asks an object of the thread's for what it cannot do.
    pub(super) fn mistake(&self, n: u8) {
        let Some(thing) = self.stage.model.choose(self.me, n, Standing::There) else { return };
        let handle = match self.handle(&thing) {
            Ok(Some(handle)) => handle,
            Ok(None) => return,
            Err(failed) => return self.failed_with(&thing, "search", &failed),
        };
        let ledger = self.stage.ledger_is_well();
        let (asked, right) = match thing.kind {
            Kind::Aes if n & 0x40 == 0 => (self.too_short(handle), &[Rv::DATA_LEN_RANGE][..]),
            Kind::Mac | Kind::Aes if n & 0x80 == 0 => (self.wrong_mechanism(handle), NOT_WITH_THIS_KEY),
            _ => (self.wrong_attribute(&thing, handle), &[Rv::ATTRIBUTE_TYPE_INVALID][..]),
        };
        match asked {
            Ok(()) => self.stage.broken("G8", format!("{} did what it cannot do", thing.name())),
            Err(Failed { rv, .. }) if right.contains(&rv) => {}
            // A change is no mistake before the ledger was asked.
            Err(Failed { step, rv })
                if self.stage.must_succeed()
                    && self.stage.model.is_as_before(&thing)
                    && ledger.is_some()
                    && ledger == self.stage.ledger_is_well() =>
            {
                let how = format!("{}: {step} answered a mistake with {rv}, not {right:?}", thing.name());
                self.stage.broken("G8", how);
            }
            Err(Failed { step, rv }) => self.stage.say(format_args!("a mistake: {step} answered {rv}")),
        }
    }

    /// Part of a block, where only whole ones will do.
    fn too_short(&self, handle: ObjectHandle) -> Step<()> {
        let (slot, s) = (&self.slot, self.session);
        let mut mechanism = Mechanism { kind: ck::CKM_AES_CBC, params: Params::Bytes(vec![7; 16].into()) };
        self.at("C_EncryptInit", slot.op_init(s, OpKind::Encrypt, Some(&mut mechanism), handle))?;
        let mut space = [0u8; 64];
        let mut out = Output::buffer(&mut space);
        self.at("C_Encrypt", slot.op_one_shot(s, OpKind::Encrypt, b"short", &mut out))
    }

    fn wrong_mechanism(&self, handle: ObjectHandle) -> Step<()> {
        let mut mechanism = Mechanism::plain(ck::CKM_ECDSA);
        let begun = self.slot.op_init(self.session, OpKind::Sign, Some(&mut mechanism), handle);
        self.at("C_SignInit", begun)
    }

    /// An attribute that no object of this kind has.
    fn wrong_attribute(&self, thing: &Thing, handle: ObjectHandle) -> Step<()> {
        let kind = if thing.kind == Kind::Rsa { ck::CKA_EC_POINT } else { ck::CKA_MODULUS };
        let template = vec![Attribute::bytes(kind, [1, 2, 3])];
        self.at("C_SetAttributeValue", self.slot.set_attributes(self.session, handle, &template))
    }
}
