//! Saving and deleting so that the vault holds what was asked for, once, whatever happens on the
//! way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::cli::commands::objects::{ObjectSession, named};
use crate::cli::exit::Failure;
use crate::clock::SystemClock;
use crate::vault::cache::{Cache, CacheConfig};
use crate::vault::save::{Attempt, Conditions, Save, Stored};
use crate::vault::{Content, Error, ErrorKind, Form, ObjectName, VersionTag};

/// Makes the object or a version of it, as a save through a mount does. `content` decides how it is
/// stored, given the form of what is there. A key that may only write makes objects and no
/// versions: what it may not look at it takes for absent. Returns the new version, and none if the
/// vault had these bytes.
pub async fn save(
    session: &ObjectSession,
    name: &ObjectName,
    content: impl Fn(Option<Form>) -> Result<Content, Failure>,
) -> Result<Option<VersionTag>, Failure> {
    let there = match session.read(name).await {
        Ok(object) => Some(object),
        Err(e) if matches!(e.kind, ErrorKind::NotFound | ErrorKind::Forbidden) => None,
        Err(e) => return Err(e.into()),
    };
    let content = content(there.as_ref().map(|object| object.content.form))?;
    if there.as_ref().is_some_and(|object| object.content == content) {
        return Ok(None);
    }
    let config = CacheConfig {
        refresh: Duration::ZERO,
        max_stale: Duration::ZERO,
        timeout: session.timeout,
        capacity: session.max_size,
    };
    let cache = Cache::new(session.vault.clone(), Arc::new(SystemClock), config);
    let (base, call) = (there.as_ref().map(Stored::of), session.call());
    let (base, conditions) = (base.as_ref(), Conditions::default());
    let last = Mutex::new(None);
    let note = |attempt: &Attempt, _: Option<&_>| *last.lock() = Some(attempt.clone());
    let save = Save { cache: &cache, call: &call, name, content: &content, base, sent: None, conditions };
    let mut saved = save.run(&note).await;
    if saved.as_ref().is_err_and(|e| e.maybe_applied) && call.deadline <= Instant::now() {
        // No time was left to look what became of it.
        let sent = last.lock().clone();
        saved = Save { call: &session.call(), sent: sent.as_ref(), ..save }.run(&note).await;
    }
    saved.map(|saved| Some(saved.object.meta.version.clone())).map_err(|e| named(name, e).into())
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
    use super::*;
    use crate::cli::exit::Exit;
    use crate::vault::Vault;
    use crate::vault::model::op::Op;
    use crate::vault::testing::faulty::{Fault, FaultyVault};
    use crate::vault::testing::memory::MemoryVault;

    fn name() -> ObjectName {
        ObjectName::new("a").unwrap()
    }

    fn setup() -> (Arc<MemoryVault>, Arc<FaultyVault>, ObjectSession) {
        let memory = Arc::new(MemoryVault::object());
        let faulty = Arc::new(FaultyVault::new(memory.clone()));
        let timeout = Duration::from_secs(20);
        (memory, faulty.clone(), ObjectSession { vault: faulty, first_page: None, timeout, max_size: 1000 })
    }

    async fn put(session: &ObjectSession, value: &str) -> Result<Option<VersionTag>, Failure> {
        save(session, &name(), |_| Ok(Content::plain(value))).await
    }

    async fn history(session: &ObjectSession) -> usize {
        let id = session.read(&name()).await.unwrap().meta.id;
        session.vault.versions(&session.call(), &id, None).await.unwrap().len()
    }

    #[tokio::test]
    async fn a_save_is_one_version_and_equal_bytes_are_none() {
        let (memory, _faulty, session) = setup();
        assert!(put(&session, "1").await.unwrap().is_some());
        assert!(put(&session, "1").await.unwrap().is_none());
        assert!(put(&session, "2").await.unwrap().is_some());
        assert_eq!((memory.count(Op::Create), memory.count(Op::Update)), (1, 1));
        assert_eq!(history(&session).await, 2);
    }

    #[tokio::test]
    async fn a_lost_answer_is_looked_up_before_anything_is_sent_again() {
        let (memory, faulty, session) = setup();
        faulty.fail_next(Op::Create, Fault::After(ErrorKind::Deadline));
        assert!(put(&session, "1").await.unwrap().is_some());
        faulty.fail_next(Op::Update, Fault::After(ErrorKind::Unreachable));
        assert!(put(&session, "2").await.unwrap().is_some());
        assert_eq!((memory.count(Op::Create), memory.count(Op::Update)), (1, 1));
        faulty.fail_next(Op::Update, Fault::After(ErrorKind::Deadline));
        faulty.plan(Op::GetByName).nth(2).fail(Fault::Before(ErrorKind::Unreachable));
        assert_eq!(put(&session, "3").await.unwrap_err().exit, Exit::Unreachable);
    }

    #[tokio::test]
    async fn a_save_that_the_deadline_ended_is_looked_up_within_another_one() {
        let save_under = async |fault: Fault| {
            let (memory, faulty, mut session) = setup();
            put(&session, "1").await.unwrap();
            session.timeout = Duration::from_secs(10);
            faulty.fail_next(Op::Update, fault.clone());
            assert!(put(&session, "2").await.unwrap().is_some(), "{fault:?}");
            assert_eq!(history(&session).await, 2);
            memory.count(Op::Update)
        };
        assert_eq!(tokio::join!(save_under(Fault::Hang), save_under(Fault::HangAfter)), (1, 1));
    }

    #[tokio::test]
    async fn an_object_that_comes_or_goes_meanwhile_is_followed() {
        let (memory, faulty, session) = setup();
        memory.create(&session.call(), &name(), &Content::plain("theirs")).await.unwrap();
        faulty.fail_next(Op::GetByName, Fault::Before(ErrorKind::NotFound));
        assert!(put(&session, "mine").await.unwrap().is_some());
        assert_eq!(history(&session).await, 2, "the create that lost became an update");
        faulty.fail_next(Op::Update, Fault::Before(ErrorKind::NotFound));
        assert!(put(&session, "again").await.unwrap().is_some());
        faulty.fail_always(Op::Update, Fault::Before(ErrorKind::NotFound));
        assert_eq!(put(&session, "never").await.unwrap_err().exit, Exit::Failed);
    }

    #[tokio::test]
    async fn a_key_that_may_only_write_makes_objects_and_no_versions() {
        let (memory, faulty, session) = setup();
        faulty.fail_always(Op::GetByName, Fault::Before(ErrorKind::Forbidden));
        assert!(put(&session, "1").await.unwrap().is_some());
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
