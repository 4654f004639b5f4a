//! Resolves a directory and a file name to an inode. No other module interprets names.
//!
//! 1. What is known is answered at once. Otherwise [`Namespace::locate`] returns what it
//!    [`Need`]s; the caller requests it and calls again with the answers. An absence is never
//!    guessed.
//! 2. A name can be an object, a directory that other names imply, or both. Both: it is a
//!    directory, and the object is `.self` in it. But a name first seen as a file stays one for the
//!    life of the mount, and what would be below it is shown beside it (`a%2Fb`).
//! 3. A file with unsaved bytes is what the name shows, whatever the vault says: its commit
//!    decides.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::failpoint;
use crate::fs::inode::DirKind;
use crate::fs::inode::file::File;
use crate::fs::name;
use crate::fs::name::{Decoded, DirPrefix, Refused, Rest};
use crate::fs::namespace::Namespace;
use crate::fs::types::ctx::RequestCtx;
use crate::fs::types::errno::{Errno, Result};
use crate::vault::cache::{Found, Peek, PrefixState};
use crate::vault::{Call, Error, ErrorKind, ObjectName};

/// What is at a place in the tree.
pub(in crate::fs) enum Place {
    /// A directory.
    Dir(DirPrefix),
    /// A file with an inode; its bytes may not be in the vault.
    Local(Arc<File>),
    /// An object.
    Object(Found),
    /// Nothing.
    Absent,
}

/// What has to be requested before a place is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::fs) enum Need {
    /// This object, by name.
    Object(ObjectName),
    /// All names.
    Listing,
    /// Whether a name begins so, of a vault that can search.
    Prefix(DirPrefix),
}

/// Answers to the requests of this operation. They may be stale (the vault is down), so they count
/// for this operation only.
#[derive(Default)]
pub(in crate::fs) struct Answers {
    object: Option<(ObjectName, Option<Found>)>,
    listed: bool,
    searched: Option<DirPrefix>,
    /// The key may not list names.
    unlisted: bool,
}

impl Namespace {
    /// Resolves `component` in `under`, with requests to the vault as needed.
    pub(in crate::fs) async fn find(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        under: &DirPrefix,
        component: &OsStr,
    ) -> Result<Place> {
        let mut answers = Answers::default();
        loop {
            let need = match self.locate(under, component, &answers)? {
                Ok(place) => return Ok(place),
                Err(need) => need,
            };
            let call = ctx.call().await;
            if let Some(dir) = Box::pin(self.request(call, need, (under, component), &mut answers)).await? {
                return Ok(Place::Dir(dir));
            }
        }
    }

    /// Requests what is needed. Returns an empty directory made here, which exists although the
    /// request failed.
    async fn request(
        self: &Arc<Self>,
        call: &Call,
        need: Need,
        (under, component): (&DirPrefix, &OsStr),
        answers: &mut Answers,
    ) -> Result<Option<DirPrefix>> {
        match need {
            Need::Object(name) => {
                if matches!(self.env.cache().peek(&name), Peek::Exists) {
                    self.prefetch(under, &name);
                }
                let found = self.env.cache().read(call, &name).await;
                failpoint::point_of("found", || name.as_str().to_owned());
                match (found, self.bare_at(under, component)) {
                    (Ok(found), _) => answers.object = Some((name, found)),
                    (Err(_), bare @ Some(_)) => return Ok(bare),
                    (Err(e), None) => return Err(self.env.failed("lookup", name.as_str(), &e)),
                }
            }
            Need::Listing => {
                let listed = self.env.cache().list_all(call).await;
                match (listed, self.bare_at(under, component)) {
                    (Err(_), bare @ Some(_)) => return Ok(bare),
                    (listed, _) => answers.listed = self.was_answered(listed, component, answers)?,
                }
            }
            Need::Prefix(dir) => {
                let searched = self.env.cache().search_prefix(call, dir.as_str()).await;
                if self.was_answered(searched, component, answers)? {
                    answers.searched = Some(dir);
                }
            }
        }
        Ok(None)
    }

    /// Whether a listing or a search was answered; a key that may not list names does without.
    fn was_answered(
        &self,
        asked: Result<(), Error>,
        component: &OsStr,
        answers: &mut Answers,
    ) -> Result<bool> {
        match asked {
            Ok(()) => Ok(true),
            Err(e) if e.kind == ErrorKind::Forbidden && self.env.cache().is_unlisted() => {
                answers.unlisted = true;
                Ok(false)
            }
            Err(e) => Err(self.env.failed("lookup", &component.to_string_lossy(), &e)),
        }
    }

