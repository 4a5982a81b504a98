//! Hears from the group when its members' health changes.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam::channel::Receiver;
use ha_core::group::{Group, GroupEvent};

use crate::record::Change;

/// Notes when the members' health changes.
pub(crate) struct Listener {
    heard: Arc<Mutex<Heard>>,
    thread: Option<JoinHandle<()>>,
}

/// What was heard.
#[derive(Default)]
pub(crate) struct Heard {
    /// In order.
    pub(crate) changes: Vec<Change>,
    /// Events that did not reach us.
    pub(crate) missed: u64,
}

impl Listener {
    /// Starts to listen. Times are counted from `began`.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(crate) fn new(group: &Group, began: Instant) -> std::io::Result<Listener> {
        let names: Vec<String> = group.members.iter().map(|m| m.name().to_owned()).collect();
        let heard = Arc::<Mutex<Heard>>::default();
        // Of health only: what fails under load would fill the channel.
        let (events, to) = (group.health_events(), Arc::clone(&heard));
        let thread = std::thread::Builder::new().name("drill-events".into());
        let thread = thread.spawn(move || listen(&events, &names, began, &to))?;
        Ok(Listener { heard, thread: Some(thread) })
    }

    /// What was heard since this was asked before.
    pub(crate) fn take(&self) -> Heard {
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The rest, once the group has stopped.
    pub(crate) fn end(&mut self) -> Heard {
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn listen(events: &Receiver<GroupEvent>, names: &[String], began: Instant, to: &Mutex<Heard>) {
    // Until the group stops.
    while let Ok(event) = events.recv() {
        let mut heard = to.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            GroupEvent::Member { member, from, to, .. } => {
                if let Some(member) = names.iter().position(|name| *name == member) {
                    heard.changes.push(Change { at: began.elapsed(), member, from, to });
                }
            }
            GroupEvent::Missed { count } => heard.missed += count,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use ha_core::policy::health::State;

    use super::*;

    #[test]
    fn what_was_missed_is_counted() {
        let (sender, events) = crossbeam::channel::unbounded();
        let up =
            GroupEvent::Member { member: "b".into(), from: State::Syncing, to: State::Up, cause: "".into() };
        for event in [GroupEvent::Missed { count: 2 }, up, GroupEvent::Missed { count: 3 }] {
            sender.send(event).unwrap();
        }
        drop(sender);
        let heard = Mutex::default();
        listen(&events, &["a".into(), "b".into()], Instant::now(), &heard);
        let heard: Heard = heard.into_inner().unwrap();
        assert_eq!(heard.missed, 5);
        let [change] = &*heard.changes else { panic!("one change") };
        assert_eq!((change.member, change.to), (1, State::Up));
    }
}
