//! Answers that do not tell what was done: nothing is lost by them, comes back after them, or is left over (guarantees G1, G2).
#![allow(missing_docs, clippy::unwrap_used)]

mod watched;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ha_core::group::{CaughtUp, Group, Origin, Word};
use ha_core::provider::Provider;
use ha_rig::{Act, PIN, Tokens, Watch};
use ha_token::*;
use watched::{start, wait};

const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const SOON: &str = "[group.recovery]\ninterval = \"5ms\"\nmax_interval = \"20ms\"";
/// Answers after which nobody knows what was done.
const VAGUE: [Rv; 3] = [Rv::DEVICE_ERROR, Rv::GENERAL_ERROR, Rv::FUNCTION_FAILED];

struct Open {
    provider: Provider,
    members: Vec<Arc<Watch>>,
    slot: Arc<dyn Token>,
    s: SessionHandle,
}

impl Open {
    fn new(tokens: &Tokens) -> Self {
        let (provider, members) = start(&tokens.config(false, SOON));
        let slot = Arc::clone(provider.slot(0).unwrap());
        let s = slot.open_session(true).unwrap();
        let open = Open { provider, members, slot, s };
        open.log_in();
        open
    }

    fn log_in(&self) {
        while let Err(rv) = self.slot.login(self.s, UserType::User, Some(PIN.as_bytes())) {
            assert_eq!(rv, Rv::DEVICE_ERROR);
            wait(&self.provider.groups()[0], "a member is up", |g| g.up().next().is_some());
        }
    }

    fn all_up(&self) {
        wait(&self.provider.groups()[0], "every member is up", |g| g.up().count() == g.members.len());
    }

    fn pair(&self, id: u8) -> Result<()> {
        let token = Attribute::bool(ck::CKA_TOKEN, true);
        let id = Attribute::bytes(ck::CKA_ID, [id]);
        let public = vec![token.clone(), Attribute::bytes(ck::CKA_EC_PARAMS, P256), id.clone()];
        let private = vec![token, Attribute::bool(ck::CKA_SIGN, true), id];
        let mut mechanism = Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN);
        self.slot.generate_key_pair(self.s, &mut mechanism, &public, &private).map(drop)
    }

    fn find(&self, id: u8) -> Vec<ObjectHandle> {
        self.slot.find_objects_init(self.s, &vec![Attribute::bytes(ck::CKA_ID, [id])]).unwrap();
        let found = self.slot.find_objects(self.s, 100).unwrap();
        self.slot.find_objects_final(self.s).unwrap();
        found
    }

    fn destroy(&self, id: u8) -> Vec<Result<()>> {
        self.find(id).into_iter().map(|object| self.slot.destroy_object(self.s, object)).collect()
    }

    /// Everything has come to rest: every member holds what the ledger says, and no other one of this id.
    fn at_rest(&self, tokens: &Tokens, id: u8, expected: usize) {
        self.all_up();
        let holds = |member: usize| {
            let list = tokens.bare(member, &["--list-objects"]);
            list.matches(&format!("ID:         {id:02x}\n")).count()
        };
        // The keepers are at it; the test runner's own limit ends what never comes.
        while (0..self.members.len()).any(|m| holds(m) != expected) {
            std::thread::yield_now();
        }
        assert_eq!(self.find(id).len(), expected);
    }
}

#[test]
fn a_destruction_that_got_no_answer_is_finished_although_the_application_logs_out_at_once() {
    for rv in VAGUE {
        for act in [Act::Answer(rv), Act::DoneAndAnswer(rv)] {
            let tokens = Tokens::new(2);
            let open = Open::new(&tokens);
            open.pair(1).unwrap();
            open.members[1].next(Function::DestroyObject, act);
            assert!(open.destroy(1).iter().all(|answer| *answer == Ok(())), "{rv}");
            open.slot.logout(open.s).unwrap();
            open.log_in();
            open.at_rest(&tokens, 1, 0);
            drop(open);
            let again = Open::new(&tokens);
            again.at_rest(&tokens, 1, 0);
        }
    }
}

