//! What happens behind the caller's back to the module itself: sessions that are lost, and a token in another's place.

use cryptoki_sys as ck;
use ha_token::{Ulong, unpad};

use crate::live::Live;
use crate::module::Module;
use crate::outputs::Pointers;
use crate::shape::Operation;
use crate::state::Swapped;
use crate::tracking::Swap;

/// Closes every session that the caller has, and makes its handles invalid.
pub(crate) fn lose_sessions(module: &Module, live: &Live) {
    let sessions = live.tracking().lose_sessions();
    sessions.into_iter().for_each(|session| close(module, session));
}

/// Closes a session of the module's.
pub(crate) fn close(module: &Module, session: Ulong) {
    if let Some(close) = module.real().C_CloseSession {
        // SAFETY: a number; what it means is for the module to say.
        unsafe { close(session) };
    }
}

/// Begins or ends a swap, as it is wanted now. Sessions and handles do not outlive either.
pub(crate) fn align(module: &Module, live: &Live, wanted: Option<&Swapped>) {
    let (same, settled) = {
        let tracking = live.tracking();
        let now = tracking.swap.as_ref();
        (now.map(|swap| &swap.what) == wanted, now.is_none_or(|swap| swap.slots.is_some()))
    };
    if same && settled {
        return;
    }
    if !same {
        lose_sessions(module, live);
        let mut tracking = live.tracking();
        tracking.object_handles.lose();
        tracking.swap = wanted.map(|what| Swap { what: what.clone(), slots: None });
    }
    let Some(wanted) = wanted else { return };
    // Before `C_Initialize` no slots are told; then it is tried again with the next call.
    let Some(tokens) = tokens(module) else { return };
    let of = |label: &str| tokens.iter().find(|(_, l)| l == label).map(|(slot, _)| *slot);
    match (of(&wanted.token), of(&wanted.other)) {
        (Some(own), Some(other)) => {
            if let Some(swap) = &mut live.tracking().swap {
                swap.slots = Some((own, other));
            }
        }
        _ => crate::say(&format!("a swap needs tokens {:?} and {:?}", wanted.token, wanted.other)),
    }
}

/// More slots than any module has.
const MOST_SLOTS: Ulong = 1 << 16;

/// The module's own slots with the labels of their tokens.
fn tokens(module: &Module) -> Option<Vec<(Ulong, String)>> {
    let list = module.real().C_GetSlotList?;
    let mut count = 0;
    // SAFETY: asks for the count.
    if unsafe { list(ck::CK_TRUE, std::ptr::null_mut(), &mut count) } != ck::CKR_OK {
        return None;
    }
    // Who counts more than any module has counts wrongly.
    if count > MOST_SLOTS {
        return None;
    }
    let mut slots = vec![0; count as usize];
    // SAFETY: room for so many.
    if unsafe { list(ck::CK_TRUE, slots.as_mut_ptr(), &mut count) } != ck::CKR_OK {
        return None;
    }
    slots.truncate(count as usize);
    Some(slots.into_iter().filter_map(|slot| Some((slot, unpad(&token_info(module, slot)?.label)))).collect())
}

fn token_info(module: &Module, slot: Ulong) -> Option<ck::CK_TOKEN_INFO> {
    let mut info = ck::CK_TOKEN_INFO::default();
    // SAFETY: a number, and a place for the answer.
    let rv = unsafe { module.real().C_GetTokenInfo?(slot, &mut info) };
    (rv == ck::CKR_OK).then_some(info)
}

/// What the other token said of itself, under the name of the one that it stands in for.
pub(crate) fn keep_identity(module: &Module, own: Ulong, pointers: &Pointers<'_>) {
    if !pointers.tell_of_a_token() {
        return;
    }
    if let Some(identity) = token_info(module, own) {
        pointers.change_token_info(|told| {
            told.label = identity.label;
            told.manufacturerID = identity.manufacturerID;
            told.model = identity.model;
            told.serialNumber = identity.serialNumber;
        });
    }
}

/// Room for what ends an operation and is thrown away.
const SCRATCH: usize = 64 << 10;

/// Ends an operation of the module's, as an error answer of its own would have.
pub(crate) fn end(real: &ck::CK_FUNCTION_LIST_3_2, session: Ulong, operation: Operation) {
    let flag = match operation {
        Operation::Encrypt => ck::CKF_ENCRYPT,
        Operation::Decrypt => ck::CKF_DECRYPT,
        Operation::Digest => ck::CKF_DIGEST,
        Operation::Sign => ck::CKF_SIGN,
        Operation::SignRecover => ck::CKF_SIGN_RECOVER,
        Operation::Verify => ck::CKF_VERIFY,
        Operation::VerifyRecover => ck::CKF_VERIFY_RECOVER,
        Operation::MessageEncrypt => ck::CKF_MESSAGE_ENCRYPT,
        Operation::MessageDecrypt => ck::CKF_MESSAGE_DECRYPT,
        Operation::MessageSign => ck::CKF_MESSAGE_SIGN,
        Operation::MessageVerify => ck::CKF_MESSAGE_VERIFY,
    };
    if let Some(cancel) = real.C_SessionCancel {
        // SAFETY: numbers.
        if unsafe { cancel(session, flag) } == ck::CKR_OK {
            return;
        }
    }
    // A module of 2.40 has no word for it: the operation is brought to an end, and where it is not one of several parts,
    // it is done with data of ours.
    let mut out = vec![0u8; SCRATCH];
    let mut len = SCRATCH as ck::CK_ULONG;
    let (output, mut data) = (out.as_mut_ptr(), [0u8; 32]);
    let (input, short) = (data.as_mut_ptr(), data.len() as ck::CK_ULONG);
    macro_rules! ended {
        ($last:ident, $whole:ident) => {{
            // SAFETY: room for as much as is said.
            let ended = real.$last.is_some_and(|f| unsafe { f(session, output, &mut len) } == ck::CKR_OK);
            if !ended && let Some(whole) = real.$whole {
                len = SCRATCH as ck::CK_ULONG;
                // SAFETY: as above, and data.
                unsafe { whole(session, input, short, output, &mut len) };
            }
        }};
    }
    match operation {
        Operation::Encrypt => ended!(C_EncryptFinal, C_Encrypt),
        Operation::Decrypt => ended!(C_DecryptFinal, C_Decrypt),
        Operation::Digest => ended!(C_DigestFinal, C_Digest),
        Operation::Sign => ended!(C_SignFinal, C_Sign),
        Operation::Verify => {
            if let Some(last) = real.C_VerifyFinal {
                // SAFETY: a signature that is none.
                unsafe { last(session, input, short) };
            }
            if let Some(whole) = real.C_Verify {
                // SAFETY: the same, of data.
                unsafe { whole(session, input, short, output, short) };
            }
        }
        Operation::SignRecover => {
            if let Some(whole) = real.C_SignRecover {
                // SAFETY: data, and room for as much as is said.
                unsafe { whole(session, input, short, output, &mut len) };
            }
        }
        Operation::VerifyRecover => {
            if let Some(whole) = real.C_VerifyRecover {
                // SAFETY: as above.
                unsafe { whole(session, input, short, output, &mut len) };
            }
        }
        // Those came with `C_SessionCancel`.
        _ => {}
    }
}
