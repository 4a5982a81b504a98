//! Seeded bugs: small wrong changes of the core, switched on one at a time, that show that the simulation's oracles catch
//! what they are there for.
//!
//! They exist in a build with the feature `mutants` only, which no build without debug assertions can have.

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!("the feature `mutants` seeds bugs: it is for tests, and needs debug assertions");

/// Whether a seeded bug is switched on. Without the feature `mutants` it is the constant `false`.
macro_rules! wrong {
    ($mutant:ident) => {{
        #[cfg(feature = "mutants")]
        let on = crate::mutants::is_on(crate::mutants::Mutant::$mutant);
        #[cfg(not(feature = "mutants"))]
        let on = false;
        on
    }};
}
pub(crate) use wrong;

#[cfg(feature = "mutants")]
pub use seeded::{Mutant, switch};

#[cfg(feature = "mutants")]
pub(crate) use seeded::is_on;

#[cfg(feature = "mutants")]
mod seeded {
    use std::sync::atomic::{AtomicU32, Ordering};

    macro_rules! mutants {
        ($($(#[doc = $what:literal])* $name:ident,)*) => {
            /// A seeded bug.
            #[derive(Clone, Copy, PartialEq, Eq, Debug)]
            #[repr(u32)]
            pub enum Mutant {
                $($(#[doc = $what])* $name,)*
            }

            impl Mutant {
                /// Every one.
                pub const ALL: &'static [Mutant] = &[$(Mutant::$name,)*];

                /// What is wrong.
                pub const fn what(self) -> &'static str {
                    match self {
                        $(Mutant::$name => concat!($($what),*),)*
                    }
                }
            }
        };
    }

    mutants! {
        /// a new object is acknowledged when one member has it, whatever `min_copies` says
        AcknowledgedOnOneCopy,
        /// what was given up is not marked as such
        GivenUpForgotten,
        /// copies of what was given up are not destroyed
        TakeBackForgotten,
        /// that something passed a member by is not noted
        FallsBehindForgotten,
        /// the first member's destruction counts for all of them
        DestructionCountsForAll,
        /// a destruction whose outcome is not known is taken for one that was not done
        UncertainDestructionForgotten,
        /// a member that comes back is not told of destructions
        TombstonesSkipped,
        /// a tombstone goes when the first member has acknowledged it
        TombstoneDroppedEarly,
        /// a token's marker is not read
        MarkerNotRead,
        /// what every member has destroyed is not remembered
        SettledForgotten,
        /// a member that leaves the group takes session objects with it
        LeaverTakesSessionObjects,
        /// a member that comes back is not given what it lacks
        MissingSkipped,
        /// a member that comes back is not told of changes
        PendingSkipped,
        /// what a member lacks is given without a look whether it is there
        GivenTwice,
        /// a member counts as brought up to date whatever passes it by meanwhile
        CaughtUpTooEarly,
        /// two threads bring one member up to date at once
        CatchUpNotAlone,
        /// handles of an earlier connection are used
        StaleHandle,
        /// an operation that goes on elsewhere misses its last part
        ReplayMissesLast,
        /// a session's handle is given out again
        SessionHandleReused,
        /// an object's handle is given out again
        ObjectHandleReused,
        /// a lost login is the application's fault
        LoginLostIsCallers,
        /// a device error is the application's fault
        DeviceErrorIsCallers,
        /// a lost session is the application's fault
        SessionLostIsCallers,
        /// retries have no budget
        BudgetIgnored,
        /// a token that answers is believed to have what it must have
        LostTokenBelieved,
        /// a search that finds nothing is believed
        EmptySearchBelieved,
        /// a member that lacks something is believed in a search
        BehindSearchBelieved,
        /// a search gives an object once for each member
        SearchGivesTwice,
        /// backing sessions are not closed
        SessionsLeak,
        /// a session that is closed stays open
        SessionSurvives,
        /// the PIN is logged
        PinLogged,
        /// a PIN that was refused stands for every PIN
        RefusedForAll,
        /// a member that failed is not looked after
        KeeperNotWoken,
        /// a PIN that one member refused goes to the next
        WrongPinGoesOn,
        /// the application's own mistake is tried on every member
        CallersIsMembers,
        /// what is left of a try is looked for among the copies of an object that is being made
        OnTheirWayTaken,
        /// a handle that was taken for an object by its names counts as that one's copy when another one is proven to be
        NameStaysOnHandle,
        /// what was renamed while it was looked for is taken for absent
        RenamedIsAbsent,
        /// of keys of one value one is taken for another that is yet to be called otherwise
        RenamedTwinTaken,
        /// what is called otherwise is looked for among objects of every key type
        AnyTypeIsCandidate,
        /// what is being destroyed is a candidate for what is called otherwise
        DyingIsCandidate,
        /// what was seen before a lost login or lost handles were there again is believed
        OtherVisitBelieved,
        /// a keeper makes a change that may be taken back
        UndecidedMade,
        /// a change is made that was done while the list of changes was read
        DoneIsMadeAgain,
        /// a copy is made with a change that may be refused, untried
        UndecidedNotTried,
        /// what a member said once that it cannot wrap is believed for as long as it is connected
        InabilityBelieved,
        /// the backing session that owns session objects is used on when its member has lost it
        LostOwnerKept,
        /// a member that came back empty is believed to hold what it held
        EmptiedBelieved,
        /// a search does not heed what other processes have done
        OthersNotHeeded,
        /// what another process has destroyed is asked for on the next member
        GoneIsAskedFor,
        /// nobody looks for what was left by a process that died
        LeavingsNotSought,
        /// a change of a process that died is made for ever, although it is refused
        RefusedChangeStays,
        /// what was settled is told to nobody
        SettledUntold,
        /// group keys under handles that were lost are not found again
        LostGroupKeysBelieved,
        /// a call that hangs is waited for as long as it does
        DeadlineIgnored,
        /// a member that does not answer in time is the application's mistake
        NoAnswerIsCallers,
        /// a session in which a call hangs is used for others
        StuckSessionUsed,
        /// a session that was opened too late stays open
        LateSessionKept,
        /// a member that refuses writes is connected anew while no other one serves
        LastIsRenewed,
        /// a PIN whose change is still being made is tried
        LatePinTried,
        /// a member in which a call hangs is used again as soon as it answers another one
        HangingTakenBack,
        /// who waited in vain with others for a member asks it once more
        HungIsAskedAgain,
        /// what was made too late, and nobody looks for, stays
        LateObjectKept,
        /// nobody is told of a change that was made too late
        LateChangeUntold,
        /// a member is taken back while a change that nobody waited for any more is still being made
        LateWritesNotAwaited,
        /// a member that nobody uses is not looked at
        IdleNotProbed,
        /// a fault of a connection that was replaced counts
        ReplacedBlamed,
        /// a signature that does not verify is handed out
        WrongSignatureHandedOut,
        /// a member that makes wrong signatures stays in use
        LiarNotQuarantined,
        /// a session object whose member is gone is not looked for
        SessionObjectNotSought,
        /// a session object that was changed is used elsewhere as it was before
        SessionObjectStaysStale,
    }

    static ON: AtomicU32 = AtomicU32::new(u32::MAX);

    /// Switches a bug on, or (`None`) all of them off.
    pub fn switch(mutant: Option<Mutant>) {
        ON.store(mutant.map_or(u32::MAX, |m| m as u32), Ordering::SeqCst);
    }

    pub(crate) fn is_on(mutant: Mutant) -> bool {
        ON.load(Ordering::Relaxed) == mutant as u32
    }
}
