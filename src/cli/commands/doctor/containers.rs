//! Container engines: what they need for mounts, and volumes with options that are out of date.

use crate::cli::commands::doctor::Finding;
use crate::cli::commands::doctor::machine::Machine;
use crate::cli::commands::volume_plugin;
use crate::sys::mountpoint;
use crate::volume::{options, store};

pub fn containers(machine: &Machine) -> Vec<Finding> {
    let mut found = Vec::new();
    if machine.has(".dockerenv") || machine.has("run/.containerenv") {
        found.push(Finding::note(
            "container",
            "this is a container",
            "to mount in it: --device /dev/fuse --cap-add SYS_ADMIN; to use a mount of the host: bind it into it",
        ));
    }
    let engines = [("usr/bin/docker", "Docker"), ("usr/bin/podman", "Podman")];
    let engines: Vec<_> = engines.into_iter().filter(|(path, _)| machine.has(path)).collect();
    if !engines.is_empty() {
        let names: Vec<_> = engines.into_iter().map(|(_, name)| name).collect();
        found.push(Finding::note(
            "container",
            format!("installed: {}", names.join(", ")),
            "containers that do not run as the owner of a mount need --allow-other",
        ));
    }
    let permits = mountpoint::permits_allow_other(&machine.text("etc/fuse.conf").unwrap_or_default());
    if machine.has("usr/bin/podman") && !permits {
        found.push(Finding::note(
            "container",
            "rootless containers with --userns=keep-id, --userns=auto or --user cannot enter their user's mounts: \
             podman says `OCI permission denied`",
            "the line user_allow_other in /etc/fuse.conf, then mount with --allow-other, for --user and auto with \
             --file-mode 0644 --dir-mode 0755, too",
        ));
    }
    found
}

/// Volumes with options that could not be given any more.
pub fn volumes(machine: &Machine) -> Vec<Finding> {
    let of_root = machine.path("var/lib/vaultfs-volumes");
    let own = machine.ordinary.then(|| volume_plugin::default_state().ok()).flatten();
    let mut found = Vec::new();
    for dir in [Some(of_root), own].into_iter().flatten() {
        let volumes = match store::volumes_in(&dir) {
            Ok(volumes) => volumes,
            // Another user's, most likely.
            Err(_) => continue,
        };
        for (name, volume) in volumes.iter() {
            let old = options::old(&volume.options);
            if !old.is_empty() {
                found.push(Finding::warning(
                    "volume",
                    format!("the volume {name} has options that belong into a profile: {}", old.join(", ")),
                    format!(
                        "write them into /etc/vaultfs/profiles/{name} (name=value, a line each), then `volume rm {name}` \
                         and `volume create … -o profile={name}`: this deletes nothing in the vault"
                    ),
                ));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::commands::doctor::Level;
    use crate::cli::commands::doctor::machine::tests::machine;

    #[test]
    fn volumes_with_options_of_profiles_are_listed() {
        let written = |options: &str| {
            format!(r#"{{"boot":"b","volumes":{{"app":{{"options":{options},"created":7,"users":["x"]}}}}}}"#)
        };
        let of = |text: &str| volumes(&machine(&[("var/lib/vaultfs-volumes/volumes.json", text)]).1);
        let old = of(&written(r#"{"prefix":"a","on-change":"true","api_key_file":"/k"}"#));
        assert_eq!((old.len(), old[0].level), (1, Level::Warning));
        assert!(
            old[0]
                .says
                .ends_with("volume app has options that belong into a profile: api_key_file, on-change")
        );
        assert!(of(&written(r#"{"prefix":"a","profile":"p"}"#)).is_empty());
        assert!(of("{").is_empty() && volumes(&machine(&[]).1).is_empty());
    }

    #[test]
    fn rootless_containers_need_mounts_for_others() {
        let said = |conf: &str| {
            let (_dir, machine) = machine(&[("usr/bin/podman", ""), ("etc/fuse.conf", conf)]);
            containers(&machine).iter().any(|finding| finding.says.contains("--userns=keep-id"))
        };
        assert!(said("#user_allow_other\n") && !said("user_allow_other\n"));
    }
}
