//! What has to be asked: how much a read, a save and a listing cost beside the bare requests that
//! they are.

use std::ffi::CString;
use std::time::{Duration, Instant};

use super::{hundred, names};
use crate::Plan;
use crate::measure::{Spread, c_path, cat, compare, in_threads, list, save, time};
use crate::mount::Place;
use crate::report::Report;
use crate::vault::{Requests, Vault};

const DELAY: Duration = Duration::from_millis(5);

/// A client as bare as one can be, on a runtime of its own.
struct Bare {
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    url: String,
}

impl Bare {
    fn new(url: &str) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let client = reqwest::Client::builder().no_proxy().build();
        Ok(Self {
            runtime: runtime.map_err(|e| e.to_string())?,
            client: client.map_err(|e| e.to_string())?,
            url: format!("{url}/vault/v1/kv"),
        })
    }

    fn send(&self, request: reqwest::RequestBuilder) -> Result<Vec<u8>, String> {
        let answer = async {
            let answer = request.bearer_auth("sk_benchmark").send().await?.error_for_status()?;
            answer.bytes().await
        };
        self.runtime.block_on(answer).map(|b| b.to_vec()).map_err(|e| e.to_string())
    }

    fn get(&self, rest: &str) -> Result<serde_json::Value, String> {
        let body = self.send(self.client.get(format!("{}{rest}", self.url)))?;
        serde_json::from_slice(&body).map_err(|e| e.to_string())
    }

    fn put(&self, id: &str) -> Result<(), String> {
        let body = format!(r#"{{"value":"{}"}}"#, "y".repeat(100));
        self.send(self.client.put(format!("{}/{id}", self.url)).body(body)).map(drop)
    }

    /// All pages, one after another, each parsed for its cursor; the number of names.
    fn page(&self) -> Result<usize, String> {
        let (mut after, mut count) = (String::new(), 0);
        loop {
            let page = self.get(&format!("?limit=100{after}"))?;
            count += page["data"].as_array().map_or(0, Vec::len);
            match page["list_metadata"]["after"].as_str() {
                Some(cursor) => after = format!("&after={cursor}"),
                None => return Ok(count),
            }
        }
    }
}

pub fn reads(plan: &Plan, report: &mut Report) -> Result<(), String> {
    let names = names("", 20_000);
    let vault = Vault::start(names.clone(), hundred)?;
    let place = Place::new()?;
    let mount = place.mount("mnt", &vault.url, &["--refresh=1h"])?;
    let used = vault.requests();
    report.row(
        "mount-requests",
        format!("requests until a mount is there, which took {:.2} s", mount.took.as_secs_f64()),
        "≤ 2",
        (used.all().to_string(), "exact".into()),
        used.all() <= 2,
    );
    let names_listed = settle(&vault)?;
    report.told("requests that followed by themselves", (names_listed.all().to_string(), "exact".into()));
    let bare = Bare::new(&vault.url)?;
    let paths: Vec<CString> = names.iter().map(|name| c_path(&mount.path(name))).collect();
    // Names that were in the first page or in a test of the directory are known; these are not.
    let mut fresh = (5_000..20_000).map(|n| &paths[n]);
    vault.set_delay(DELAY);
    let mut buffer = [0; 4096];
    let mut read = || {
        let path = fresh.next().ok_or("no name is left")?;
        time(|| cat(path, &mut buffer))
    };
    read()?;
    let before = vault.requests();
    for _ in 0..100 {
        read()?;
    }
    let used = (vault.requests() - before).all();
    let parts = if plan.quick { 50 } else { 100 };
    let other = format!("/name/{}", names[1]);
    let (ratio, taken) = compare(plan.rounds, parts, &mut read, || time(|| bare.get(&other)))?;
    report.at_most("cold-read", "cold read of a name in the root, against GET by name", 1.2, &ratio);
    report.told("the same, one read", taken.millis());
    report.exactly("cold-requests", "requests for 100 cold reads", 100, Some(used));

    let before = vault.requests();
    let one = &paths[4_000];
    let gather = in_threads(1000, |_| cat(one, &mut [0; 4096]).map(drop))?;
    report.exactly(
        "crowd",
        "requests for 1,000 readers of one cold name at once",
        1,
        Some((vault.requests() - before).all()),
    );
    report.told("all of them done after", Spread::of(vec![gather.as_secs_f64()]).millis());
    saves(plan, report, &vault, &bare, &paths)
}