#[test]
fn a_destruction_that_no_member_is_known_to_have_made_leaves_the_key_whole() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens);
    open.pair(1).unwrap();
    // The first member did it and did not say so; the other one did not.
    open.members[0].next(Function::DestroyObject, Act::DoneAndAnswer(Rv::FUNCTION_FAILED));
    open.members[1].next(Function::DestroyObject, Act::Answer(Rv::FUNCTION_FAILED));
    let answers = open.destroy(1);
    assert_eq!(answers.iter().filter(|a| a.is_err()).count(), 1, "{answers:?}");
    open.at_rest(&tokens, 1, 1);
    let checked = open.provider.groups()[0].check(true).unwrap();
    assert!(checked.iter().all(|c| c.worst() == Word::Same), "{checked:?}");
}

#[test]
fn a_copy_whose_making_got_no_answer_is_kept_or_goes() {
    for rv in VAGUE {
        for act in [Act::Answer(rv), Act::DoneAndAnswer(rv)] {
            let tokens = Tokens::new(2);
            let open = Open::new(&tokens);
            open.pair(9).unwrap();
            open.members[1].next(Function::UnwrapKey, act);
            let made = open.pair(1);
            open.at_rest(&tokens, 1, if made.is_ok() { 2 } else { 0 });
            drop(open);
            Open::new(&tokens).at_rest(&tokens, 1, if made.is_ok() { 2 } else { 0 });
        }
    }
}

#[test]
fn with_three_members_a_vague_one_is_given_what_the_others_have() {
    for act in [Act::Answer(Rv::GENERAL_ERROR), Act::DoneAndAnswer(Rv::DEVICE_ERROR)] {
        let tokens = Tokens::new(3);
        let open = Open::new(&tokens);
        open.pair(9).unwrap();
        open.members[2].next(Function::UnwrapKey, act);
        open.pair(1).unwrap();
        open.at_rest(&tokens, 1, 2);
        // What nobody counted as there goes with the rest.
        assert!(open.destroy(1).iter().all(|answer| *answer == Ok(())));
        open.at_rest(&tokens, 1, 0);
    }
}

#[test]
fn a_change_that_got_no_answer_is_made() {
    for act in [Act::Answer(Rv::FUNCTION_FAILED), Act::DoneAndAnswer(Rv::DEVICE_ERROR)] {
        let tokens = Tokens::new(2);
        let open = Open::new(&tokens);
        open.pair(1).unwrap();
        open.members[1].next(Function::SetAttributeValue, act);
        let renamed = vec![Attribute::bytes(ck::CKA_ID, [2])];
        for object in open.find(1) {
            open.slot.set_attributes(open.s, object, &renamed).unwrap();
        }
        open.at_rest(&tokens, 2, 2);
        open.at_rest(&tokens, 1, 0);
    }
}

#[test]
fn a_first_name_that_nobody_is_known_to_have_given_is_taken_back() {
    for kind in [ck::CKA_LABEL, ck::CKA_ID] {
        let tokens = Tokens::new(2);
        let open = Open::new(&tokens);
        let mut template = vec![Attribute::ulong(ck::CKA_VALUE_LEN, 32)];
        template.extend([ck::CKA_TOKEN, ck::CKA_SIGN].map(|flag| Attribute::bool(flag, true)));
        let mut generate = Mechanism::plain(ck::CKM_GENERIC_SECRET_KEY_GEN);
        let key = open.slot.generate_key(open.s, &mut generate, &template).unwrap();
        open.members[0].next(Function::SetAttributeValue, Act::DoneAndAnswer(Rv::GENERAL_ERROR));
        open.members[1].next(Function::SetAttributeValue, Act::Answer(Rv::ATTRIBUTE_VALUE_INVALID));
        let named = vec![Attribute::bytes(kind, *b"first")];
        assert!(open.slot.set_attributes(open.s, key, &named).is_err());
        open.all_up();
        let group = &open.provider.groups()[0];
        let is_done =
            |group: &Group| group.sync(true).unwrap().iter().all(|(_, left)| *left == CaughtUp::default());
        wait(group, "nothing is left to do", is_done);
        let count = |token: &Arc<dyn Token>, template: &Template| {
            let s = token.open_session(false).unwrap();
            token.find_objects_init(s, template).unwrap();
            let found = token.find_objects(s, 10).unwrap().len();
            token.close_session(s).unwrap();
            found
        };
        for member in &open.members {
            assert_eq!(count(&member.real(), &named), 0, "it is called so on no token");
        }
        // Whole, and gone with its copies.
        open.slot.destroy_object(open.s, key).unwrap();
        for member in &open.members {
            let secrets = vec![Attribute::ulong(ck::CKA_CLASS, ck::CKO_SECRET_KEY), template[2].clone()];
            assert_eq!(count(&member.real(), &secrets), 0);
        }
    }
}

