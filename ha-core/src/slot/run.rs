//! One call, on one member after another until it is answered: the fault table put into effect.

use std::sync::Arc;

use ha_token::{Function, ObjectHandle, Result, Rv, TemplateExt, ck};

use super::VirtualSlot;
use crate::group::{Lease, Member, Need, Object, Who, watch};
use crate::mutants::wrong;
use crate::policy::failure::{Class, on_fresh_session};

/// A call that any member that fits may serve.
pub(super) struct Call<'a> {
    /// The function that the application called.
    pub function: Function,
    /// What the member must have.
    pub need: Need<'a>,
    /// A member that has just failed it.
    pub skip: Option<usize>,
}

/// A member that a call has left because it went wrong there.
pub(super) struct Left {
    /// Which.
    pub member: Arc<Member>,
    /// What it answered.
    pub rv: Rv,
    /// What that was taken for.
    pub class: Class,
}

/// A call of an operation in flight that failed on the member where the operation ran, and what follows from it.
pub(super) struct Broken {
    /// The member, and what became of the call there.
    pub left: Left,
    /// The member, if it is not to be tried again.
    pub skip: Option<usize>,
}

impl Broken {
    /// What the application is told if no other member can be asked: what this one answered, where that may be the
    /// application's fault and not the member's.
    pub(super) fn answer(&self) -> Rv {
        if self.left.class == Class::Ambiguous { self.left.rv } else { Rv::DEVICE_ERROR }
    }
}

/// The tries of one call.
struct Tries {
    made: usize,
    /// The budget for more is used up.
    spent: bool,
    /// The members that answered and are alive, a bit for each: they are not asked again.
    answered: u32,
    /// The members that failed in this round, a bit for each: one that comes back at once may fail so again.
    failed: u32,
    /// The first answer that may be the application's fault and not its member's.
    ambiguous: Option<(Arc<Member>, Rv)>,
    /// The last one of a member that has not what is wanted.
    other: Option<Rv>,
}

impl Tries {
    /// The answer where no member gave one that is sure.
    fn unsure(&self) -> Rv {
        self.ambiguous.as_ref().map(|(_, rv)| *rv).or(self.other).unwrap_or(Rv::DEVICE_ERROR)
    }
}

/// How a round of tries ended without success.
enum Failed {
    /// The answer is the caller's.
    Sure(Rv),
    /// No member has said what the caller is to be told.
    Unsure,
}

/// How a try on one member ended without success.
enum Ended {
    /// The answer is the caller's.
    Answer(Rv),
    /// Another member may be tried.
    Next(Class, Rv),
}

impl VirtualSlot {
    /// Makes the call on the members in the order of the plan. `f` is given a session that is logged in as the
    /// application is; it may run several times. The lease of the success is handed back with the value.
    ///
    /// # Errors
    /// The caller's own mistakes as a member put them; `CKR_DEVICE_ERROR` when no member could serve.
    pub(super) fn run<T>(
        &self,
        call: &Call<'_>,
        f: &mut dyn FnMut(&mut Lease) -> Result<T>,
    ) -> Result<(T, Lease)> {
        self.run_from(None, call, f)
    }

