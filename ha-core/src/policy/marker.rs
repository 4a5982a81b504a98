//! What a token's marker says of the token and of the ledger: which of the two is older, or another group's.
//!
//! An epoch is written down as begun before it is written on the token, and as written after that: a token that was not
//! touched says one of those between the two.

/// What the ledger knows of a member's marker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// The latest epoch that was written on the token; 0 for none.
    pub written: u64,
    /// The latest that may be there.
    pub begun: u64,
    /// Where none was ever written: since when the member may have missed what was done.
    pub untold: u64,
}

/// What the token's marker says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Said {
    /// Whether it names this group and this ledger.
    pub is_ours: bool,
    /// Its epoch.
    pub epoch: u64,
}

/// What that tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing was ever written there.
    New,
    /// The token is as it was left.
    AsItWas,
    /// It is as it was left, and the ledger, which was restored, does not know that it was marked.
    Restored,
    /// The token is older than the ledger.
    SetBack,
    /// The ledger is older than the token.
    LedgerIsOlder,
    /// The token is another ledger's.
    AnotherLedgers,
}

/// Judges a member's token by its marker.
pub fn judge(known: Option<Known>, said: Option<Said>) -> Verdict {
    match (known, said) {
        (_, Some(Said { is_ours: false, .. })) => Verdict::AnotherLedgers,
        (None, None) | (Some(Known { written: 0, .. }), None) => Verdict::New,
        (None, Some(_)) => Verdict::Restored,
        (Some(_), None) => Verdict::SetBack,
        (Some(known), Some(said)) if said.epoch < known.written => Verdict::SetBack,
        (Some(known), Some(said)) if said.epoch > known.begun => Verdict::LedgerIsOlder,
        (Some(_), Some(_)) => Verdict::AsItWas,
    }
}

/// How a member is looked at, and by which ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Look {
    /// Whether what is found is noted in the ledger.
    pub note: bool,
    /// Whether the ledger changes nothing.
    pub is_read_only: bool,
    /// Whether any token has a marker of this ledger's.
    pub is_known_to_tokens: bool,
}

/// What is to be done about a verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Follows {
    /// Nothing.
    Nothing,
    /// The ledger was put back: it changes nothing from now on.
    LedgerWasPutBack,
    /// The ledger was begun anew, or is another host's: it changes nothing from now on.
    LedgerIsNew,
    /// The member is put aside: its token is not the group's.
    PutAside,
    /// It is noted that the token was set back.
    NoteSetBack,
    /// It is noted what the token says, which the ledger does not know.
    NoteFound,
    /// It is noted that the marker was written: who wrote it did not come to the end.
    NoteWritten,
}

/// What is to be done about a verdict on what is known and said.
pub fn follows(verdict: Verdict, known: Option<Known>, said: Option<Said>, look: Look) -> Follows {
    match verdict {
        // As it was when it was opened, perhaps.
        Verdict::LedgerIsOlder if look.is_read_only => Follows::Nothing,
        Verdict::LedgerIsOlder => Follows::LedgerWasPutBack,
        Verdict::AnotherLedgers if look.is_known_to_tokens => Follows::PutAside,
        Verdict::AnotherLedgers => Follows::LedgerIsNew,
        Verdict::SetBack if look.note => Follows::NoteSetBack,
        Verdict::Restored if look.note => Follows::NoteFound,
        Verdict::AsItWas if look.note && known.map(|k| k.written) != said.map(|s| s.epoch) => {
            Follows::NoteWritten
        }
        Verdict::SetBack | Verdict::Restored | Verdict::AsItWas | Verdict::New => Follows::Nothing,
    }
}