#[test]
fn a_copy_is_known_by_the_name_that_another_process_has_given_its_source() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens);
    let key = open.secret(1);
    let beside = Open::new(&tokens);
    let [theirs] = beside.find(1)[..] else { panic!("one key") };
    beside
        .slot
        .set_attributes(beside.s, theirs, &vec![Attribute::bytes(ck::CKA_LABEL, *b"renamed")])
        .unwrap();
    let copy = vec![Attribute::bool(ck::CKA_TOKEN, true), Attribute::bytes(ck::CKA_ID, [2])];
    open.slot.copy_object(open.s, key, &copy).unwrap();
    // Whoever comes later finds one of the group's keys.
    let later = Open::new(&tokens);
    let [found] = later.find(2)[..] else { panic!("one key") };
    let read = later.slot.get_attributes(later.s, found, &[ck::CKA_LABEL]).unwrap();
    assert_eq!(read[0].bytes(), Some(&b"renamed"[..]));
    let object = later.provider.groups()[0].objects.get(found).unwrap();
    assert!(matches!(object.origin, Origin::Ledger(_)), "{:?}", object.origin);
}

#[test]
fn what_was_to_be_destroyed_and_was_not_is_found_by_who_saw_it_meanwhile() {
    let tokens = Tokens::new(1);
    let open = Open::new(&tokens);
    let key = open.secret(1);
    let beside = Arc::new(Open::new(&tokens));
    let (looks, tell) = (Arc::clone(&beside), std::sync::mpsc::channel());
    let told = tell.1;
    let refused = move || {
        tell.0.send(looks.find(1)).unwrap();
        Rv::ACTION_PROHIBITED
    };
    open.members[0].next(Function::DestroyObject, Act::Instead(Box::new(refused)));
    assert_eq!(open.slot.destroy_object(open.s, key), Err(Rv::ACTION_PROHIBITED));
    told.recv().unwrap();
    assert_eq!(beside.find(1).len(), 1);
}

#[test]
fn a_key_made_while_a_member_is_on_its_way_back_is_given_to_it() {
    let tokens = Tokens::new(3);
    let open = Open::new(&tokens);
    open.pair(9).unwrap();
    watched::lose(&open.provider.groups()[0], 2, &open.members[2]);
    open.pair(1).unwrap();
    // In the moment in which it is given the first key a second one is made, and a third one destroyed.
    open.pair(3).unwrap();
    let (slot, s) = (Arc::clone(&open.slot), open.s);
    let doomed = open.find(3);
    let (sender, done) = std::sync::mpsc::channel();
    open.members[2].next(
        Function::UnwrapKey,
        Act::First(Box::new(move || {
            let token = Attribute::bool(ck::CKA_TOKEN, true);
            let id = Attribute::bytes(ck::CKA_ID, [2]);
            let public = vec![token.clone(), Attribute::bytes(ck::CKA_EC_PARAMS, P256), id.clone()];
            let private = vec![token, Attribute::bool(ck::CKA_SIGN, true), id];
            let mut mechanism = Mechanism::plain(ck::CKM_EC_KEY_PAIR_GEN);
            slot.generate_key_pair(s, &mut mechanism, &public, &private).unwrap();
            doomed.into_iter().for_each(|object| slot.destroy_object(s, object).unwrap());
            sender.send(()).unwrap();
        })),
    );
    open.members[2].dead.store(false, std::sync::atomic::Ordering::Release);
    done.recv().unwrap();
    for (id, expected) in [(1, 2), (2, 2), (3, 0)] {
        open.at_rest(&tokens, id, expected);
    }
}

