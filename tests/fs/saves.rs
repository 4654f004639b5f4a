//! One save, one version: for each way in which programs write.

use std::sync::Arc;
use std::time::Duration;

use vaultfs::fs::{Errno, Options, SetAttr};
use vaultfs::vault::codec::Format;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::{Content, Form, Vault};

use crate::shell::{CREATE, READ, Shell, WRITE};

const APPEND: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND;

#[tokio::test(start_paused = true)]
async fn echo_is_one_version_and_keeps_every_byte() {
    let sh = Shell::new();
    sh.write_file("f", "one\n").await.unwrap();
    assert_eq!(sh.history("f").await, ["one\n"]);
    assert_eq!(sh.cat("f").await, "one\n");
    sh.write_file("f", "two").await.unwrap();
    assert_eq!(sh.history("f").await, ["one\n", "two"]);
    let hostile: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    sh.write_file("f", &hostile).await.unwrap();
    assert_eq!(sh.read_file("f").await.unwrap(), hostile);
    assert_eq!(sh.remount().read_file("f").await.unwrap(), hostile);
}

#[tokio::test(start_paused = true)]
async fn an_empty_file_is_stored_at_its_last_close() {
    let sh = Shell::new();
    let fd = sh.open("new", CREATE).await.unwrap();
    sh.flush(&fd).await.unwrap();
    sh.flush(&fd).await.unwrap();
    assert!(sh.names().await.is_empty(), "a flush with nothing written stores nothing");
    assert_eq!(sh.stat("new").await.unwrap().size, 0);
    sh.release(fd).await;
    assert_eq!(sh.history("new").await, [""]);
    sh.put("full", "x").await;
    let fd = sh.open("full", CREATE).await.unwrap();
    sh.flush(&fd).await.unwrap();
    assert_eq!(sh.history("full").await, ["x"]);
    sh.release(fd).await;
    assert_eq!(sh.history("full").await, ["x", ""]);
    let fd = sh.open("full", CREATE).await.unwrap();
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("full").await, ["x", ""], "it was empty already");
}

#[tokio::test(start_paused = true)]
async fn touch_makes_an_empty_object_and_leaves_others_alone() {
    let sh = Shell::new();
    sh.put("old", "x").await;
    for name in ["new", "old"] {
        let fd = sh.open(name, libc::O_WRONLY | libc::O_CREAT).await.unwrap();
        sh.close(fd).await.unwrap();
        sh.utimens(name, sh.fs.now()).await.unwrap();
    }
    assert_eq!((sh.history("new").await, sh.history("old").await), (vec![String::new()], vec!["x".into()]));
}

#[tokio::test(start_paused = true)]
async fn appending_keeps_what_was_there() {
    let sh = Shell::new();
    sh.put("f", "one ").await;
    let fd = sh.open("f", APPEND).await.unwrap();
    let end = sh.fstat(&fd).size;
    sh.pwrite(&fd, end, "two").unwrap();
    assert_eq!(sh.read_file("f").await.unwrap(), b"one two");
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["one ", "one two"]);
}

