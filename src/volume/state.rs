//! The volumes and their users. Pure: each change is a function from state to state.
//!
//! Mounts are counted for each ID that comes with Mount and Unmount: `docker cp` mounts and
//! unmounts with the ID of the container that runs. An Unmount of an ID that has no Mount changes
//! nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// Why something cannot be done; the sentence is shown to the user of `docker` or `podman`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not there.
    #[error("there is no vaultfs volume named {0}")]
    Unknown(String),
    /// A name that cannot be a directory's.
    #[error("{0:?} cannot name a volume: use letters, digits, and _ . - after the first, 128 at most")]
    BadName(String),
    /// The request lacks something.
    #[error("the request names no {0}")]
    Missing(&'static str),
    /// Created before with other options.
    #[error("the vaultfs volume {0} exists with other options: remove it first, or choose another name")]
    Differs(String),
    /// Remove of a volume in use.
    #[error("the vaultfs volume {name} is in use by {users}: stop what uses it first")]
    InUse {
        /// The volume.
        name: String,
        /// How many, in words.
        users: String,
    },
    /// Without a counted user, but bound in a mount namespace.
    #[error("the vaultfs volume {name} is in use: {holder}")]
    Bound {
        /// The volume.
        name: String,
        /// Where it is bound, as a sentence.
        holder: String,
    },
    /// The message of a layer below.
    #[error("{0}")]
    Message(String),
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The options it was created with. They name files, never hold a secret.
    pub options: BTreeMap<String, String>,
    /// When, in seconds since 1970.
    pub created: u64,
    /// The IDs it is mounted for, and how many times for each.
    #[serde(default, deserialize_with = "users")]
    pub users: BTreeMap<String, u32>,
}

/// Earlier versions wrote a list of IDs.
fn users<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Counted(BTreeMap<String, u32>),
        Listed(Vec<String>),
    }
    Ok(match Written::deserialize(from)? {
        Written::Counted(users) => users,
        Written::Listed(ids) => ids.into_iter().map(|id| (id, 1)).collect(),
    })
}

/// All volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volumes(BTreeMap<String, Volume>);

impl Volumes {
    /// One volume.
    pub fn get(&self, name: &str) -> Result<&Volume, Refusal> {
        self.0.get(name).ok_or_else(|| Refusal::Unknown(name.to_owned()))
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Volume)> {
        self.0.iter().map(|(name, volume)| (name.as_str(), volume))
    }

    /// Adds a volume. False if it exists with the same options.
    pub fn create(
        &mut self,
        name: &str,
        options: &BTreeMap<String, String>,
        now: u64,
    ) -> Result<bool, Refusal> {
        check_name(name)?;
        match self.0.get(name) {
            Some(old) if old.options == *options => Ok(false),
            Some(_) => Err(Refusal::Differs(name.to_owned())),
            None => {
                let volume = Volume { options: options.clone(), created: now, users: BTreeMap::new() };
                self.0.insert(name.to_owned(), volume);
                Ok(true)
            }
        }
    }

    /// Counts a Mount.
    pub fn acquire(&mut self, name: &str, id: &str) -> Result<(), Refusal> {
        let users = self.users(name)?.entry(id.to_owned()).or_default();
        *users = users.saturating_add(1);
        Ok(())
    }

    /// Counts an Unmount. False if the ID had no Mount.
    pub fn release(&mut self, name: &str, id: &str) -> Result<bool, Refusal> {
        let users = self.users(name)?;
        let Some(count) = users.get_mut(id) else { return Ok(false) };
        *count = count.saturating_sub(1);
        if *count == 0 {
            users.remove(id);
        }
        Ok(true)
    }

    fn users(&mut self, name: &str) -> Result<&mut BTreeMap<String, u32>, Refusal> {
        let volume = self.0.get_mut(name).ok_or_else(|| Refusal::Unknown(name.to_owned()))?;
        Ok(&mut volume.users)
    }

    /// Refuses a volume with users.
    pub fn check_unused(&self, name: &str) -> Result<(), Refusal> {
        let users = match self.get(name)?.users.len() {
            0 => return Ok(()),
            1 => "a container".to_owned(),
            n => format!("{n} containers"),
        };
        Err(Refusal::InUse { name: name.to_owned(), users })
    }

    /// Removes a volume, if there is one.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// After a restart of the machine no volume has users.
    pub fn forget_users(&mut self) {
        self.0.values_mut().for_each(|volume| volume.users.clear());
    }
}

/// Refuses names that are no plain directory name: the name is used as one on the host.
pub fn check_name(name: &str) -> Result<(), Refusal> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && name.len() <= 128 && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
        return Ok(());
    }
    Err(Refusal::BadName(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(prefix: &str) -> BTreeMap<String, String> {
        [("prefix".to_owned(), prefix.to_owned())].into()
    }

    #[test]
    fn names_lead_nowhere_else() {
        for bad in ["", ".", "..", "a/b", ".hidden", "a b", "-v", "ä", "a\n", &"x".repeat(129)] {
            assert!(Volumes::default().create(bad, &options(""), 0).is_err(), "{bad:?}");
        }
        for good in ["a", "app_1.x-y", "0", &"x".repeat(128)] {
            assert_eq!(Volumes::default().create(good, &options(""), 0), Ok(true), "{good}");
        }
    }

    #[test]
    fn creating_twice_is_once_unless_it_differs() {
        let mut volumes = Volumes::default();
        assert_eq!(volumes.create("v", &options("a"), 1), Ok(true));
        assert_eq!(volumes.create("v", &options("a"), 2), Ok(false));
        assert_eq!(volumes.create("v", &options("b"), 3), Err(Refusal::Differs("v".into())));
        assert_eq!(volumes.get("v").expect("created").created, 1);
    }

    #[test]
    fn users_are_counted_by_their_id() {
        let mut volumes = Volumes::default();
        volumes.create("v", &options(""), 0).expect("new");
        volumes.acquire("v", "one").expect("there");
        // docker cp, with the ID of the container that runs.
        volumes.acquire("v", "one").expect("there");
        assert_eq!(volumes.release("v", "one"), Ok(true));
        assert!(volumes.check_unused("v").is_err(), "the container runs");
        volumes.acquire("v", "two").expect("there");
        let said = volumes.check_unused("v").unwrap_err().to_string();
        assert_eq!(said.matches("2 containers").count(), 1, "{said}");
        assert_eq!(volumes.release("v", "one"), Ok(true));
        assert_eq!(volumes.release("v", "one"), Ok(false), "a repeated request");
        assert!(volumes.check_unused("v").is_err());
        assert_eq!(volumes.release("v", "two"), Ok(true));
        assert_eq!(volumes.check_unused("v"), Ok(()));
        volumes.remove("v");
        volumes.remove("v");
        assert_eq!(volumes.acquire("v", "one"), Err(Refusal::Unknown("v".into())));
    }

    #[test]
    fn what_an_earlier_version_wrote_is_read() {
        let old = r#"{"v":{"options":{},"created":7,"users":["a","b"]},"w":{"options":{},"created":7}}"#;
        let mut volumes: Volumes = serde_json::from_str(old).expect("as it was written");
        assert_eq!(volumes.get("v").expect("there").users.len(), 2);
        assert!(volumes.get("w").expect("there").users.is_empty());
        volumes.acquire("v", "a").expect("there");
        let text = serde_json::to_string(&volumes).expect("plain data");
        assert_eq!(serde_json::from_str::<Volumes>(&text).expect("as it was written"), volumes);
    }
}