/// A search without the user's login shows no private object. The user comes back between the search and the question who
/// is logged in.
#[test]
fn a_search_that_a_logout_and_a_login_surround_is_not_believed() {
    let tokens = Tokens::new(2);
    let open = Arc::new(Open::new(&tokens));
    open.pair(1).unwrap();
    let private = [Attribute::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY), Attribute::bytes(ck::CKA_ID, [1])];
    open.slot.find_objects_init(open.s, &private.to_vec()).unwrap();
    let key = open.slot.find_objects(open.s, 2).unwrap()[0];
    open.slot.find_objects_final(open.s).unwrap();

    let member = &open.members[1];
    member.next(Function::DestroyObject, Act::Answer(Rv::FUNCTION_FAILED));
    let out = Arc::clone(&open);
    member.next(Function::FindObjectsInit, Act::First(Box::new(move || out.slot.logout(out.s).unwrap())));
    let (logged_in, is_logged_in) = std::sync::mpsc::channel();
    member.next(Function::Login, Act::Then(Box::new(move || logged_in.send(()).unwrap())));
    let (back, (user_in, user_is_in)) = (Arc::clone(&open), std::sync::mpsc::channel());
    let come_back = move || {
        // Not here: a login waits for who brings the member up to date, and that is this thread.
        std::thread::spawn(move || {
            back.log_in();
            user_in.send(()).unwrap();
        });
        is_logged_in.recv().unwrap();
    };
    member.next(Function::FindObjectsFinal, Act::Then(Box::new(come_back)));
    open.slot.destroy_object(open.s, key).unwrap();

    user_is_in.recv().unwrap();
    open.at_rest(&tokens, 1, 1);
}

/// A token loses its login, and has it again from elsewhere before anybody asks why an object was not to be found.
#[test]
fn an_object_not_found_without_the_login_is_looked_for_again() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens);
    open.pair(1).unwrap();
    let private = [Attribute::ulong(ck::CKA_CLASS, ck::CKO_PRIVATE_KEY), Attribute::bytes(ck::CKA_ID, [1])];
    open.slot.find_objects_init(open.s, &private.to_vec()).unwrap();
    let key = open.slot.find_objects(open.s, 2).unwrap()[0];
    open.slot.find_objects_final(open.s).unwrap();

    let group = &open.provider.groups()[0];
    watched::lose(group, 0, &open.members[0]);
    let member = &open.members[1];
    let s = member.real().open_session(true).unwrap();
    member.next(Function::SignInit, Act::Answer(Rv::KEY_HANDLE_INVALID));
    let here = member.real();
    member.next(Function::FindObjectsInit, Act::First(Box::new(move || here.logout(s).unwrap())));
    let here = member.real();
    let come_back = move || here.login(s, UserType::User, Some(PIN.as_bytes())).unwrap();
    member.next(Function::FindObjectsFinal, Act::Then(Box::new(come_back)));
    open.slot.op_init(open.s, OpKind::Sign, Some(&mut Mechanism::plain(ck::CKM_ECDSA)), key).unwrap();
}

#[test]
fn a_destruction_whose_answer_was_lost_with_its_session_is_one() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens);
    open.pair(1).unwrap();
    open.members[1].dead.store(true, Ordering::Release);
    let group = &open.provider.groups()[0];
    group.blame(group.members.get(1).unwrap(), Function::Sign, Rv::DEVICE_ERROR);
    wait(group, "one member is up", |g| g.up().count() == 1);
    // It was done: the second try finds nothing.
    open.members[0].next(Function::DestroyObject, Act::DoneAndAnswer(Rv::SESSION_CLOSED));
    assert_eq!(open.destroy(1), [Ok(()), Ok(())]);
    open.members[1].dead.store(false, Ordering::Release);
    open.at_rest(&tokens, 1, 0);
}