/// Waits until nothing has been asked for a second; what was asked since the start.
fn settle(vault: &Vault) -> Result<Requests, String> {
    for _ in 0..60 {
        let before = vault.requests();
        std::thread::sleep(Duration::from_secs(1));
        if vault.requests() == before {
            return Ok(before);
        }
    }
    Err("the mount never stops asking".into())
}

fn saves(
    plan: &Plan,
    report: &mut Report,
    vault: &Vault,
    bare: &Bare,
    paths: &[CString],
) -> Result<(), String> {
    let id = bare.get(&format!("/name/{}", vault.name(2)))?;
    let id = id["id"].as_str().ok_or("an object without id")?.to_owned();
    let path = &paths[3];
    cat(path, &mut [0; 4096])?;
    // Another value each time: equal ones are not sent.
    let mut count = 0_u64;
    let mut write = || {
        count += 1;
        let text = format!("{count:0100}");
        time(|| save(path, text.as_bytes()))
    };
    write()?;
    let before = vault.requests();
    for _ in 0..50 {
        write()?;
    }
    let used = (vault.requests() - before).all();
    let parts = if plan.quick { 50 } else { 100 };
    let (ratio, taken) = compare(plan.rounds, parts, &mut write, || time(|| bare.put(&id)))?;
    report.at_most("save", "open(O_TRUNC)+write+close of a known name, against PUT", 1.3, &ratio);
    report.told("the same, one save", taken.millis());
    report.exactly("save-requests", "requests for 50 saves", 50, Some(used));
    Ok(())
}

pub fn listing(plan: &Plan, report: &mut Report) -> Result<(), String> {
    let vault = Vault::start(names("app/", 10_000), hundred)?;
    let place = Place::new()?;
    let bare = Bare::new(&vault.url)?;
    bare.page()?;
    let (mut ratios, mut first) = (Vec::new(), Vec::new());
    let mut counts = Vec::new();
    for round in 0..plan.rounds.max(5) {
        // The kernel must not know the directory: each round has a mount of its own.
        let mount = place.mount(&format!("mnt-{round}"), &vault.url, &["--refresh=1h"])?;
        let root = c_path(&mount.mnt.join("app"));
        let theirs = time(|| bare.page())?;
        let before = vault.requests();
        let ours = time(|| match list(&root, false)? {
            10_000 => Ok(()),
            n => Err(format!("{n} names where there are 10,000")),
        })?;
        counts.push(vault.requests() - before);
        ratios.push(ours.as_secs_f64() / theirs.as_secs_f64());
        first.push(ours.as_secs_f64());
    }
    report.at_most("paging", "cold listing of 10,000 names, against bare paging", 1.3, &Spread::of(ratios));
    report.told("the same, one listing", Spread::of(first).millis());
    let most = counts.iter().map(|c| c.lists).max().unwrap_or(0);
    let gets: u64 = counts.iter().map(|c| c.gets).sum();
    report.row(
        "paging-requests",
        "requests for it, besides the first page that the mount asked for",
        "≤ 100, no values",
        (format!("{most}, {gets} values"), "exact".into()),
        most <= 100 && gets == 0,
    );
    overlap(report, &vault, &place)
}

/// With each page 20 ms away: when the first names are there, and when all.
fn overlap(report: &mut Report, vault: &Vault, place: &Place) -> Result<(), String> {
    let mount = place.mount("mnt-overlap", &vault.url, &["--refresh=1h"])?;
    vault.set_delay(Duration::from_millis(20));
    let begun = Instant::now();
    let mut entries = std::fs::read_dir(mount.path("app")).map_err(|e| e.to_string())?;
    let first = entries.next().is_some().then(|| begun.elapsed()).ok_or("no name")?;
    let pages = vault.requests().lists;
    let _ = entries.count();
    let all = begun.elapsed();
    vault.set_delay(Duration::ZERO);
    let figure = format!("{:.0} ms of {:.0} ms", first.as_secs_f64() * 1e3, all.as_secs_f64() * 1e3);
    let asked = format!("{pages} pages had been asked for since the start");
    report.told("first name of a cold listing, pages 20 ms away", (figure, asked));
    Ok(())
}
