//! Saving and deleting so that the vault holds what was asked for, once, whatever happens on the
//! way.

use crate::cli::commands::objects::{ObjectSession, named};
use crate::cli::exit::{Exit, Failure};
use crate::vault::{Content, Error, ErrorKind, Form, ObjectName};

/// How often a save follows a name that is made and deleted under it before it gives up.
const MAX_SAVES: usize = 4;

/// What a save did.
#[derive(Debug, PartialEq, Eq)]
pub enum Saved {
    /// A new object or version.
    Stored,
    /// Nothing: the vault had these bytes.
    Equal,
}

/// Makes the object or a version of it. `content` decides how it is stored, given the form of what
/// is there.
///
/// An object that comes or goes meanwhile, or a failure after which the change may have been
/// applied, makes it read the vault again: what is asked for is that the vault holds these bytes,
/// once.
pub async fn save(
    session: &ObjectSession,
    name: &ObjectName,
    content: impl Fn(Option<Form>) -> Result<Content, Failure>,
) -> Result<Saved, Failure> {
    let mut unconfirmed: Option<Error> = None;
    let mut refused_as_taken = false;
    for _ in 0..MAX_SAVES {
        let there = match session.read(name).await {
            Ok(object) => Some(object),
            Err(e) if e.kind == ErrorKind::NotFound => None,
            Err(e) if e.kind == ErrorKind::Forbidden && unconfirmed.is_none() => {
                return make(session, name, &content(None)?).await;
            }
            Err(e) => return Err(unconfirmed.unwrap_or(e).into()),
        };
        let content = content(there.as_ref().map(|object| object.content.form))?;
        if there.as_ref().is_some_and(|object| object.content == content) {
            return Ok(if unconfirmed.is_some() { Saved::Stored } else { Saved::Equal });
        }
        if let Some(e) = unconfirmed {
            return Err(e.into());
        }
        let call = session.call();
        let result = match &there {
            None => session.vault.create(&call, name, &content).await,
            Some(object) => {
                let updated =
                    session.vault.update(&call, &object.meta.id, &content, Some(&object.meta.version));
                updated.await.map_err(|e| named(name, e))
            }
        };
        match result {
            Ok(_) => return Ok(Saved::Stored),
            Err(e) if e.maybe_applied => unconfirmed = Some(e),
            Err(e) => match (e.kind, &there) {
                (ErrorKind::AlreadyExists, None) if refused_as_taken => {
                    let sentence = format!(
                        "{name:?}: the name is not free yet: the vault has no such object and refuses the name as taken; \
                         try again later"
                    );
                    return Err(Failure::new(Exit::Failed, sentence));
                }
                (ErrorKind::AlreadyExists, None) => refused_as_taken = true,
                (ErrorKind::NotFound | ErrorKind::VersionMismatch, Some(_)) => {}
                _ => return Err(e.into()),
            },
        }
    }
    let sentence = match unconfirmed {
        Some(e) => return Err(e.into()),
        None => format!("{name:?} is being changed by others all the time: try again"),
    };
    Err(Failure::new(Exit::Failed, sentence))
}

/// Makes an object that the key may not look at. A version of one that is there takes its id, which
/// only a read shows; nor can a lost answer be looked up, so it is reported as it is.
async fn make(session: &ObjectSession, name: &ObjectName, content: &Content) -> Result<Saved, Failure> {
    match session.vault.create(&session.call(), name, content).await {
        Ok(_) => Ok(Saved::Stored),
        Err(e) if e.kind == ErrorKind::AlreadyExists => {
            let sentence = format!(
                "{name:?} exists already, and to make a version of it the API key has to look it up, which takes the \
                 permission read as well: nothing is stored"
            );
            Err(Failure::new(Exit::Key, sentence))
        }
        Err(e) => Err(e.into()),
    }
}

