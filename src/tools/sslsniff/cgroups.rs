// SPDX-License-Identifier: BSD-2-Clause

//! The cgroups that a person means by a path, a unit's name or a container's id.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
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
    let mut found = Vec::new();
    search(mount, Path::new("/"), text, 0, &mut found);
    if found.is_empty() {
        return Err(Failure::usage(format!(
            "--cgroup {text:?}: no unit of this name and no container of this id is running, and a \
             path starts with /"
        )));
    }
    Ok(found)
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

/// Whether `text` means the cgroup at `path`.
fn means(text: &str, path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let Some(name) = name else { return false };
    if name == text || name.strip_suffix(".service") == Some(text) {
        return true;
    }
    text.len() >= SHORTEST_ID
        && process::container_of(&path.to_string_lossy()).is_some_and(|id| id.starts_with(text))
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
        for folder in [nginx, "user.slice/a.slice", &format!("{container}/inner")] {
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
        ] {
            let err = found(wrong).unwrap_err();
            assert!(err.to_string().contains(&format!("{wrong:?}")), "{err}");
            assert_eq!(failure::exit_code(&err.into()), failure::USAGE);
        }
        assert!(resolve("nginx", None).is_err());
    }
}
