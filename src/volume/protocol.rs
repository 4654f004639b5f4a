//! The volume plugin protocol, version 1 (JSON over HTTP over a Unix socket), as dockerd and podman
//! speak it.
//!
//! Measured: `Opts` may be null or missing, the body may be empty, and Host is empty or `plugin`.
//! One lenient type reads every request; each answer has the members its kind of request needs and
//! nothing else.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Media type of answers.
pub const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// Any request's body.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ask {
    /// The volume.
    pub name: Option<String>,
    /// The ID of the user that mounts or unmounts it.
    #[serde(rename = "ID")]
    pub id: Option<String>,
    /// Options of Create.
    pub opts: Option<BTreeMap<String, String>>,
}

/// A volume in the answers of Get and List.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Described {
    /// Its name.
    pub name: String,
    /// Where it is mounted; empty while it is not.
    pub mountpoint: PathBuf,
    /// When it was created, RFC 3339.
    pub created_at: String,
    /// Its options and how many use it.
    pub status: BTreeMap<String, serde_json::Value>,
}

/// An answer that is no error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To Plugin.Activate.
    #[serde(rename_all = "PascalCase")]
    Activate {
        /// Always `VolumeDriver`.
        implements: [&'static str; 1],
    },
    /// To Capabilities.
    #[serde(rename_all = "PascalCase")]
    Capabilities {
        /// The capabilities.
        capabilities: Scope,
    },
    /// To Mount and Path.
    #[serde(rename_all = "PascalCase")]
    Mountpoint {
        /// The mount point.
        mountpoint: PathBuf,
    },
    /// To Get.
    #[serde(rename_all = "PascalCase")]
    Volume {
        /// The volume.
        volume: Described,
    },
    /// To List.
    #[serde(rename_all = "PascalCase")]
    Volumes {
        /// All of them.
        volumes: Vec<Described>,
    },
    /// To Create, Remove and Unmount.
    Done {},
}

/// Scope of this driver's volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Scope {
    /// `local`: a volume is known on the machine where it was created.
    pub scope: &'static str,
}

/// An error as it is shown to the user, word for word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Refused {
    /// The sentence.
    pub err: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dockerd_and_podman_send_is_read() {
        let ask = |text: &str| serde_json::from_str::<Ask>(text).expect("as it was on the wire");
        assert_eq!(ask(r#"{"Name":"v1","Opts":null}"#).opts, None);
        assert_eq!(ask(r#"{"Name":"v1"}"#).name.as_deref(), Some("v1"));
        let mount = ask(r#"{"Name":"v1","ID":"2f73"}"#);
        assert_eq!((mount.name.as_deref(), mount.id.as_deref()), (Some("v1"), Some("2f73")));
        assert_eq!(
            ask(r#"{"Name":"v1","Opts":{"prefix":"app"},"New":1}"#).opts.expect("given")["prefix"],
            "app"
        );
        assert_eq!(ask("{}"), Ask::default());
    }

    #[test]
    fn answers_have_the_members_that_are_looked_for() {
        let text = |answer: &Answer| serde_json::to_string(answer).expect("plain data");
        assert_eq!(
            text(&Answer::Activate { implements: ["VolumeDriver"] }),
            r#"{"Implements":["VolumeDriver"]}"#
        );
        assert_eq!(
            text(&Answer::Capabilities { capabilities: Scope { scope: "local" } }),
            r#"{"Capabilities":{"Scope":"local"}}"#
        );
        assert_eq!(text(&Answer::Mountpoint { mountpoint: "/m".into() }), r#"{"Mountpoint":"/m"}"#);
        assert_eq!(text(&Answer::Volumes { volumes: vec![] }), r#"{"Volumes":[]}"#);
        assert_eq!(text(&Answer::Done {}), "{}");
        assert_eq!(serde_json::to_string(&Refused { err: "no".into() }).expect("plain"), r#"{"Err":"no"}"#);
    }
}
