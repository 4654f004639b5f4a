//! Collections that remember which entries changed, so that the journal gets these when the lock
//! that guards the collection is released. Reads go to the collection itself.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::ops::Deref;

use serde::Serialize;

use crate::fs::journal::{Key, Transaction};

/// A collection, and what was changed in it since it was last written down.
#[derive(Debug)]
pub struct Tracked<C: Collection> {
    all: C,
    changed: Vec<C::Key>,
}

/// What [`Tracked`] holds.
pub trait Collection: Default {
    /// Of an entry.
    type Key: Clone;
    /// Of an entry; nothing in sets.
    type Value: Serialize;
    /// The entry's value.
    fn value(&self, key: &Self::Key) -> Option<&Self::Value>;
    /// Puts an entry in.
    fn put(&mut self, key: Self::Key, value: Self::Value);
    /// Takes an entry out; whether there was one.
    fn take<Q: ?Sized + Hash + Ord>(&mut self, key: &Q) -> Option<(Self::Key, Self::Value)>
    where
        Self::Key: Borrow<Q>;
}

macro_rules! map {
    ($map:ident, $($bound:tt)+) => {
        impl<K: Clone + $($bound)+, V: Serialize> Collection for $map<K, V> {
            type Key = K;
            type Value = V;
            fn value(&self, key: &K) -> Option<&V> {
                self.get(key)
            }
            fn put(&mut self, key: K, value: V) {
                self.insert(key, value);
            }
            fn take<Q: ?Sized + Hash + Ord>(&mut self, key: &Q) -> Option<(K, V)>
            where
                K: Borrow<Q>,
            {
                self.remove_entry(key)
            }
        }

        impl<K: Clone + $($bound)+, V: Serialize> Tracked<$map<K, V>> {
            /// Puts an entry in.
            pub fn insert(&mut self, key: K, value: V) {
                self.changed.push(key.clone());
                self.all.insert(key, value);
            }
        }
    };
}

macro_rules! set {
    ($set:ident, $($bound:tt)+) => {
        impl<K: Clone + $($bound)+> Collection for $set<K> {
            type Key = K;
            type Value = ();
            fn value(&self, key: &K) -> Option<&()> {
                self.contains(key).then_some(&())
            }
            fn put(&mut self, key: K, (): ()) {
                self.insert(key);
            }
            fn take<Q: ?Sized + Hash + Ord>(&mut self, key: &Q) -> Option<(K, ())>
            where
                K: Borrow<Q>,
            {
                $set::take(self, key).map(|key| (key, ()))
            }
        }

        impl<K: Clone + $($bound)+> Tracked<$set<K>> {
            /// Puts an entry in; whether it is new.
            pub fn insert(&mut self, key: K) -> bool {
                if self.all.contains(&key) {
                    return false;
                }
                self.changed.push(key.clone());
                self.all.insert(key)
            }
        }
    };
}

map!(HashMap, Hash + Ord);
map!(BTreeMap, Ord);
set!(HashSet, Hash + Ord);
set!(BTreeSet, Ord);

impl<C: Collection> Default for Tracked<C> {
    fn default() -> Self {
        Self { all: C::default(), changed: Vec::new() }
    }
}

impl<C: Collection> Deref for Tracked<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.all
    }
}

impl<C: Collection> Tracked<C> {
    /// Takes an entry out; its value.
    pub fn remove<Q: ?Sized + Hash + Ord>(&mut self, key: &Q) -> Option<C::Value>
    where
        C::Key: Borrow<Q>,
    {
        let (key, value) = self.all.take(key)?;
        self.changed.push(key);
        Some(value)
    }

    /// Puts an entry back that is written down already.
    pub(in crate::fs) fn restore(&mut self, key: C::Key, value: C::Value) {
        self.all.put(key, value);
    }

    /// Writes down what was changed.
    pub(in crate::fs) fn write_down(&mut self, tx: &Transaction, name: impl Fn(C::Key) -> Key) {
        for key in self.changed.drain(..) {
            match self.all.value(&key) {
                Some(value) => tx.record(&name(key), value),
                None => tx.delete(&name(key)),
            }
        }
    }
}

impl<K: Clone + Hash + Ord, V: Serialize> Tracked<HashMap<K, V>> {
    /// An entry's value, to change it.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let value = self.all.get_mut(key)?;
        self.changed.push(key.clone());
        Some(value)
    }

    /// An entry's value, to change it; made if it is missing.
    pub fn or_default(&mut self, key: &K) -> &mut V
    where
        V: Default,
    {
        self.changed.push(key.clone());
        self.all.entry(key.clone()).or_default()
    }
}
