//! What a token wrote into a mechanism, back into the `cryptoki` crate's.

use cryptoki::mechanism::Mechanism as TheirMechanism;
use ha_token::Mechanism;
use ha_token::ck::CK_MECHANISM;

use crate::mechanism::{write_back_mechanism, write_back_message_params};

/// Copies what the token wrote (an IV or a tag that it made, the handles of further derived keys) from `ours` into the
/// buffers that the `cryptoki` crate's mechanism borrows mutably. Mechanisms that borrow none are left as they are.
///
/// `ours` was made from `theirs` by [`from_cryptoki_mechanism`](crate::from_cryptoki_mechanism).
pub fn write_back_cryptoki_mechanism(theirs: &TheirMechanism<'_>, ours: &Mechanism) {
    let mut raw = CK_MECHANISM::from(theirs);
    if raw.mechanism != ours.kind {
        return;
    }
    match theirs {
        // SAFETY: the crate made the structure, which borrows IV and tag mutably and is not changed through a shared
        // reference; only those two are written.
        TheirMechanism::AesGcmMessage(_) => unsafe {
            write_back_message_params(raw.mechanism, &ours.params, raw.pParameter, raw.ulParameterLen);
        },
        TheirMechanism::AesGcm(_)
        | TheirMechanism::KbkdfCounter(_)
        | TheirMechanism::KbkdfFeedback(_)
        | TheirMechanism::KbkdfDoublePipeline(_) => {
            // SAFETY: as above; what is written is the IV, or the handles of the derived keys.
            unsafe { write_back_mechanism(ours, &raw mut raw) }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use cryptoki::mechanism::aead::{GcmMessageParams, GcmParams, GeneratorFunction};
    use ha_token::{FieldValue, Params};

    use super::*;
    use crate::from_cryptoki_mechanism;

    fn fill(m: &mut Mechanism, field: &str, with: &[u8]) {
        let Params::Struct(s) = &mut m.params else { panic!("{m:?} is no structure") };
        match s.field_mut(field) {
            Some(FieldValue::Output(Some(bytes))) => bytes.copy_from_slice(with),
            other => panic!("{field} is {other:?}"),
        }
    }

    #[test]
    fn a_message_gets_its_iv_and_tag() {
        let (mut iv, mut tag) = ([1; 12], [2; 16]);
        let params =
            GcmMessageParams::new(&mut iv, 32.into(), GeneratorFunction::GenerateCounter, &mut tag).unwrap();
        let theirs = TheirMechanism::AesGcmMessage(params);
        let mut ours = from_cryptoki_mechanism(&theirs).unwrap();
        fill(&mut ours, "pIv", &[3; 12]);
        fill(&mut ours, "pTag", &[4; 16]);
        write_back_cryptoki_mechanism(&theirs, &ours);
        assert_eq!((iv, tag), ([3; 12], [4; 16]));
    }

    #[test]
    fn another_mechanisms_answer_is_not_written() {
        let mut iv = [1; 12];
        let theirs = TheirMechanism::AesGcm(GcmParams::new(&mut iv, b"aad", 128.into()).unwrap());
        write_back_cryptoki_mechanism(&theirs, &Mechanism::bytes(ha_token::ck::CKM_AES_CBC, &[9; 12]));
        assert_eq!(iv, [1; 12]);
    }
}