    /// As [`run`](Self::run), where one try was made already, and failed so.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(super) fn run_from<T>(
        &self,
        tried: Option<(Lease, Rv)>,
        call: &Call<'_>,
        f: &mut dyn FnMut(&mut Lease) -> Result<T>,
    ) -> Result<(T, Lease)> {
        self.run_after(tried, None, call, f)
    }

    /// As [`run_from`](Self::run_from), of a call that went wrong before, on the member that was left for that.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(super) fn run_after<T>(
        &self,
        mut tried: Option<(Lease, Rv)>,
        mut left: Option<Left>,
        call: &Call<'_>,
        f: &mut dyn FnMut(&mut Lease) -> Result<T>,
    ) -> Result<(T, Lease)> {
        let mut tries = Tries {
            made: usize::from(call.skip.is_some()),
            spent: false,
            answered: 0,
            failed: 0,
            ambiguous: None,
            other: None,
        };
        if let Some(left) = &left {
            // It said what it has to say, and what it said is one of the answers.
            match left.class {
                Class::Ambiguous => {
                    tries.answered |= 1 << left.member.index;
                    tries.ambiguous = Some((Arc::clone(&left.member), left.rv));
                }
                Class::Capacity => tries.answered |= 1 << left.member.index,
                _ => {}
            }
        }
        let mut answer = self.try_each(&mut tried, &mut left, call, &mut tries, f);
        // Nobody has said it for sure, and somebody could a moment ago, until this call found out or another one. Each may
        // come back, and fail again.
        for round in 0..self.group.members.len() {
            if !matches!(answer, Err(Failed::Unsure)) || tries.spent {
                break;
            }
            // One that failed again and again is asked once more, but not in the place of another one.
            let is_other_back = round > 0 && self.group.wait_for_return(1, tries.answered | tries.failed);
            if !is_other_back && !self.group.wait_for_return(1, tries.answered) {
                break;
            }
            answer = self.try_each(&mut None, &mut left, &Call { skip: None, ..*call }, &mut tries, f);
        }
        answer.map_err(|failed| match failed {
            Failed::Sure(rv) => rv,
            Failed::Unsure => tries.unsure(),
        })
    }

    /// One round.
    fn try_each<T>(
        &self,
        tried: &mut Option<(Lease, Rv)>,
        left: &mut Option<Left>,
        call: &Call<'_>,
        tries: &mut Tries,
        f: &mut dyn FnMut(&mut Lease) -> Result<T>,
    ) -> std::result::Result<(T, Lease), Failed> {
        let group = &*self.group;
        let answered = tries.answered;
        tries.failed = 0;
        let first = tried.as_ref().map(|(l, _)| l.member.index);
        let mut plan = None;
        let mut next = || match tried.take() {
            Some((lease, rv)) => Some((lease.member.index, Some((lease, rv)))),
            None => plan
                .get_or_insert_with(|| group.plan(&call.need))
                .find(|i| Some(*i) != call.skip && Some(*i) != first && answered >> i & 1 == 0)
                .map(|i| (i, None)),
        };
        while let Some((index, tried)) = next() {
            let Some(member) = group.members.get(index) else { continue };
            // It may not have been given yet what is asked for: a miss is no failure then, and nobody's answer.
            let may_lack = call.need.objects().any(|object| group.may_lack(member, object));
            if tries.made > 0 && !may_lack && !group.may_retry(tries.made == 1) {
                group.reporter.refused(
                    call.function,
                    Rv::DEVICE_ERROR,
                    "the retry budget is used up: too many calls fail",
                );
                tries.spent = true;
                break;
            }
            tries.made += 1;
            let answer = self.on_member(member, tried, call, f);
            if may_lack && matches!(answer, Err(Ended::Next(Class::Object, _))) {
                tries.made -= 1;
                tries.answered |= 1 << index;
                continue;
            }
            match &answer {
                Err(Ended::Next(class, rv)) => {
                    *left = Some(Left { member: Arc::clone(member), rv: *rv, class: *class });
                    let which = if *class == Class::Member { &mut tries.failed } else { &mut tries.answered };
                    *which |= 1 << index;
                }
                // Also an error of the application's is an answer, which it would have had from the first member.
                Ok(_) | Err(Ended::Answer(_)) => {
                    if let Some(left) = left.take().filter(|l| l.member.index != member.index) {
                        let (from, to) = (left.member.name(), member.name());
                        group.reporter.moved(from, to, call.function, left.rv, left.class);
                    }
                }
            }
            match answer {
                Ok(success) => {
                    if let Some((first, rv)) = &tries.ambiguous {
                        group.blame(first, call.function, *rv);
                    }
                    group.succeeded();
                    return Ok(success);
                }
                Err(Ended::Answer(rv)) => {
                    if let Some((first, before)) = &tries.ambiguous
                        && *before != rv
                    {
                        group.blame(first, call.function, *before);
                    }
                    return Err(Failed::Sure(rv));
                }
                Err(Ended::Next(Class::Ambiguous, rv)) => match &tries.ambiguous {
                    Some((_, before)) if *before == rv => return Err(Failed::Sure(rv)),
                    Some(_) => {}
                    None => tries.ambiguous = Some((Arc::clone(member), rv)),
                },
                Err(Ended::Next(Class::Object | Class::Capacity, rv)) => tries.other = Some(rv),
                Err(Ended::Next(_, _)) => {}
            }
        }
        Err(Failed::Unsure)
    }

    /// What an operation that was to go on here is answered where the member writes into the mechanism's parameter, as one
    /// that makes an IV of its own does: the application would go on with the one it has, which is not that of what comes
    /// out. Another member may do.
    #[cold]
    pub(super) fn writes_into_its_parameter(&self, lease: &mut Lease, function: Function) -> Rv {
        lease.set_busy(true);
        let why = format!(
            "the operation cannot go on on {}: that makes up a part of its parameter",
            lease.member.name()
        );
        self.group.reporter.refused(function, Rv::DEVICE_ERROR, &why);
        Rv::FUNCTION_NOT_SUPPORTED
    }

    /// Makes the call on one member only.
    ///
    /// # Errors
    /// Its answer; `CKR_DEVICE_ERROR` where that is none for an application.
    pub(super) fn on_one<T>(
        &self,
        member: &Arc<Member>,
        call: &Call<'_>,
        f: &mut dyn FnMut(&mut Lease) -> Result<T>,
    ) -> Result<T> {
        match self.on_member(member, None, call, f) {
            Ok((value, _)) => Ok(value),
            Err(Ended::Answer(rv) | Ended::Next(Class::Ambiguous, rv)) => Err(rv),
            Err(Ended::Next(..)) => Err(Rv::DEVICE_ERROR),
        }
    }

    /// A call of an operation in flight failed in this backing session: the operation is to be started anew, on another
    /// member or in a fresh session of this one. `objects` are those that it uses.
    ///
    /// # Errors
    /// The answer, where it is the application's.
    pub(super) fn broken(
        &self,
        lease: &Lease,
        objects: &[Arc<Object>],
        function: Function,
        rv: Rv,
    ) -> Result<Broken> {
        let (group, member) = (&*self.group, &lease.member);
        let mut class = group.failed(member, &lease.link, function, rv);
        let mut skip = None;
        match class {
            Class::Caller => return Err(rv),
            Class::Login if group.login.who() == Who::Nobody => return Err(rv),
            Class::Session => {}
            Class::Login => lease.link.doubt_login(),
            _ if group.is_lost(member, &lease.link, class) => class = Class::Member,
            Class::Object => objects.iter().for_each(|o| o.forget_stale(&lease.member, &lease.link)),
            Class::Ambiguous | Class::Capacity | Class::Member => skip = Some(member.index),
        }
        Ok(Broken { left: Left { member: Arc::clone(member), rv, class }, skip })
    }

    fn on_member<T>(
        &self,
        member: &Arc<Member>,
        mut tried: Option<(Lease, Rv)>,
        call: &Call<'_>,
        f: &mut dyn FnMut(&mut Lease) -> Result<T>,
    ) -> std::result::Result<(T, Lease), Ended> {
        let group = &*self.group;
        let (mut session, mut login, mut object, mut unseen) = (false, false, false, false);
        loop {
            // The user's login when an object is looked for that was not there before.
            let mut visit = None;
            let (mut lease, rv) = match tried.take() {
                Some(failure) => failure,
                None => match self.lend(member, session).inspect(|_| watch::retried()) {
                    Ok(mut lease) => {
                        visit = object.then(|| group.visit(&lease.link));
                        match f(&mut lease) {
                            Ok(value) => return Ok((value, lease)),
                            Err(rv) => (lease, rv),
                        }
                    }
                    Err(rv) => return Err(Ended::Next(group.not_lent(member, rv), rv)),
                },
            };
            let class = match group.failed(member, &lease.link, call.function, rv) {
                Class::Session if std::mem::replace(&mut session, true) => {
                    let class = on_fresh_session(rv);
                    if class == Class::Member {
                        group.blame_on(member, &lease.link, call.function, rv);
                    }
                    class
                }
                class => class,
            };
            lease.set_busy(class != Class::Caller);
            // Perhaps another process has destroyed it, and could not do so on the member that is next.
            if class == Class::Object && call.need.objects().any(|object| group.is_gone(object)) {
                return Err(Ended::Answer(Rv::OBJECT_HANDLE_INVALID));
            }
            match class {
                Class::Caller => return Err(Ended::Answer(rv)),
                Class::Login if group.login.who() == Who::Nobody => return Err(Ended::Answer(rv)),
                Class::Session => {}
                Class::Login if !std::mem::replace(&mut login, true) => lease.link.doubt_login(),
                Class::Object if !std::mem::replace(&mut object, true) => forget_stale(call, &lease),
                // What is the user's alone is refused to the security officer, whose login has just been made again.
                Class::Login if group.login.who() == Who::So => return Err(Ended::Answer(rv)),
                Class::Login if self.wants_its_own_login(call, &lease) => return Err(Ended::Answer(rv)),
                Class::Login => {
                    group.blame_on(member, &lease.link, call.function, rv);
                    return Err(Ended::Next(Class::Member, rv));
                }
                Class::Object | Class::Ambiguous => {
                    if group.is_lost(member, &lease.link, class) {
                        return Err(Ended::Next(Class::Member, rv));
                    }
                    // Without the login that was made again meanwhile no private object was to be seen; and another thread
                    // may have found it before the handles were lost once more.
                    let is_sure =
                        visit.is_none_or(|v| v == group.visit(&lease.link)) || wrong!(OtherVisitBelieved);
                    if class == Class::Ambiguous || is_sure {
                        return Err(Ended::Next(class, rv));
                    }
                    if std::mem::replace(&mut unseen, true) {
                        return Err(Ended::Next(Class::Member, rv));
                    }
                    forget_stale(call, &lease);
                }
                Class::Capacity | Class::Member => return Err(Ended::Next(class, rv)),
            }
        }
    }

    /// A backing session. Where one was lost the others of the pool are too.
    fn lend(&self, member: &Arc<Member>, one_was_lost: bool) -> Result<Lease> {
        if one_was_lost { self.group.open_lease(member) } else { self.group.lease(member) }
    }

    /// Whether a call is with a key that wants a login for each use (`CKA_ALWAYS_AUTHENTICATE`): then that is what is
    /// missing where the session has its own.
    fn wants_its_own_login(&self, call: &Call<'_>, lease: &Lease) -> bool {
        let wants = |object: &Object| -> Result<bool> {
            let handle = self.group.handle_to_read(lease, object, &[])?;
            let read = lease.on().read(handle, &[ck::CKA_ALWAYS_AUTHENTICATE])?;
            Ok(read.get_bool(ck::CKA_ALWAYS_AUTHENTICATE) == Some(true))
        };
        call.need.objects().any(|object| wants(object) == Ok(true))
    }

    /// The object of a handle the application gave as a key.
    ///
    /// # Errors
    /// `CKR_KEY_HANDLE_INVALID`.
    pub(super) fn key(&self, handle: ObjectHandle) -> Result<Arc<Object>> {
        self.object(handle).map_err(|_| Rv::KEY_HANDLE_INVALID)
    }

    /// The object of a handle the application gave.
    ///
    /// # Errors
    /// `CKR_OBJECT_HANDLE_INVALID`, also for a private object without the user's login.
    pub(super) fn object(&self, handle: ObjectHandle) -> Result<Arc<Object>> {
        self.group.heed_destructions();
        let object = self.group.objects.get(handle)?;
        if object.private && self.group.login.who() != Who::User {
            return Err(Rv::OBJECT_HANDLE_INVALID);
        }
        Ok(object)
    }
}

/// The handles of a call's objects are looked up again.
fn forget_stale(call: &Call<'_>, lease: &Lease) {
    call.need.objects().for_each(|object| object.forget_stale(&lease.member, &lease.link));
}