impl Open {
    /// An AES key that may be extracted.
    fn secret(&self, id: u8) -> ObjectHandle {
        let mut template = vec![
            Attribute::ulong(ck::CKA_VALUE_LEN, 32),
            Attribute::bytes(ck::CKA_ID, [id]),
            Attribute::bytes(ck::CKA_LABEL, *b"secret"),
        ];
        for flag in [ck::CKA_TOKEN, ck::CKA_EXTRACTABLE, ck::CKA_ENCRYPT] {
            template.push(Attribute::bool(flag, true));
        }
        self.slot.generate_key(self.s, &mut Mechanism::plain(ck::CKM_AES_KEY_GEN), &template).unwrap()
    }

    fn seal(&self, key: ObjectHandle) -> Result<()> {
        self.slot.set_attributes(self.s, key, &vec![Attribute::bool(ck::CKA_EXTRACTABLE, false)])
    }

    /// Every copy may not be extracted, and nothing is left to do.
    fn is_sealed(&self) {
        let group = &self.provider.groups()[0];
        self.all_up();
        let is_done =
            |group: &Group| group.sync(true).unwrap().iter().all(|(_, left)| *left == CaughtUp::default());
        wait(group, "nothing is left to do", is_done);
        for member in &self.members {
            let token = member.real();
            let s = token.open_session(false).unwrap();
            token.find_objects_init(s, &vec![Attribute::bytes(ck::CKA_LABEL, *b"secret")]).unwrap();
            let found = token.find_objects(s, 10).unwrap();
            token.find_objects_final(s).unwrap();
            assert_eq!(found.len(), 1);
            let read = token.get_attributes(s, found[0], &[ck::CKA_EXTRACTABLE]).unwrap();
            assert_eq!(read[0].bytes(), Some(&[0][..]));
            token.close_session(s).unwrap();
        }
    }
}

/// `CKA_EXTRACTABLE` is never true again once it was false (section 4.9): a token refuses even what it has already.
#[test]
fn what_cannot_be_taken_back_goes_forward() {
    // The answer was lost with its session: the second try finds it made.
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens);
    let key = open.secret(1);
    open.members[0].next(Function::SetAttributeValue, Act::DoneAndAnswer(Rv::SESSION_CLOSED));
    open.seal(key).unwrap();
    open.is_sealed();
    // Nobody is known to have made it, and one has.
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens);
    let key = open.secret(1);
    open.members[0].next(Function::SetAttributeValue, Act::DoneAndAnswer(Rv::FUNCTION_FAILED));
    open.members[1].next(Function::SetAttributeValue, Act::Answer(Rv::FUNCTION_FAILED));
    assert!(open.seal(key).is_err());
    open.is_sealed();
}

#[test]
fn a_member_that_has_yet_to_rename_a_key_serves_it_under_its_name_of_before() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens);
    open.pair(1).unwrap();
    // It makes no change, and says no more than that something is wrong; a new connection does not mend that.
    open.members[1].refuse(Function::SetAttributeValue, 1000, Rv::GENERAL_ERROR);
    for key in open.find(1) {
        open.slot.set_attributes(open.s, key, &vec![Attribute::bytes(ck::CKA_ID, [2])]).unwrap();
    }
    let connects = open.members[1].connects.load(Ordering::Acquire);
    let group = &open.provider.groups()[0];
    wait(group, "it is connected anew", |_| open.members[1].connects.load(Ordering::Acquire) > connects);
    open.all_up();
    let keys = open.find(2);
    open.members[0].dead.store(true, Ordering::Release);
    let signs = |key: &ObjectHandle| {
        let mut mechanism = Mechanism::plain(ck::CKM_ECDSA);
        let begun = open.slot.op_init(open.s, OpKind::Sign, Some(&mut mechanism), *key);
        begun.and_then(|()| {
            let mut space = [0; 64];
            open.slot.op_one_shot(open.s, OpKind::Sign, &[7; 32], &mut Output::buffer(&mut space))
        })
    };
    assert_eq!(keys.iter().filter(|key| signs(key) == Ok(())).count(), 1);
}

