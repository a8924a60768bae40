// SPDX-License-Identifier: BSD-2-Clause

//! The cgroups that a person means by a path, a unit's name or a container's id.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::kernel::cgroup;
use crate::process;

/// As many as the kernel's side has room for (`MAX_CGROUPS`).
pub const MOST: usize = 16;

/// The shortest start of a container's id that is taken for one, as docker and podman print it.
const SHORTEST_ID: usize = 12;

/// How deep cgroups are followed.
const DEEPEST: usize = 32;

/// The folders below `mount` that `text` means; those below them are in them.
///
/// # Errors
/// [`Failure::Usage`] if there is none, and what was looked for.
pub fn resolve(text: &str, mount: Option<&Path>) -> Result<Vec<PathBuf>, Failure> {
    let Some(mount) = mount else {
        return Err(Failure::blocked(
            format!("--cgroup {text:?}: the whole of cgroup2 is not mounted here"),
            "mount -t cgroup2 none /sys/fs/cgroup",
        ));
    };
    if text.starts_with('/') {
        let path = Path::new(text);
        let below = path.strip_prefix(mount).unwrap_or(path);
        let folder = mount.join(below.strip_prefix("/").unwrap_or(below));
        let plain = !below
            .components()
            .any(|part| part == std::path::Component::ParentDir);
        if plain && folder.is_dir() {
            return Ok(vec![folder]);
        }
        return Err(Failure::usage(format!(
            "--cgroup {text:?}: there is no {}",
            folder.display()
        )));
    }
    if let Some(unit) = unit(mount, text) {
        return Ok(vec![unit]);
    }
    let mut found = Vec::new();
    search(mount, Path::new("/"), text, 0, &mut found);
    // Whoever has a part of the tree may call a folder as another's container is called.
    let is_root_s = |folder: &PathBuf| fs::metadata(folder).is_ok_and(|one| one.uid() == 0);
    if found.iter().any(is_root_s) {
        found.retain(is_root_s);
    }
    if found.is_empty() {
        return Err(Failure::usage(format!(
            "--cgroup {text:?}: no unit of this name and no container of this id is running, and a \
             path starts with /"
        )));
    }
    Ok(found)
}

/// The unit of this name, where the system manager has it.
fn unit(mount: &Path, text: &str) -> Option<PathBuf> {
    if matches!(text, "" | "." | "..") || text.contains('/') {
        return None;
    }
    let names = [text.to_owned(), format!("{text}.service")];
    let found = names
        .iter()
        .find_map(|name| cgroup::find_unit(mount, name))?;
    Some(mount.join(found.trim_start_matches('/')))
}

fn search(mount: &Path, at: &Path, text: &str, depth: usize, found: &mut Vec<PathBuf>) {
    let folder = mount.join(at.strip_prefix("/").unwrap_or(at));
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let below = at.join(entry.file_name());
        if means(text, &below) {
            found.push(entry.path());
        } else if depth < DEEPEST {
            search(mount, &below, text, depth + 1, found);
        }
    }
}

/// Whether `text` means the container whose cgroup is at `path`.
fn means(text: &str, path: &Path) -> bool {
    text.len() >= SHORTEST_ID
        && path
            .file_name()
            .and_then(|name| process::container_of(name.to_str()?))
            .is_some_and(|id| id.starts_with(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure;

    #[test]
    fn a_path_a_unit_and_a_container_are_found() {
        let mount = tempfile::tempdir().unwrap();
        let id = "0123456789abcdef".repeat(4);
        let nginx = "system.slice/nginx.service";
        let container = format!("system.slice/docker-{id}.scope");
        // Whoever may make folders there may call them anything.
        let user = "user.slice/user-7.slice/user@7.service/app.slice/";
        for folder in [
            nginx,
            "user.slice/a.slice",
            &format!("{container}/inner"),
            &format!("{nginx}/nginx.service"),
            &format!("{user}nginx.service"),
            &format!("{user}forged.service"),
        ] {
            fs::create_dir_all(mount.path().join(folder)).unwrap();
        }
        let found = |text: &str| resolve(text, Some(mount.path()));
        let whole = mount.path().join(nginx).display().to_string();
        for text in [
            "/system.slice/nginx.service",
            "nginx.service",
            "nginx",
            &whole,
        ] {
            assert_eq!(found(text).unwrap(), [mount.path().join(nginx)], "{text}");
        }
        for text in [&id[..12], &id] {
            assert_eq!(found(text).unwrap(), [mount.path().join(&container)]);
        }
        for wrong in [
            "",
            "no-such",
            "/no/such",
            &id[..11],
            "/../etc",
            "nginx.socket",
            "forged.service",
            "forged",
        ] {
            let err = found(wrong).unwrap_err();
            assert!(err.to_string().contains(&format!("{wrong:?}")), "{err}");
            assert_eq!(failure::exit_code(&err.into()), failure::USAGE);
        }
        assert!(resolve("nginx", None).is_err());
    }
}