    /// `component` is no object, and the key may not list names. A name given by `--name`, or an
    /// editor's temporary, is absent.
    fn absent_unlisted(&self, component: &OsStr, dir: &DirPrefix) -> Result<Place> {
        let text = component.to_string_lossy();
        let is_file =
            self.env.options().names.iter().any(|name| dir.as_str().strip_suffix('/') == Some(name.as_str()))
                || self.patterns.matches(&text)
                || self.patterns.is_provisional(&text);
        match is_file {
            true => Ok(Place::Absent),
            false => Err(self.env.refused(
                "lookup",
                &text,
                Errno::EACCES,
                "there is no such object, and the key may not list names, which would show whether it is a directory: give \
                 mount a name below it with --name NAME",
            )),
        }
    }

    /// Resolves `component` in `under`, or returns what has to be requested first.
    pub(in crate::fs) fn locate(
        &self,
        under: &DirPrefix,
        component: &OsStr,
        answers: &Answers,
    ) -> Result<Result<Place, Need>> {
        let (as_file, as_dir) = match name::decode(component.as_bytes(), under) {
            Ok(Decoded::SelfFile(name)) => (Some(name), None),
            Ok(Decoded::Entry { as_file, as_dir } | Decoded::Beside { as_file, as_dir }) => {
                let shown = |name: &ObjectName| self.inodes.lock().is_shown_as(name, under, component);
                (as_file.filter(|name| self.is_allowed(name) && shown(name)), as_dir)
            }
            Err(Refused::Spelling) => return Ok(Ok(Place::Absent)),
            Err(Refused::TooLong) => return Err(Errno::ENAMETOOLONG),
        };
        let prefix = as_dir.as_ref().map(|dir| self.prefix_state(under, component, dir, answers));
        if let (Some(PrefixState::Yes), Some(dir)) = (prefix, &as_dir) {
            return Ok(self.object_instead_of(dir, answers).map(|object| match object {
                Some(found) => Place::Object(found),
                None => Place::Dir(dir.clone()),
            }));
        }
        if let Some(name) = as_file {
            match self.file_at(&name, answers) {
                Ok(Place::Absent) => self.vanished(&name),
                known => return Ok(known),
            }
        } else if let Some(dir) = &as_dir
            && let Some(own) = dir.self_name().filter(|_| self.inodes.lock().is_seen_dir(dir))
        {
            match self.file_at(&own, answers) {
                Ok(Place::Absent) => {}
                Ok(_) => return Ok(Ok(Place::Dir(dir.clone()))),
                Err(need) => return Ok(Err(need)),
            }
        }
        match (prefix, as_dir) {
            (Some(PrefixState::Unknown), Some(dir)) if answers.unlisted => {
                self.absent_unlisted(component, &dir).map(Ok)
            }
            (Some(PrefixState::Unknown), Some(dir)) if self.is_searched(&dir) => Ok(Err(Need::Prefix(dir))),
            (Some(PrefixState::Unknown), _) => Ok(Err(Need::Listing)),
            (Some(PrefixState::Yes | PrefixState::No(_)) | None, _) => Ok(Ok(Place::Absent)),
        }
    }

    /// Whether to search for the directory. Where one page holds all names, a listing shows more
    /// for the same cost; for a part of a long component a hit does not show whether it is spelt
    /// so.
    fn is_searched(&self, dir: &DirPrefix) -> bool {
        let searches = self.env.cache().vault().capabilities().search;
        searches && !dir.is_continuation() && !self.env.cache().listing_is_one_page()
    }

    /// The file of that name, wherever it shows.
    fn file_at(&self, name: &ObjectName, answers: &Answers) -> Result<Place, Need> {
        let table = self.inodes.lock();
        if let Some(file) = table.file(name).filter(|file| file.state().is_beyond_vault()) {
            return Ok(Place::Local(file));
        }
        if table.is_hidden(name) {
            return Ok(Place::Absent);
        }
        drop(table);
        Ok(self.object_at(name, answers)?.map_or(Place::Absent, Place::Object))
    }

    /// Whether the directory was made here and is empty.
    fn is_bare(&self, dir: &DirPrefix) -> bool {
        !dir.is_continuation()
            && self.inodes.lock().is_made_and_bare(dir)
            && self.env.cache().prefix_state(dir.as_str()) != PrefixState::Yes
    }

    /// The empty directory at `component`, which exists whatever the vault says.
    fn bare_at(&self, under: &DirPrefix, component: &OsStr) -> Option<DirPrefix> {
        match name::decode(component.as_bytes(), under) {
            Ok(Decoded::Entry { as_dir, .. } | Decoded::Beside { as_dir, .. }) => {
                as_dir.filter(|dir| self.is_bare(dir))
            }
            Ok(Decoded::SelfFile(_)) | Err(_) => None,
        }
    }

