use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::fs::namespace::listing::*;

fn entries(names: &[&str]) -> Vec<DirEntry> {
    names.iter().map(|name| DirEntry::new(*name, FileKind::Regular, None)).collect()
}

fn names(entries: &[DirEntry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.name.as_str()).collect()
}

#[test]
fn a_name_keeps_its_position_while_others_come_and_go() {
    let first = Listing::whole(entries(&["a", "b", "c", "d"]));
    let place = first.after(0)[1].cookie;
    let second = first.succeeded_by(entries(&["aa", "b", "d", "e"]));
    assert_eq!(names(&second.after(place)), ["d", "aa", "e"]);
    let third = second.succeeded_by(entries(&["a", "d"]));
    assert_eq!(names(&third.after(place)), ["d", "a"], "what was read last is gone");
}

/// What a journal has of a listing.
#[derive(Default)]
struct Paper {
    parts: HashMap<u32, Vec<DirEntry>>,
    head: Option<Head>,
    /// Entries written so far.
    written: usize,
}

impl Paper {
    fn take(&mut self, listing: &Listing) {
        listing.note(|note| {
            note.obsolete.for_each(|part| drop(self.parts.remove(&part)));
            self.parts.insert(note.part, note.entries.to_vec());
            self.written += note.entries.len();
            self.head = Some(note.head);
        });
    }

    fn read(&self) -> (Vec<DirEntry>, Head) {
        let head = self.head.unwrap();
        assert_eq!(self.parts.len(), head.parts as usize, "nothing is left behind");
        ((0..head.parts).flat_map(|part| self.parts[&part].clone()).collect(), head)
    }
}

#[test]
fn each_name_is_written_down_once_while_a_listing_grows() {
    let listing = Listing::growing(entries(&[".", ".."]));
    let (mut positions, mut paper) = (HashMap::new(), Paper::default());
    let all: Vec<String> = (0..500).map(|n| format!("{n}")).collect();
    for page in all.chunks(10) {
        listing.grow(entries(&page.iter().map(String::as_str).collect::<Vec<_>>()), &mut positions);
        paper.take(&listing);
        let (noted, head) = paper.read();
        assert_eq!((noted, head.whole), (listing.after(0), false));
    }
    let dots = [".", ".."].into_iter().chain(all.iter().map(String::as_str)).collect::<Vec<_>>();
    assert!(!listing.finish(entries(&dots)));
    paper.take(&listing);
    assert_eq!(
        (paper.read(), paper.written),
        ((listing.after(0), Head { whole: true, ..paper.read().1 }), 502)
    );
    let restored = Listing::restored(paper.read().0, paper.read().1);
    restored.note(|_| panic!("all of it is there"));
    let newer = restored.succeeded_by(entries(&[".", "..", "7", "new"]));
    newer.take_the_place_of(&restored);
    paper.take(&newer);
    assert_eq!(paper.read().0, newer.after(0));
    restored.finish(entries(&["7"]));
    restored.note(|_| panic!("it has given way"));
}

#[test]
fn what_is_not_as_it_was_written_down_is_written_anew() {
    let listing = Listing::growing(entries(&[".", ".."]));
    let (mut positions, mut paper) = (HashMap::new(), Paper::default());
    for page in [["a", "b"], ["c", "d"]] {
        listing.grow(entries(&page), &mut positions);
        paper.take(&listing);
    }
    listing.grow(vec![DirEntry::new("a", FileKind::Directory, None)], &mut positions);
    paper.take(&listing);
    assert_eq!(paper.read().0, listing.after(0));
    listing.grow(entries(&["e"]), &mut positions);
    paper.take(&listing);
    assert!(listing.finish(entries(&[".", "..", "b", "d", "e"])), "what was shown is gone");
    paper.take(&listing);
    assert_eq!(paper.read().0, listing.after(0));
    assert!(paper.read().1.whole);
}

#[tokio::test]
async fn readers_wait_for_what_is_to_come() {
    let listing = Listing::growing(entries(&[".", ".."]));
    let mut positions = HashMap::new();
    assert_eq!(listing.ready(0), None, "dots only");
    listing.grow(entries(&["b"]), &mut positions);
    assert_eq!(listing.wait(0).await, Ok(()));
    let last = listing.after(0).last().unwrap().cookie;
    assert_eq!(listing.ready(last), None);
    let wait = listing.wait(last);
    let done = async { listing.finish(entries(&[".", "..", "a", "b"])) };
    let (waited, lost) = tokio::join!(wait, done);
    assert_eq!((waited, lost), (Ok(()), false));
    assert_eq!(names(&listing.after(last)), ["a"]);
}

#[tokio::test]
async fn a_listing_that_breaks_off_gives_what_it_has_and_then_the_error() {
    let listing = Listing::growing(entries(&[".", ".."]));
    listing.grow(entries(&["b"]), &mut HashMap::new());
    listing.fail(Errno::EBUSY, |_| {});
    assert_eq!(listing.wait(0).await, Ok(()));
    let last = listing.after(0).last().unwrap().cookie;
    assert_eq!(listing.wait(last).await, Err(Errno::EBUSY));
}

#[tokio::test(start_paused = true)]
async fn one_failure_is_told_once_whoever_of_two_is_late_first() {
    let late = Listing::growing(entries(&[".", ".."]));
    assert_eq!(late.wait_for(0, Duration::from_secs(1)).await, None, "the reader reports it");
    late.fail(Errno::ETIMEDOUT, |is_news| assert!(!is_news, "so the listing does not"));
    let failed = Listing::growing(entries(&[".", ".."]));
    failed.fail(Errno::ETIMEDOUT, |is_news| assert!(is_news, "the listing reports it"));
    assert_eq!(
        failed.wait_for(0, Duration::ZERO).await,
        Some(Err(Errno::ETIMEDOUT)),
        "so the reader does not"
    );
    // One has given up, and another one waits.
    let both = Listing::growing(entries(&[".", ".."]));
    assert_eq!(both.wait_for(0, Duration::ZERO).await, None);
    let wait = both.wait_for(0, Duration::from_secs(1));
    let fail = async { both.fail(Errno::EIO, |is_news| assert!(is_news)) };
    assert_eq!(tokio::join!(wait, fail).0, Some(Err(Errno::EIO)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_reported_before_a_reader_has_it() {
    let listing = Arc::new(Listing::growing(entries(&[".", ".."])));
    let reported = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (listing, reported) = (listing.clone(), reported.clone());
        async move {
            assert_eq!(listing.wait(0).await, Err(Errno::EIO));
            assert!(reported.load(Ordering::SeqCst));
        }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    tokio::task::block_in_place(|| {
        listing.fail(Errno::EIO, |_| {
            std::thread::sleep(Duration::from_millis(100));
            reported.store(true, Ordering::SeqCst);
        });
    });
    reader.await.unwrap();
}