#[test]
fn a_token_that_dropped_every_session_is_asked_on_a_new_one() {
    let tokens = Tokens::new(2);
    let open = Open::new(&tokens);
    let group = &open.provider.groups()[0];
    open.members[1].dead.store(true, Ordering::Release);
    group.blame(group.members.get(1).unwrap(), Function::Sign, Rv::DEVICE_ERROR);
    wait(group, "one member is up", |g| g.up().count() == 1);
    let sessions: Vec<_> = (0..10).map(|_| open.slot.open_session(false).unwrap()).collect();
    let begin = |s: SessionHandle| {
        let mut mechanism = Mechanism::plain(ck::CKM_SHA256);
        open.slot.op_init(s, OpKind::Digest, Some(&mut mechanism), ObjectHandle(0))?;
        open.slot.op_update(s, OpKind::Digest, b"abc", &mut Output::query())
    };
    let end = |s: SessionHandle| {
        let mut space = [0; 32];
        open.slot.op_final(s, OpKind::Digest, &mut Output::buffer(&mut space))
    };
    // As many backing sessions as operations at once, and then a pool of idle ones.
    sessions.iter().for_each(|s| begin(*s).unwrap());
    sessions.iter().for_each(|s| end(*s).unwrap());
    for s in sessions {
        open.slot.close_session(s).unwrap();
    }
    let faults = group.members.get(0).unwrap().status().last_fault;
    open.members[0].real().close_all_sessions().unwrap();
    begin(open.s).unwrap();
    end(open.s).unwrap();
    assert_eq!(
        group.members.get(0).unwrap().status().last_fault.is_some(),
        faults.is_some(),
        "the member is well"
    );
}

/// A key that is proven by enciphering, was renamed while a member was away and is not there: none of the other AES keys there
/// is taken for it, the group's own least of all, which encipher nothing.
#[test]
fn a_key_that_was_renamed_before_a_member_had_it_is_given_to_it() {
    let tokens = Tokens::new(3);
    let open = Open::new(&tokens);
    let group = &open.provider.groups()[0];
    open.secret(9);
    watched::lose(group, 2, &open.members[2]);
    // One of them makes it.
    open.members[..2].iter().for_each(|member| member.refuse(Function::DigestKey, 1, Rv::FUNCTION_FAILED));
    let key = open.secret(1);
    // Who is asked for another answer is asked first whether the key has a value.
    assert!(open.members[..2].iter().any(|member| member.waiting() == 0), "it has another proof");
    open.members.iter().for_each(|member| member.clear());
    open.slot.set_attributes(open.s, key, &vec![Attribute::bytes(ck::CKA_ID, [2])]).unwrap();
    open.members[2].dead.store(false, Ordering::Release);
    open.all_up();
    wait(group, "nothing is left to do", |g| {
        g.sync(true).unwrap().iter().all(|(_, left)| *left == CaughtUp::default())
    });
    open.members[..2].iter().for_each(|member| member.dead.store(true, Ordering::Release));
    let mut mechanism = Mechanism::plain(ck::CKM_AES_ECB);
    let key = open.find(2)[0];
    open.slot.op_init(open.s, OpKind::Encrypt, Some(&mut mechanism), key).unwrap();
}

#[test]
fn a_search_that_fails_while_somebody_makes_an_object_is_begun_again() {
    let tokens = Tokens::new(1);
    let open = Open::new(&tokens);
    open.pair(1).unwrap();
    open.members[0].next(Function::FindObjectsInit, Act::Answer(Rv::GENERAL_ERROR));
    assert_eq!(open.find(1).len(), 2);
}