#[tokio::test(start_paused = true)]
async fn gaps_read_as_zeros_and_cuts_forget() {
    let sh = Shell::new();
    let fd = sh.open("f", CREATE).await.unwrap();
    sh.pwrite(&fd, 3, "x").unwrap();
    assert_eq!(sh.read_all(&fd).await.unwrap(), b"\0\0\0x");
    sh.ftruncate(&fd, 1).await.unwrap();
    sh.ftruncate(&fd, 5).await.unwrap();
    sh.close(fd).await.unwrap();
    assert_eq!(sh.read_file("f").await.unwrap(), b"\0\0\0\0\0");
    assert_eq!(sh.history("f").await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn ftruncate_counts_as_written() {
    let sh = Shell::new();
    sh.put("f", "123456").await;
    for (size, stored) in [(3, "123"), (5, "123\0\0")] {
        let fd = sh.open("f", WRITE).await.unwrap();
        sh.ftruncate(&fd, size).await.unwrap();
        sh.flush(&fd).await.unwrap();
        assert_eq!(sh.history("f").await.last().unwrap(), stored, "stored by the flush");
        sh.release(fd).await;
    }
    assert_eq!(sh.history("f").await.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn truncate_by_path_stores_before_it_answers() {
    let sh = Shell::new();
    sh.put("f", "123456").await;
    sh.truncate("f", 2).await.unwrap();
    assert_eq!(sh.history("f").await, ["123456", "12"]);
    sh.truncate("f", 4).await.unwrap();
    sh.truncate("f", 4).await.unwrap();
    sh.truncate("f", 0).await.unwrap();
    assert_eq!(sh.history("f").await, ["123456", "12", "12\0\0", ""]);
    assert!(sh.fs.unsaved().is_empty());
}

#[tokio::test(start_paused = true)]
async fn truncate_by_path_leaves_the_storing_to_a_writer() {
    let sh = Shell::new();
    sh.put("f", "123456").await;
    let fd = sh.open("f", WRITE).await.unwrap();
    sh.truncate("f", 2).await.unwrap();
    assert_eq!(sh.history("f").await, ["123456"]);
    sh.pwrite(&fd, 2, "x").unwrap();
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["123456", "12x"]);
}

#[tokio::test(start_paused = true)]
async fn truncation_by_a_second_opener_is_part_of_one_version() {
    let sh = Shell::new();
    sh.put("f", "long value").await;
    let first = sh.open("f", WRITE).await.unwrap();
    sh.pwrite(&first, 0, "L").unwrap();
    let second = sh.open("f", CREATE).await.unwrap();
    assert_eq!(sh.fstat(&first).size, 0);
    sh.pwrite(&second, 0, "new").unwrap();
    sh.close(second).await.unwrap();
    sh.close(first).await.unwrap();
    assert_eq!(sh.history("f").await, ["long value", "new"]);
}

#[tokio::test(start_paused = true)]
async fn equal_bytes_make_no_version() {
    let sh = Shell::new();
    sh.write_file("f", "same").await.unwrap();
    sh.write_file("f", "same").await.unwrap();
    sh.refresh().await;
    sh.write_file("f", "same").await.unwrap();
    assert_eq!(sh.history("f").await, ["same"]);
    sh.put("f", "other").await;
    sh.write_file("f", "same").await.unwrap();
    assert_eq!(sh.history("f").await.last().unwrap(), "same", "equal to an old version only");
}

#[tokio::test(start_paused = true)]
async fn equal_bytes_are_stored_when_the_object_has_changed_elsewhere() {
    let sh = Shell::new();
    sh.put("f", "same").await;
    sh.cat("f").await;
    let fd = sh.open("f", CREATE).await.unwrap();
    sh.refresh().await;
    sh.put("f", "other").await;
    sh.pwrite(&fd, 0, "same").unwrap();
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["same", "other", "same"]);
}

#[tokio::test(start_paused = true)]
async fn handles_share_the_bytes_and_each_close_stores_what_is_new() {
    let sh = Shell::new();
    let one = sh.open("f", CREATE).await.unwrap();
    let two = sh.open("f", WRITE).await.unwrap();
    let reader = sh.open("f", READ).await.unwrap();
    sh.pwrite(&one, 0, "ab").unwrap();
    sh.pwrite(&two, 1, "x").unwrap();
    assert_eq!(sh.read_all(&reader).await.unwrap(), b"ax");
    sh.close(two).await.unwrap();
    sh.close(one).await.unwrap();
    assert_eq!(sh.history("f").await, ["ax"]);
    assert_eq!(sh.read_all(&reader).await.unwrap(), b"ax");
    sh.close(reader).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn fsync_stores_and_the_close_after_it_stores_nothing() {
    let sh = Shell::new();
    let fd = sh.open("f", CREATE).await.unwrap();
    sh.pwrite(&fd, 0, "one").unwrap();
    sh.fsync(&fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["one"]);
    let synced = sh.fstat(&fd);
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["one"]);
    assert_eq!(sh.stat("f").await.unwrap().mtime, synced.mtime, "a close with nothing new changes no time");
    let fd = sh.open("empty", CREATE).await.unwrap();
    sh.fsync(&fd).await.unwrap();
    assert_eq!(sh.history("empty").await, [""], "fsync stores an empty file too");
    sh.close(fd).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_write_while_its_predecessor_is_on_its_way_is_stored_by_a_second_version() {
    let sh = Arc::new(Shell::new());
    sh.put("f", "0").await;
    let fd = sh.open("f", WRITE).await.unwrap();
    sh.pwrite(&fd, 0, "1").unwrap();
    let mut gate = sh.vault.gate(Op::Update);
    let closing = tokio::spawn({
        let sh = sh.clone();
        async move { sh.fsync(&fd).await }
    });
    gate.arrived(1).await;
    sh.pwrite(&fd, 0, "2").unwrap();
    gate.release();
    closing.await.unwrap().unwrap();
    assert_eq!(sh.history("f").await, ["0", "1"]);
    assert_eq!(sh.read_file("f").await.unwrap(), b"2");
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["0", "1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn two_flushes_at_once_make_one_version() {
    let sh = Arc::new(Shell::new());
    sh.put("f", "0").await;
    let fd = sh.open("f", WRITE).await.unwrap();
    sh.pwrite(&fd, 0, "1").unwrap();
    let mut gate = sh.vault.gate(Op::Update);
    let flushes: Vec<_> = (0..2)
        .map(|_| {
            let sh = sh.clone();
            tokio::spawn(async move { sh.flush(&fd).await })
        })
        .collect();
    gate.arrived(1).await;
    gate.release();
    for flush in flushes {
        flush.await.unwrap().unwrap();
    }
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["0", "1"]);
}

#[tokio::test(start_paused = true)]
async fn a_flush_from_a_child_leaves_a_mark_only() {
    let mut sh = Shell::new();
    sh.pid = std::process::id();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let fd = sh.open("f", CREATE).await.unwrap();
    sh.pwrite(&fd, 0, "half").unwrap();
    sh.flush_from(&fd, child.id()).await.unwrap();
    assert!(sh.names().await.is_empty());
    sh.pwrite(&fd, 4, " whole").unwrap();
    sh.flush(&fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["half whole"]);
    sh.pwrite(&fd, 0, "HALF").unwrap();
    sh.flush_from(&fd, child.id()).await.unwrap();
    sh.release(fd).await;
    assert_eq!(sh.history("f").await, ["half whole", "HALF whole"], "the last close stores what is left");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_file_over_the_largest_size_is_efbig_and_stays_as_it_was() {
    let sh = Shell::with(Options { max_size: 10, ..Options::default() });
    sh.put("f", "value").await;
    let fd = sh.open("f", WRITE).await.unwrap();
    assert_eq!(sh.pwrite(&fd, 8, "abc"), Err(Errno::EFBIG));
    assert_eq!(sh.pwrite(&fd, u64::MAX - 1, "abc"), Err(Errno::EFBIG));
    assert_eq!(sh.ftruncate(&fd, 11).await, Err(Errno::EFBIG));
    sh.close(fd).await.unwrap();
    assert_eq!(sh.truncate("f", 1 << 40).await, Err(Errno::EFBIG));
    assert_eq!(sh.history("f").await, ["value"]);
    sh.write_file("f", "0123456789").await.unwrap();
    assert_eq!(sh.cat("f").await, "0123456789");
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_did_not_fit_is_not_stored_and_the_old_value_stays() {
    let sh = Shell::with(Options { max_size: 10, ..Options::default() });
    sh.put("f", "value").await;
    for name in ["f", "new"] {
        // As cp(1) does it: cut, write until it fails, close.
        let fd = sh.open(name, WRITE | libc::O_CREAT | libc::O_TRUNC).await.unwrap();
        sh.pwrite(&fd, 0, "0123456789").unwrap();
        assert_eq!(sh.pwrite(&fd, 10, "a"), Err(Errno::EFBIG));
        assert_eq!(sh.close(fd).await, Err(Errno::EFBIG), "{name}");
    }
    assert_eq!(sh.cat("f").await, "value");
    assert_eq!(sh.history("f").await, ["value"]);
    assert_eq!(sh.names().await, ["f"]);
    assert!(sh.fs.unsaved().is_empty());
}

#[tokio::test(start_paused = true)]
async fn with_format_json_anything_else_is_einval_at_close() {
    let sh = Shell::with(Options { format: Format::Json, ..Options::default() });
    assert_eq!(sh.write_file("f", "no json").await, Err(Errno::EINVAL));
    assert!(sh.names().await.is_empty());
    assert_eq!(sh.read_file("f").await.unwrap(), b"no json", "the bytes are kept");
    sh.write_file("f", "{\"a\": 1}").await.unwrap();
    assert_eq!(sh.history("f").await.len(), 1);
    assert!(sh.fs.unsaved().is_empty());
}

async fn form(sh: &Shell, name: &str) -> Form {
    let id = sh.meta(name).await.unwrap().id;
    sh.memory.get(&sh.elsewhere(), &id).await.unwrap().content.form
}

fn structured(text: &str) -> Content {
    Content { form: Form::Structured, ..Content::plain(text) }
}

#[tokio::test(start_paused = true)]
async fn structured_stays_structured_and_normalised_text_appears_under_a_new_inode() {
    let sh = Shell::new();
    sh.put_content("j", structured("{\n  \"a\": 1\n}\n")).await;
    let before = sh.stat("j").await.unwrap();
    let reader = sh.open("j", READ).await.unwrap();
    sh.write_file("j", "{\"a\":2}").await.unwrap();
    assert_eq!(form(&sh, "j").await, Form::Structured);
    assert_eq!(sh.read_all(&reader).await.unwrap(), b"{\"a\":2}", "an inode keeps the bytes written to it");
    let after = sh.stat("j").await.unwrap();
    assert_ne!(after.ino, before.ino);
    assert_eq!(sh.cat("j").await, "{\n  \"a\": 2\n}\n");
    assert!(sh.invalidated().contains(&(vaultfs::fs::ROOT, "j".into())));
    sh.close(reader).await.unwrap();
    assert_eq!(sh.history("j").await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn each_normalised_save_of_one_handle_appears_under_a_new_inode() {
    let sh = Shell::new();
    sh.put_content("j", structured("{\n  \"a\": 1\n}\n")).await;
    let fd = sh.open("j", libc::O_RDWR).await.unwrap();
    for n in 2..5 {
        sh.ftruncate(&fd, 0).await.unwrap();
        sh.pwrite(&fd, 0, format!("{{\"a\":{n}}}")).unwrap();
        sh.fsync(&fd).await.unwrap();
        assert_eq!(sh.read_all(&fd).await.unwrap(), format!("{{\"a\":{n}}}").as_bytes());
        assert_ne!(sh.stat("j").await.unwrap().ino, fd.ino);
        assert_eq!(sh.cat("j").await, format!("{{\n  \"a\": {n}\n}}\n"));
    }
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("j").await.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn times_and_modes_set_before_the_close_survive_the_commit() {
    let sh = Shell::new();
    let then = sh.fs.now() - Duration::from_secs(1_000_000);
    let fd = sh.open_mode("f", CREATE, 0o640).await.unwrap();
    sh.pwrite(&fd, 0, "x").unwrap();
    let set = SetAttr { mtime: Some(then), mode: Some(0o400), ..SetAttr::default() };
    sh.once(|fs, ctx| async move { fs.setattr(&ctx, fd.ino, Some(fd.fh), set).await }).await.unwrap();
    sh.close(fd).await.unwrap();
    let attr = sh.stat("f").await.unwrap();
    assert_eq!((attr.mtime, attr.perm), (then, 0o400));
    sh.chmod("f", 0o600).await.unwrap();
    sh.pass(Duration::from_secs(1)).await;
    sh.write_file("f", "y").await.unwrap();
    assert!(sh.stat("f").await.unwrap().mtime > then, "new bytes have their own time");
}
