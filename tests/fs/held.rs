//! Lookup counts: what the kernel gives back leaves the table, unless it has bytes that the vault
//! has not.

use vaultfs::fs::{Drain, Errno};
use vaultfs::vault::ErrorKind;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;

use crate::shell::{CREATE, READ, Shell};

#[tokio::test(start_paused = true)]
async fn forgotten_inodes_leave_the_table() {
    let sh = Shell::new();
    for name in ["a", "b", "d/c"] {
        sh.put(name, "x").await;
    }
    sh.stat("d").await.unwrap();
    sh.forget_all();
    let start = sh.fs.status().inodes;
    sh.walk("").await.unwrap();
    sh.write_file("a", "y").await.unwrap();
    sh.write_file("new", "y").await.unwrap();
    sh.mv("a", "b").await.unwrap();
    sh.rm("d/c").await.unwrap();
    sh.write_file("d/c", "z").await.unwrap();
    sh.put("b", "changed elsewhere").await;
    sh.refresh().await;
    sh.cat("b").await;
    assert_eq!(sh.stat("absent").await, Err(Errno::ENOENT));
    assert!(sh.fs.status().inodes > start);
    sh.forget_all();
    assert_eq!((sh.fs.status().inodes, sh.fs.status().handles), (start, 0));
    let ino = sh.stat("new").await.unwrap().ino;
    sh.stat("new").await.unwrap();
    sh.fs.forget(ino, 1);
    assert!(sh.fs.getattr(ino).is_ok(), "one of two lookups is left");
    sh.fs.forget(ino, 1);
    assert_eq!(sh.fs.getattr(ino), Err(Errno::ESTALE));
}

#[tokio::test(start_paused = true)]
async fn versions_and_replaced_inodes_leave_too() {
    let sh = Shell::new();
    sh.write_file("f", "one").await.unwrap();
    sh.write_file("f", "two").await.unwrap();
    sh.ls(".versions/f").await.unwrap();
    sh.forget_all();
    let start = sh.fs.status().inodes;
    assert_eq!(sh.cat(".versions/f/1").await, "one");
    let fd = sh.open("f", READ).await.unwrap();
    sh.put("f", "three").await;
    sh.refresh().await;
    sh.cat("f").await;
    sh.close(fd).await.unwrap();
    sh.forget_all();
    assert_eq!(sh.fs.status().inodes, start);
}

#[tokio::test(start_paused = true)]
async fn what_the_vault_has_not_is_kept() {
    let sh = Shell::new();
    sh.vault.fail_always(Op::Create, Fault::Before(ErrorKind::Forbidden));
    assert!(sh.write_file("f", "precious").await.is_err());
    sh.forget_all();
    assert_eq!(sh.cat("f").await, "precious");
    sh.vault.clear();
    assert!(sh.fs.drain(Drain::All, sh.fs.options().timeout).await.is_empty());
    sh.forget_all();
    assert_eq!(sh.fs.status().inodes, 1, "the root alone");
}

#[tokio::test(start_paused = true)]
async fn an_open_file_outlives_its_lookups() {
    let sh = Shell::new();
    let fd = sh.open("f", CREATE).await.unwrap();
    sh.pwrite(&fd, 0, "x").unwrap();
    sh.forget_all();
    sh.pwrite(&fd, 1, "y").unwrap();
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["xy"]);
    assert_eq!(sh.fs.status().inodes, 1);
    let unlinked = sh.open("g", CREATE).await.unwrap();
    sh.rm("g").await.unwrap();
    sh.forget_all();
    assert_eq!(sh.read_all(&unlinked).await.unwrap(), b"");
    sh.close(unlinked).await.unwrap();
    assert_eq!(sh.fs.status().inodes, 1);
}

#[tokio::test(start_paused = true)]
async fn failed_operations_leave_nothing_behind() {
    let sh = Shell::new();
    sh.put("f", "x").await;
    sh.put("g", "x").await;
    sh.ls("").await.unwrap();
    for op in [Op::Delete, Op::Update] {
        sh.vault.fail_always(op, Fault::Before(ErrorKind::Forbidden));
    }
    assert!(sh.rm("f").await.is_err());
    assert!(sh.mv("f", "g").await.is_err());
    assert!(sh.mv("f", "new").await.is_err());
    sh.forget_all();
    assert_eq!(sh.fs.status().inodes, 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_set_on_an_unlinked_file_does_not_stick_to_its_name() {
    let sh = Shell::new();
    sh.put("f", "x").await;
    let fd = sh.open("f", READ).await.unwrap();
    sh.rm("f").await.unwrap();
    let set = vaultfs::fs::SetAttr { mode: Some(0o400), ..Default::default() };
    sh.once(|fs, ctx| async move { fs.setattr(&ctx, fd.ino, Some(fd.fh), set).await }).await.unwrap();
    assert_eq!(sh.fstat(&fd).perm, 0o400);
    sh.close(fd).await.unwrap();
    sh.put("f", "made anew elsewhere").await;
    sh.refresh().await;
    assert_eq!(sh.stat("f").await.unwrap().perm, 0o600);
}
