//! The map that calls look their handles up in: without a lock, by a quick hash.
//!
//! The keys are numbers that we or a member made: nobody chooses them to collide.

/// The same numbers, the same order: what a simulation's seed repeats.
#[cfg(feature = "simulation")]
pub(crate) use foldhash::fast::FixedState as RandomState;
#[cfg(not(feature = "simulation"))]
pub(crate) use foldhash::fast::RandomState;

/// From a handle or an identity to what it stands for.
pub(crate) type Map<K, V> = papaya::HashMap<K, V, RandomState>;

/// An empty map.
pub(crate) fn map<K, V>() -> Map<K, V> {
    papaya::HashMap::with_hasher(RandomState::default())
}