/// The epoch up to which a member's token has what was done: what was done since it may have missed. What a marker was only
/// begun for says nothing.
pub fn has_all_until(known: Option<Known>, said: Option<Said>) -> u64 {
    match (known, said) {
        (_, Some(said)) => said.epoch,
        // It held nothing before it joined, or takes none.
        (Some(Known { written: 0, untold, .. }), None) => untold,
        (_, None) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ledger and token through a life: markers are written, some writers die in between, and either of the two may be set
    /// back to what it was at some time before.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Marked,
        DiedBefore,
        DiedAfter,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![Just(Event::Marked), Just(Event::DiedBefore), Just(Event::DiedAfter)];
        proptest::collection::vec(event, 1..12)
    }

    fn live(events: &[Event]) -> Vec<(Option<Known>, Option<Said>)> {
        let (mut known, mut said): (Option<Known>, Option<Said>) = (None, None);
        let mut states = vec![(known, said)];
        for (epoch, event) in (1..).zip(events) {
            let written = known.map_or(0, |k| k.written);
            known = Some(Known { written, begun: epoch, untold: 0 });
            states.push((known, said));
            if !matches!(event, Event::DiedBefore) {
                said = Some(Said { is_ours: true, epoch });
                states.push((known, said));
            }
            if matches!(event, Event::Marked) {
                known = Some(Known { written: epoch, begun: epoch, untold: 0 });
                states.push((known, said));
            }
        }
        states
    }

    const LOOK: Look = Look { note: true, is_read_only: false, is_known_to_tokens: true };

    #[test]
    fn a_look_that_notes_nothing_changes_only_what_must_not_wait() {
        let only = Look { note: false, ..LOOK };
        for verdict in [Verdict::New, Verdict::AsItWas, Verdict::Restored, Verdict::SetBack] {
            assert_eq!(
                follows(verdict, None, Some(Said { is_ours: true, epoch: 1 }), only),
                Follows::Nothing
            );
        }
        assert_eq!(follows(Verdict::LedgerIsOlder, None, None, only), Follows::LedgerWasPutBack);
        assert_eq!(follows(Verdict::AnotherLedgers, None, None, only), Follows::PutAside);
    }

    #[test]
    fn a_token_of_another_ledger_is_put_aside_by_one_that_tokens_know() {
        let new = Look { is_known_to_tokens: false, ..LOOK };
        assert_eq!(follows(Verdict::AnotherLedgers, None, None, LOOK), Follows::PutAside);
        assert_eq!(follows(Verdict::AnotherLedgers, None, None, new), Follows::LedgerIsNew);
        let reads = Look { is_read_only: true, ..LOOK };
        assert_eq!(follows(Verdict::LedgerIsOlder, None, None, reads), Follows::Nothing);
        assert_eq!(follows(Verdict::SetBack, None, None, LOOK), Follows::NoteSetBack);
    }

    proptest! {
        #[test]
        fn only_a_marker_that_was_not_noted_is_noted(events in events()) {
            for (known, said) in live(&events) {
                let noted = known.map_or(0, |k| k.written) == said.map_or(0, |s| s.epoch);
                let expected = if noted { Follows::Nothing } else { Follows::NoteWritten };
                prop_assert_eq!(follows(judge(known, said), known, said, LOOK), expected);
            }
        }

        #[test]
        fn who_was_left_alone_is_believed(events in events()) {
            for (known, said) in live(&events) {
                prop_assert!(matches!(judge(known, said), Verdict::New | Verdict::AsItWas), "{known:?} {said:?}");
            }
        }

        #[test]
        fn a_token_from_before_the_last_marker_is_known_for_it(events in events(), at in any::<prop::sample::Index>()) {
            let states = live(&events);
            let (known, _) = *states.last().unwrap();
            let (_, old) = *at.get(&states);
            let written = known.map_or(0, |k| k.written);
            if old.map_or(0, |s| s.epoch) < written {
                prop_assert_eq!(judge(known, old), Verdict::SetBack);
            }
        }

        #[test]
        fn a_ledger_from_before_the_last_marker_is_known_for_it(events in events(), at in any::<prop::sample::Index>()) {
            let states = live(&events);
            let (_, said) = *states.last().unwrap();
            let (old, _) = *at.get(&states);
            if let (Some(old), Some(said)) = (old, said)
                && old.begun < said.epoch
            {
                prop_assert_eq!(judge(Some(old), Some(said)), Verdict::LedgerIsOlder);
            }
        }

        #[test]
        fn nothing_is_missed_before_the_marker_that_is_there(events in events(), at in any::<prop::sample::Index>()) {
            let states = live(&events);
            let (known, _) = *states.last().unwrap();
            let (_, old) = *at.get(&states);
            prop_assert_eq!(has_all_until(known, old), old.map_or(0, |said| said.epoch));
        }

        #[test]
        fn what_is_anothers_is_never_ours(known in proptest::option::of((0u64..4, 0u64..4)), epoch in 0u64..4) {
            let known = known.map(|(written, begun)| Known { written, begun, untold: 0 });
            prop_assert_eq!(judge(known, Some(Said { is_ours: false, epoch })), Verdict::AnotherLedgers);
        }
    }
}
