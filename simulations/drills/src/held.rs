//! What this process holds while a drill goes on: what grows there, grows in every program that uses a group.

use std::ops::RangeInclusive;
use std::time::Duration;

use procfs::process::Process;

/// What this process held at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Resident memory, in bytes. The drill's own figures are in it: some megabytes, however long it lasts.
    pub memory: u64,
    /// Threads.
    pub threads: u64,
    /// Open file descriptors.
    pub descriptors: u64,
}

impl Held {
    /// Now; `None` where the system does not tell.
    pub fn now() -> Option<Held> {
        let me = Process::myself().ok()?;
        let stat = me.stat().ok()?;
        Some(Held {
            memory: stat.rss * procfs::page_size(),
            threads: u64::try_from(stat.num_threads).ok()?,
            descriptors: u64::try_from(me.fd_count().ok()?).ok()?,
        })
    }
}

/// What this process held over a whole drill.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holding {
    /// Resident memory in bytes when a quarter of the time was over: what is made once has been made then.
    pub early: u64,
    /// The same in the end.
    pub late: u64,
    /// The least and the most threads.
    pub threads: RangeInclusive<u64>,
    /// The least and the most open file descriptors.
    pub descriptors: RangeInclusive<u64>,
}

impl Holding {
    /// Of what was held at moments, in order, in a drill that lasted so long; `None` where nothing is known.
    pub fn of(held: &[(Duration, Held)], lasted: Duration) -> Option<Holding> {
        let (_, early) = held.iter().find(|(at, _)| *at >= lasted / 4)?;
        let (_, late) = held.last()?;
        let range = |of: fn(&Held) -> u64| {
            let all = || held.iter().map(|(_, held)| of(held));
            Some(all().min()?..=all().max()?)
        };
        Some(Holding {
            early: early.memory,
            late: late.memory,
            threads: range(|held| held.threads)?,
            descriptors: range(|held| held.descriptors)?,
        })
    }

    /// In words.
    pub fn words(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let of = |range: &RangeInclusive<u64>| format!("{} to {}", range.start(), range.end());
        format!(
            "{:.1} MiB of memory after a quarter of the time and {:.1} in the end, {} threads, {} file descriptors",
            mib(self.early),
            mib(self.late),
            of(&self.threads),
            of(&self.descriptors)
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Barrier;

    use super::*;
    use crate::record::tests::ms;

    #[test]
    fn what_is_opened_started_and_filled_is_held() {
        let files: Vec<_> = (0..100).map(|_| File::open("/proc/self/stat").unwrap()).collect();
        let filled = std::hint::black_box(vec![1u8; 64 << 20]);
        let end = Barrier::new(21);
        let held = std::thread::scope(|scope| {
            (0..20).for_each(|_| _ = scope.spawn(|| end.wait()));
            let held = Held::now().unwrap();
            end.wait();
            held
        });
        assert!(held.descriptors > files.len() as u64 && held.threads > 20, "{held:?}");
        assert!(held.memory > filled.len() as u64, "{held:?}");
    }

    #[test]
    fn growth_is_seen_from_a_quarter_of_the_time_on() {
        let of =
            |(at, mib): (u64, u64)| (ms(at), Held { memory: mib << 20, threads: mib + 10, descriptors: 7 });
        let all = [(0, 4), (300, 10), (600, 12), (1000, 11)].map(of);
        assert_eq!(Holding::of(&[], ms(1000)), None);
        let course = Holding::of(&all, ms(1000)).unwrap();
        assert_eq!((course.early >> 20, course.late >> 20), (10, 11));
        assert_eq!((course.threads.clone(), course.descriptors.clone()), (14..=22, 7..=7));
        assert_eq!(
            course.words(),
            "10.0 MiB of memory after a quarter of the time and 11.0 in the end, 14 to 22 threads, 7 to 7 file descriptors"
        );
    }
}