    /// The object that shows from now on instead of an empty directory made here: container engines
    /// make one for a bind source that is missing.
    fn object_instead_of(&self, dir: &DirPrefix, answers: &Answers) -> Result<Option<Found>, Need> {
        let Some(own) = dir.self_name().filter(|own| self.is_bare(dir) && !self.inodes.lock().is_hidden(own))
        else {
            return Ok(None);
        };
        if self.env.cache().status().outage.is_some() {
            return Ok(None);
        }
        let found = self.object_at(&own, answers)?;
        if found.is_some() {
            self.give_way(dir);
        }
        Ok(found)
    }

    /// The directory is gone; an object has its name.
    fn give_way(&self, dir: &DirPrefix) {
        let gone = {
            let mut table = self.inodes.lock();
            let gone = table.remove_dir(&DirKind::Tree(dir.clone()));
            table.names_changed();
            gone
        };
        tracing::info!(name = dir.as_str(), "an empty directory gives way to an object of its name");
        gone.into_iter().for_each(|ino| self.dir_removed(ino));
    }

    /// An object was made elsewhere: an empty directory of its name is removed, and the kernel is
    /// notified.
    pub(in crate::fs) fn make_way_for(&self, name: &ObjectName) {
        let dir = DirPrefix::of_name(name);
        if self.inodes.lock().is_made_and_bare(&dir)
            && matches!(self.env.cache().peek(name), Peek::Value(_) | Peek::Exists)
            && self.is_bare(&dir)
        {
            self.give_way(&dir);
            self.inval_name(name);
        }
    }

    /// The object of that name, or what has to be requested first. Where one page lists all names,
    /// a listing costs no more than one name, and covers directories as well.
    fn object_at(&self, name: &ObjectName, answers: &Answers) -> Result<Option<Found>, Need> {
        if let Some((asked, found)) = &answers.object
            && asked == name
        {
            return Ok(found.clone());
        }
        match self.env.cache().peek(name) {
            Peek::Value(found) => Ok(Some(found)),
            Peek::Absent(_) => Ok(None),
            Peek::AbsentBefore if answers.listed => Ok(None),
            Peek::AbsentBefore if !answers.unlisted && self.env.cache().listing_is_one_page() => {
                Err(Need::Listing)
            }
            Peek::Exists | Peek::AbsentBefore | Peek::Unknown => Err(Need::Object(name.clone())),
        }
    }

    /// Whether the directory `dir`, spelt `component` in `under`, exists: made here, or implied by
    /// a name.
    fn prefix_state(
        &self,
        under: &DirPrefix,
        component: &OsStr,
        dir: &DirPrefix,
        answers: &Answers,
    ) -> PrefixState {
        let mut table = self.inodes.lock();
        if let Some(owner) = dir.self_name()
            && table.is_file_instead_of(dir, &owner)
        {
            return PrefixState::No(self.env.now());
        }
        let beyond_vault = |(_, file): (&ObjectName, Arc<File>)| file.state().is_beyond_vault();
        if table.is_made(dir) || (!dir.is_continuation() && table.files_under(dir.as_str()).any(beyond_vault))
        {
            return PrefixState::Yes;
        }
        let mut prefix = self.env.cache().prefix_state(dir.as_str());
        if prefix == PrefixState::Yes && dir.is_continuation() {
            let mut seen = false;
            self.env.cache().visit_names(dir.as_str(), |name| {
                let shown = table.shown(name, under);
                seen = shown
                    .is_some_and(|(text, rest)| component == text.as_str() && rest == Rest::Dir(dir.clone()));
                seen.then(String::new)
            });
            prefix = match (seen, self.env.cache().is_complete()) {
                (true, _) => PrefixState::Yes,
                (false, true) => PrefixState::No(self.env.now()),
                (false, false) => PrefixState::Unknown,
            };
        }
        match prefix {
            PrefixState::Unknown
                if self.env.options().names.iter().any(|name| name.starts_with(dir.as_str())) =>
            {
                PrefixState::Yes
            }
            PrefixState::Unknown if answers.listed || answers.searched.as_ref() == Some(dir) => {
                PrefixState::No(self.env.now())
            }
            other => other,
        }
    }

    /// Whether the vault could hold this name at all.
    pub(in crate::fs) fn is_allowed(&self, name: &ObjectName) -> bool {
        self.env.cache().vault().capabilities().max_name.allows(name.as_str())
    }
}