/// Deletes an object; a lost answer is looked up.
pub async fn delete(session: &ObjectSession, name: &ObjectName) -> Result<(), Error> {
    let id = session.read(name).await?.meta.id;
    match session.vault.delete(&session.call(), &id, None).await {
        // Ids are never given twice: if it is gone now, it was this delete or one that came before
        // it.
        Err(e) if e.maybe_applied => match session.vault.metadata(&session.call(), &id).await {
            Err(gone) if gone.kind == ErrorKind::NotFound => Ok(()),
            _ => Err(named(name, e)),
        },
        result => result.map_err(|e| named(name, e)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::vault::model::op::Op;
    use crate::vault::testing::faulty::{Fault, FaultyVault};
    use crate::vault::testing::memory::MemoryVault;
    use crate::vault::{Content, ObjectName, Vault};

    fn name() -> ObjectName {
        ObjectName::new("a").unwrap()
    }

    fn setup() -> (Arc<MemoryVault>, Arc<FaultyVault>, ObjectSession) {
        let memory = Arc::new(MemoryVault::object());
        let faulty = Arc::new(FaultyVault::new(memory.clone()));
        let timeout = Duration::from_secs(20);
        (memory, faulty.clone(), ObjectSession { vault: faulty, first_page: None, timeout, max_size: 1000 })
    }

    async fn put(session: &ObjectSession, value: &str) -> Result<Saved, Failure> {
        save(session, &name(), |_| Ok(Content::plain(value))).await
    }

    async fn history(session: &ObjectSession) -> usize {
        let id = session.read(&name()).await.unwrap().meta.id;
        session.vault.versions(&session.call(), &id).await.unwrap().len()
    }

    #[tokio::test]
    async fn a_save_is_one_version_and_equal_bytes_are_none() {
        let (memory, _faulty, session) = setup();
        assert_eq!(put(&session, "1").await.unwrap(), Saved::Stored);
        assert_eq!(put(&session, "1").await.unwrap(), Saved::Equal);
        assert_eq!(put(&session, "2").await.unwrap(), Saved::Stored);
        assert_eq!((memory.count(Op::Create), memory.count(Op::Update)), (1, 1));
        assert_eq!(history(&session).await, 2);
    }

    #[tokio::test]
    async fn a_lost_answer_is_looked_up_before_anything_is_sent_again() {
        let (memory, faulty, session) = setup();
        faulty.fail_next(Op::Create, Fault::After(ErrorKind::Deadline));
        assert_eq!(put(&session, "1").await.unwrap(), Saved::Stored);
        faulty.fail_next(Op::Update, Fault::After(ErrorKind::Unreachable));
        assert_eq!(put(&session, "2").await.unwrap(), Saved::Stored);
        assert_eq!((memory.count(Op::Create), memory.count(Op::Update)), (1, 1));
        faulty.fail_next(Op::Update, Fault::After(ErrorKind::Deadline));
        faulty.plan(Op::GetByName).nth(2).fail(Fault::Before(ErrorKind::Unreachable));
        assert_eq!(put(&session, "3").await.unwrap_err().exit, Exit::Unreachable);
    }

    #[tokio::test]
    async fn an_object_that_comes_or_goes_meanwhile_is_followed() {
        let (memory, faulty, session) = setup();
        memory.create(&session.call(), &name(), &Content::plain("theirs")).await.unwrap();
        faulty.fail_next(Op::GetByName, Fault::Before(ErrorKind::NotFound));
        assert_eq!(put(&session, "mine").await.unwrap(), Saved::Stored);
        assert_eq!(history(&session).await, 2, "the create that lost became an update");
        faulty.fail_next(Op::Update, Fault::Before(ErrorKind::NotFound));
        assert_eq!(put(&session, "again").await.unwrap(), Saved::Stored);
        faulty.fail_always(Op::Update, Fault::Before(ErrorKind::NotFound));
        assert_eq!(put(&session, "never").await.unwrap_err().exit, Exit::Failed);
    }

    #[tokio::test]
    async fn a_refusal_ends_a_save_at_once() {
        let (memory, faulty, session) = setup();
        faulty.fail_always(Op::Create, Fault::Before(ErrorKind::Forbidden));
        assert_eq!(put(&session, "1").await.unwrap_err().exit, Exit::Key);
        assert_eq!((faulty.count(Op::Create), memory.count(Op::Create)), (1, 0));
    }

    #[tokio::test]
    async fn a_key_that_may_only_write_makes_objects_and_no_versions() {
        let (memory, faulty, session) = setup();
        faulty.fail_always(Op::GetByName, Fault::Before(ErrorKind::Forbidden));
        assert_eq!(put(&session, "1").await.unwrap(), Saved::Stored);
        let taken = put(&session, "2").await.unwrap_err();
        assert_eq!(taken.exit, Exit::Key);
        assert!(taken.message.starts_with("\"a\" exists") && taken.message.contains("read"), "{taken}");
        faulty.fail_next(Op::Create, Fault::After(ErrorKind::Deadline));
        let lost = save(&session, &ObjectName::new("b").unwrap(), |_| Ok(Content::plain("x"))).await;
        assert_eq!(lost.unwrap_err().exit, Exit::Unreachable, "it is unknown whether it is there");
        assert_eq!((memory.count(Op::Create), memory.count(Op::Update)), (3, 0));
    }

    #[tokio::test]
    async fn what_fails_is_told_by_its_name() {
        let (_memory, faulty, session) = setup();
        put(&session, "1").await.unwrap();
        faulty.fail_always(Op::Update, Fault::Before(ErrorKind::Forbidden));
        assert!(put(&session, "2").await.unwrap_err().message.starts_with("\"a\": "));
        faulty.fail_always(Op::Delete, Fault::Before(ErrorKind::Forbidden));
        assert!(delete(&session, &name()).await.unwrap_err().message.starts_with("\"a\": "));
    }

    #[tokio::test]
    async fn a_delete_whose_answer_was_lost_is_looked_up() {
        let (_memory, faulty, session) = setup();
        put(&session, "1").await.unwrap();
        faulty.fail_next(Op::Delete, Fault::After(ErrorKind::Deadline));
        delete(&session, &name()).await.unwrap();
        assert_eq!(delete(&session, &name()).await.unwrap_err().kind, ErrorKind::NotFound);
    }
}
