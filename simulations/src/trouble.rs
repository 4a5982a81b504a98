//! How a plan's troubles come over the members, and go.

use std::time::Duration;

use ha_token::{Function, Rv};

use crate::history::REST;
use crate::member::Faults;
use crate::plan::{Fault, Trouble};
use crate::stage::Stage;

/// A member that is dead for longer was looked at, also where nobody uses it: this is more than two of the longest intervals.
const UNNOTICED: Duration = Duration::from_secs(12);

/// Ends whatever goes on.
pub(crate) fn heal(stage: &Stage) {
    (0..stage.plan.members).for_each(|member| heal_member(stage, member));
    stage.ledger_is_full(false);
    stage.set_unnamed(None);
    stage.set_liar(None);
    stage.set_troubled(None);
}

fn heal_member(stage: &Stage, member: usize) {
    let device = &stage.devices[member];
    stage.lines[member].set(Faults::default());
    device.find_token();
    device.set_full(false);
    device.set_read_only(false);
}

/// One trouble, from its beginning to its end.
pub(crate) fn happen(stage: &Stage, trouble: &Trouble) {
    let scheduler = &stage.scheduler;
    let member = trouble.member;
    stage.take_snapshot(member);
    scheduler.sleep(trouble.after);
    if !trouble.fault.is_of_the_ledger() {
        stage.set_troubled(Some(member));
    }
    stage.say(format_args!("member {member}: {:?} for {:?}", trouble.fault, trouble.lasts));
    let found_dead = stage.lines[member].found_dead();
    begin(stage, member, &trouble.fault);
    stage.trouble_begun();
    match trouble.fault {
        Fault::Flap { dead, alive } => flap(stage, trouble, dead, alive),
        Fault::Flicker { times, turns } => {
            flicker(stage, member, times, turns);
            scheduler.sleep(trouble.lasts);
        }
        _ => scheduler.sleep(trouble.lasts),
    }
    stage.say(format_args!("member {member}: {:?} is over", trouble.fault));
    let was_dead = matches!(trouble.fault, Fault::Die | Fault::Emptied { .. } | Fault::SetBack { .. });
    if was_dead && trouble.lasts > UNNOTICED && stage.lines[member].found_dead() == found_dead {
        stage.broken("G4", format!("member {member} was dead for {:?}, and nobody saw it", trouble.lasts));
    }
    // Nobody looks at a member that is not used. Where every call must succeed only one that was found dead is set back:
    // the next trouble may be another member's.
    if stage.plan.gentle && stage.lines[member].found_dead() > found_dead {
        set_back(stage, member, &trouble.fault);
    }
    if trouble.fault == Fault::Other {
        die(stage, member);
        stage.devices[member].become_itself();
    }
    match trouble.fault {
        Fault::LedgerFull => stage.ledger_is_full(false),
        Fault::LedgerGone => {}
        Fault::Leaves => stage.set_unnamed(None),
        _ => heal_member(stage, member),
    }
    if stage.plan.gentle {
        scheduler.sleep(stage.plan.rest.unwrap_or(REST));
        stage.set_troubled(None);
    }
}

fn begin(stage: &Stage, member: usize, fault: &Fault) {
    let (line, device) = (&stage.lines[member], &stage.devices[member]);
    match fault {
        Fault::Die | Fault::Flap { .. } => die(stage, member),
        Fault::Err { before, after, answers, only } => line.set(Faults {
            before: (*before).into(),
            after: (*after).into(),
            answers: answers.clone(),
            only: only.clone(),
            ..Faults::default()
        }),
        Fault::Slow(slow) => line.set(Faults { slow: *slow, ..Faults::default() }),
        Fault::Refuse(slow) => line.set(Faults {
            before: 1000,
            answers: vec![Rv::ATTRIBUTE_READ_ONLY],
            only: vec![Function::SetAttributeValue],
            slow: *slow,
            ..Faults::default()
        }),
        Fault::Lost => device.lose_token(),
        Fault::Sessions => device.drop_sessions(),
        Fault::Logins => device.drop_logins(),
        Fault::Handles => device.drop_handles(),
        Fault::Flicker { .. } => {}
        Fault::Full => device.set_full(true),
        Fault::ReadOnly => device.set_read_only(true),
        Fault::Other => {
            die(stage, member);
            // The group takes the first one that it sees for the right one.
            if line.calls().contains_key(&Function::Login) {
                device.become_other("another-token");
            }
            line.set(Faults::default());
        }
        Fault::Emptied { .. } | Fault::SetBack { .. } => {
            die(stage, member);
            if !stage.plan.gentle {
                set_back(stage, member, fault);
            }
        }
        Fault::Lie { of } => {
            line.set(Faults { lies: (*of).into(), ..Faults::default() });
            stage.set_liar(Some(member));
        }
        Fault::Hang => line.set(Faults { hangs: true, ..Faults::default() }),
        Fault::LedgerFull => stage.ledger_is_full(true),
        Fault::LedgerGone => stage.ledger_goes(),
        Fault::Leaves => stage.set_unnamed(Some(member)),
    }
}

/// Puts a dead member's token back to what it was, or makes it anew.
fn set_back(stage: &Stage, member: usize, fault: &Fault) {
    match fault {
        Fault::Emptied { renewed } => {
            stage.devices[member].initialise(renewed.then_some("made-anew"));
            if *renewed {
                stage.set_out(member);
            }
        }
        Fault::SetBack { by } => stage.set_back(member, (*by).into()),
        _ => return,
    }
    stage.say(format_args!("member {member} is set back"));
    stage.was_set_back(member);
}

fn die(stage: &Stage, member: usize) {
    stage.lines[member].set(Faults { dead: true, ..Faults::default() });
}

fn flap(stage: &Stage, trouble: &Trouble, dead: Duration, alive: Duration) {
    let until = stage.scheduler.now() + trouble.lasts;
    loop {
        stage.scheduler.sleep(dead);
        stage.lines[trouble.member].set(Faults::default());
        stage.scheduler.sleep(alive);
        if stage.scheduler.now() >= until {
            return;
        }
        die(stage, trouble.member);
    }
}

/// A member loses its login, then its handles, and so on.
fn flicker(stage: &Stage, member: usize, times: u16, turns: u16) {
    let device = &stage.devices[member];
    for n in 0..times {
        // Whoever can go on does.
        (0..turns).for_each(|_| stage.scheduler.sleep(Duration::ZERO));
        if n % 2 == 0 { device.drop_logins() } else { device.drop_handles() }
    }
}
