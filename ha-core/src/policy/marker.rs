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

    proptest! {
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
